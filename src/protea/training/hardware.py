"""On what, and in which numbers, a run is trained; kept in its config so that a resume uses the same."""

from __future__ import annotations

from dataclasses import dataclass

from protea.training.precision import Precision


@dataclass(frozen=True)
class Hardware:
    """How a fit uses the machine. Under torchrun every process takes its share of each batch.

    Args:
        device: "auto" (a GPU where one is visible), "cpu" or "cuda".
        require_gpu: fail rather than fall back to the CPU.
        precision: "fp32"; "bf16" or "auto" use bfloat16 products where the hardware has them natively.
        compile: `torch.compile` the networks.
        shard: split weights and moments over the processes (FSDP2); otherwise each holds the whole model.
        microbatch: rows of one forward and backward pass, to save memory; the gradient is that of the whole batch.
    """

    device: str = "auto"
    require_gpu: bool = False
    precision: Precision = "fp32"
    compile: bool = False
    shard: bool = False
    microbatch: int | None = None
