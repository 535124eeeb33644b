"""Several processes under `torchrun`: sums over ranks, and sharded parameters (FSDP2).

Data parallelism needs three facts: ranks hold the same weights, see disjoint rows (`r::world`), and add
gradients (or EM's statistics) before they act. Gradients are summed explicitly after the last
microbatch: one collective a step, and losses that differentiate twice are served as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def setup(device: torch.device) -> None:
    """Join the process group that torchrun's environment describes; nothing without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def active() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if active() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if active() else 0


def barrier() -> None:
    if active():
        dist.barrier()


def add_(tensors: Iterable[Tensor]) -> None:
    """Sum each tensor over the ranks, in place; one collective for each dtype."""
    if not active():
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_sparse:  # the union of the ranks' entries, added where they meet
            dist.all_reduce(tensor)
        else:
            kinds.setdefault(tensor.dtype, []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([t.reshape(-1) for t in same])
        dist.all_reduce(flat)
        for tensor, piece in zip(same, flat.split([t.numel() for t in same])):
            tensor.copy_(piece.view_as(tensor))


def largest(value: int) -> int:
    """The maximum over ranks."""
    if not active():
        return value
    held = torch.tensor(value, device=_device())
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def agree(value: float) -> float:
    """The first rank's value (a clock, for instance), on every rank."""
    if not active():
        return value
    held = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.broadcast(held, 0)
    return float(held)


def broadcast_(module: nn.Module) -> None:
    """Give every rank the first rank's weights and buffers."""
    if active():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)


def sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor (whose import takes seconds, so only where it can be one)."""
    if not active():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; detached, sharing its memory."""
    return tensor.detach().to_local() if sharded(tensor) else tensor.detach()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered where it is sharded; detached, on the CPU."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if sharded(tensor) else tensor).cpu()


def like(whole: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor laid out (device, shards) as another."""
    whole = whole.to(pattern.device)
    if sharded(pattern):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, pattern.device_mesh, pattern.placements)
    return whole.clone()


def gather(held: Tensor, pattern: Tensor) -> Tensor:
    """The whole of a tensor of which this rank holds what it holds of `pattern`."""
    if not sharded(pattern):
        return held
    from torch.distributed.tensor import DTensor

    layout = {"shape": pattern.shape, "stride": pattern.stride()}
    return DTensor.from_local(held, pattern.device_mesh, pattern.placements, run_check=False, **layout).full_tensor()


def part(whole: Tensor, pattern: Tensor) -> Tensor:
    """What this rank holds of `pattern`, of a whole tensor that every rank has: `gather` backwards."""
    if not sharded(pattern):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, pattern.device_mesh, pattern.placements, src_data_rank=None).to_local()


def fsdp(*blocks: type[nn.Module]) -> Callable[[nn.Module], None]:
    """A `prepare` for `Gradient`: shard parameters, gradients and optimizer state over the ranks (FSDP2).

    What is sharded is the learner's objective, whose `forward` computes the loss: so any method of the
    model may be used in a loss. Modules of the classes `blocks`, which must be used by calling them, are
    gathered one at a time; the rest of the model is gathered for a step as one.
    """

    def prepare(objective: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if not active():
            return
        mesh = init_device_mesh(_device().type, (world(),))
        whole = {p for p in objective.parameters() if p.ndim == 0}  # scalars cannot be sharded
        for module in objective.modules():
            if blocks and isinstance(module, blocks):
                fully_shard(module, mesh=mesh, ignored_params=whole)
        fully_shard(objective, mesh=mesh, ignored_params=whole, reshard_after_forward=False)

    return prepare


def shards(module: nn.Module) -> list[Any]:
    """The modules whose parameters FSDP shards."""
    if not active():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [m for m in module.modules() if isinstance(m, FSDPModule)]


def _device() -> torch.device:
    backend = dist.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
