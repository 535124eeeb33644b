"""Draws tutorial-rbm.png: filters of a run, completed digits, and log Z from either side and from both.

python docs/images/tutorial_rbm.py runs/ink ink.npz     (docs/tutorials/boltzmann.md)
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

import protea
from protea.models.boltzmann.boltzmann import Clamped
from protea.models.boltzmann.rbm import RBM

run = protea.load(sys.argv[1])
model = run.model
assert isinstance(model, RBM)
held = run.data().holdout.x[:8]
side = held.shape[-1]


def sheet(pictures: torch.Tensor, columns: int) -> np.ndarray:
    """(N, 8, 8) on [0, 1] side by side with grey lines between."""
    n = len(pictures) // columns * columns
    tiles = torch.nn.functional.pad(pictures[:n].reshape(-1, columns, side, side).float(), (1, 0, 1, 0), value=0.5)
    return tiles.permute(0, 2, 1, 3).flatten(0, 1).flatten(1).clamp(0, 1).numpy()


weight = model.visible.weight.detach().T[:48].reshape(-1, side, side)
seen = torch.zeros_like(held, dtype=torch.bool)
seen[..., : side // 2, :] = True
clamped = model.given(held, seen)
assert isinstance(clamped, Clamped)
rows = [torch.where(seen, held, 0), clamped.sample(8), clamped.mean(200) > 0.5, held]
rows = torch.cat([r.reshape(-1, side, side).float() for r in rows])

figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.6))
axes[0].imshow(sheet(0.5 + weight / (4 * weight.std()), 8), cmap="gray_r")
axes[0].set_title("weights of 48 hidden units", fontsize=8)
axes[1].imshow(sheet(rows, 8), cmap="gray_r")
axes[1].set_title("upper half, a completion,\nmost probable, truth", fontsize=8)
ladder = [60, 125, 250, 500, 1000]
found = [model.machine.estimate(0, steps=steps, particles=model.particles) for steps in ladder]
at = [max(p.steps, 1) for p in found]
axes[2].plot(at, [p.upper for p in found], "v:", ms=4, label="backward alone")
axes[2].errorbar(at, [p.value for p in found], [1.96 * p.error for p in found], fmt="ko-", ms=3, label="both")
axes[2].plot(at, [p.lower for p in found], "^:", ms=4, label="forward alone")
axes[2].set(xscale="log", xlabel="temperatures")
axes[2].set_xticks(at, [str(n) for n in at])
axes[2].minorticks_off()
axes[2].set_title("log Z, nats, with 95 % interval", fontsize=8)
axes[2].legend(fontsize=7)
axes[2].tick_params(labelsize=7)
for axis in axes[:2]:
    axis.set_xticks([])
    axis.set_yticks([])
figure.tight_layout()
out = Path(__file__).with_name("tutorial-rbm.png")
figure.savefig(out, dpi=80)
Image.open(out).convert("RGB").quantize(64).save(out, optimize=True)
for steps, p in zip(at, found):
    print(f"{steps:5,} temperatures: log Z = {p.value:.2f} +- {p.error:.2f}, between {p.lower:.2f} and {p.upper:.2f}")
