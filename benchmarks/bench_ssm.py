"""A training step and a long prefill of Mamba, Mamba-2 and xLSTM, against transformers' eager classes (same weights).

    OMP_NUM_THREADS=1 python benchmarks/bench_ssm.py

transformers without compiled kernels goes through Mamba's time in a Python loop; its Mamba-2 and mLSTM are chunked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
import transformers
from harness import compare, save

from protea.interop.huggingface import from_pretrained

SHAPE = {"vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 4}
CONFIGS = {
    "mamba": transformers.MambaConfig(**SHAPE),
    "mamba2": transformers.Mamba2Config(**SHAPE, num_heads=8, head_dim=32, n_groups=1, state_size=64, chunk_size=64),
    "xlstm": transformers.xLSTMConfig(**SHAPE, num_heads=4, mode="train", use_cache=False, return_last_states=True),
}
ROWS, LENGTH = 4, 256


def step(logits: Callable[[torch.Tensor], torch.Tensor], parameters, x: torch.Tensor) -> None:
    for p in parameters:
        p.grad = None
    out = logits(x[:, :-1])
    torch.nn.functional.cross_entropy(out.flatten(0, 1), x[:, 1:].flatten()).backward()


def main() -> None:
    rows = []
    x = torch.randint(0, 256, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        theirs = transformers.AutoModelForCausalLM.from_config(config).train()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = from_pretrained(folder).train()
        mine, others = list(ours.parameters()), list(theirs.parameters())
        rows.append(compare(
            f"{name}: training step, {ROWS} x {LENGTH} tokens",
            lambda ours=ours, mine=mine: step(ours.logits, mine, x),
            lambda theirs=theirs, others=others: step(lambda t: theirs(t, use_cache=False).logits, others, x),
            rounds=3,
        ))  # fmt: skip
    save("ssm", rows)


if __name__ == "__main__":
    main()
