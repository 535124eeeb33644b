"""The trainer beside a bare PyTorch loop: the same convolutional VAE, batches, optimiser and number of steps on MNIST.

What `fit` adds to a step: the order of rows and the noise as functions of (seed, step), exact normalisation by counts,
the gradient's norm and clipping, the schedule, logging, and checkpoints; nothing is judged, for that is work that a
bare loop would do too. Give the data: python benchmarks/bench_trainer.py mnist.npz (x uint8 (N, 28, 28)).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from harness import compare, save

from protea.core import Batch
from protea.data import open_data
from protea.models import MODELS
from protea.objectives.variational import negative_elbo
from protea.rng import Streams
from protea.training import Budget
from protea.training.defaults import default_learner
from protea.training.fit import fit
from protea.training.run import build

STEPS = 60


def main() -> None:
    torch.set_num_threads(2)
    data = open_data(sys.argv[1] if len(sys.argv) > 1 else "digits")
    config = MODELS["vae"].suggest(data.space, data.train, 60.0)

    def fresh():
        model = build("vae", data.space, config, 0)
        model.initialise(data.train, 0)
        return model

    models = {"ours": fresh(), "bare": fresh()}
    size = default_learner(fresh()).batch_size or 128

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit(models["ours"], data.train, None, budget=Budget(steps=STEPS), run=Path(folder), judge=None,
                progress=None, batch_size=size)  # fmt: skip

    def bare() -> None:
        model = models["bare"]
        model.train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
        loss_of = negative_elbo(model.inner)
        order = torch.randperm(len(data.train))
        for step in range(STEPS):
            rows = order[torch.arange(step * size, (step + 1) * size) % len(order)]
            rng = Streams(0, rows)
            v, _ = model.relaxation.lift(data.train.x[rows], rng)
            y = None if data.train.y is None else data.train.y[rows]
            loss = loss_of(Batch(v, y, rng))
            optimiser.zero_grad()
            (loss.total / loss.count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    row = compare(f"VAE on {data.name}, {STEPS} steps of {size}", ours, bare, rounds=7,
                  note="times_faster is bare / ours: 0.95 means the trainer costs 5 %")  # fmt: skip
    row["overhead"] = 1 / row["times_faster"] - 1
    print(f"overhead {100 * row['overhead']:.1f} %")
    save("trainer", [row])


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s")
