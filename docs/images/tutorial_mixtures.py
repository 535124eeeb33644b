"""Draws tutorial-mixtures.png: the contours of a run of eight-gaussians, its rows and its draws.

python docs/images/tutorial_mixtures.py runs/eight     (docs/tutorials/mixtures.md)
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

run = protea.load(sys.argv[1])
rows, drawn = run.data().train.x[:800], run.draw(800)
across, up = np.meshgrid(np.linspace(-3, 3, 150), np.linspace(-3, 3, 150))
grid = torch.from_numpy(np.stack((across, up), -1).reshape(-1, 2))
level = run.score_rows(grid).nats.numpy().reshape(across.shape)
figure, axes = plt.subplots(1, 2, figsize=(6, 3), sharey=True)
for axis, points, title in zip(axes, (rows, drawn), ("rows, and log p(x)", "draws")):
    axis.plot(*points.T, ".", ms=1.5, color="0.3")
    axis.set_title(title, fontsize=8)
    axis.tick_params(labelsize=7)
axes[0].contour(across, up, level, levels=np.arange(-9, 1, 1.5), linewidths=0.7, cmap="viridis")
figure.tight_layout()
out = Path(__file__).with_name("tutorial-mixtures.png")
figure.savefig(out, dpi=70)
Image.open(out).convert("RGB").quantize(64).save(out, optimize=True)
