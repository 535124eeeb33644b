"""Time to nanoGPT's final validation loss on tinyshakespeare, and the ladder of what shortens it.

nanoGPT's loop is written here from its published configuration for a CPU (github.com/karpathy/nanoGPT, README: 4
layers, 4 heads, 128 wide, 64 characters, batches of 12, 2,000 steps, no dropout, AdamW at 1e-3 with betas 0.9 and 0.99,
weight decay 0.1 on matrices, warm-up of 100 steps, cosine to 1e-4, gradients clipped at 1; blocks of GPT-2: LayerNorm,
GELU, learned positions, tied head, its initialisation), as a plain loop with no evaluation inside. All runs are timed
in one process, from reading the text to the last step, without the last validation; the loss is over the whole
validation split for both. Each rung is `recipes/speedrun.py`'s, through the library's own loop.

    python benchmarks/bench_speedrun.py tinyshakespeare.txt [--steps 2000] [--rungs ours muon]

What limits us (torch.profiler, two layers): matrix products 45 %, attention's kernel 12 %, Newton-Schulz 15 %.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from harness import save
from torch import Tensor, nn

from recipes.speedrun import CONTEXT, RUNGS, TARGET, blocks, characters, run

STEPS, BATCH, LAYERS, WIDTH, HEADS = 2000, 12, 4, 128, 4


class GPTBlock(nn.Module):
    """GPT-2's block (Radford et al. 2019), without biases, as nanoGPT's default."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (h.view(b, t, HEADS, c // HEADS).transpose(1, 2) for h in self.qkv(self.norm_1(x)).split(c, 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """Tokens (B, T) to logits."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(GPTBlock() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                out = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if out else 0.02)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.norm(h) @ self.tokens.weight.T


def nanogpt(path: str, steps: int, seed: int = 1337) -> dict[str, float]:
    """The baseline; seconds, steps, parameters, and the validation loss."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    train, validation, vocabulary = characters(path)
    model = GPT(vocabulary)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    for step in range(steps):
        rate = 1e-3 * (step + 1) / 101 if step < 100 else 1e-4 + 0.5 * 9e-4 * (
            1 + math.cos(math.pi * (step - 100) / (steps - 100)))  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = rate
        places = torch.randint(len(train) - CONTEXT, (BATCH,))
        x = torch.stack([train[i : i + CONTEXT] for i in places])
        y = torch.stack([train[i + 1 : i + 1 + CONTEXT] for i in places])
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        rows = blocks(validation)
        parts = [nn.functional.cross_entropy(model(r[:, :-1]).flatten(0, 1), r[:, 1:].flatten(), reduction="sum")
                 for r in rows.split(256)]  # fmt: skip
    return {"seconds": seconds, "steps": steps, "parameters": sum(p.numel() for p in model.parameters()),
            "validation_loss": float(sum(parts)) / (len(rows) * CONTEXT)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", nargs="?", default="../shared/data/text/tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the baseline; fewer only to try the script")
    parser.add_argument("--rungs", nargs="*", default=list(RUNGS), choices=list(RUNGS))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if not Path(given.text).exists():
        print(f"There is no {given.text}: nothing is timed. Name tinyshakespeare.txt (karpathy/char-rnn).")
        return
    torch.set_num_threads(given.threads)
    rows = []
    base: dict[str, float] = {}
    for name in ("nanogpt", *given.rungs):
        clock = time.process_time()
        found = nanogpt(given.text, given.steps) if name == "nanogpt" else run(RUNGS[name], given.text)
        found["cpu_seconds"] = time.process_time() - clock
        base = base or found
        reached = found["validation_loss"] <= TARGET
        ratio = base["seconds"] / found["seconds"]
        rows.append({"name": name, **found, "target": TARGET, "reached": reached, "times_faster": ratio})
        print(f"{name:9} {found['validation_loss']:.4f} nats, {found['steps']} steps, {found['seconds']:.1f} s "
              f"({found['cpu_seconds']:.1f} s of the processor), {ratio:.1f} times faster"
              f"{'' if reached or name == 'nanogpt' else ', TARGET MISSED'}", flush=True)  # fmt: skip
    save("speedrun", rows)


if __name__ == "__main__":
    main()
