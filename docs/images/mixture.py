"""Draws mixture.png: contours of a Gaussian and a Student-t mixture of rows with outliers, and a prediction by `given`.

python docs/images/mixture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from protea.distributions.gaussian import Gaussian
from protea.distributions.student_t import StudentT
from protea.models.classical.mixture import Mixture
from protea.models.classical.selection import climb
from protea.space import Rows

rng = np.random.default_rng(3)
shapes = [((0, 0), [[1.0, 0.0], [1.2, 0.5]]), ((5, 4), [[0.6, 0], [0, 1.4]]), ((6, -2), [[1.3, 0], [-0.8, 0.4]])]
x = np.concatenate([rng.normal(size=(150, 2)) @ np.array(root).T + centre for centre, root in shapes])
x[::15] += 7 * rng.normal(size=(30, 2))  # outliers
rows = Rows(torch.from_numpy(x), None, torch.arange(len(x)))

figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1))
across, up = np.meshgrid(np.linspace(-5, 11, 160), np.linspace(-8, 10, 160))
grid = torch.from_numpy(np.stack((across, up), -1).reshape(-1, 2))
models = {"Gaussian": Gaussian, "Student-t": StudentT}
for axis, (name, family) in zip(axes, models.items()):
    model = Mixture(family(3, (2,)), 3, restarts=4)
    model.initialise(rows)
    climb(model, rows, 300, 1e-8)
    level = model.log_prob(grid).numpy().reshape(across.shape)
    axis.contour(across, up, level, levels=np.arange(-10, -2, 0.8), linewidths=0.8, cmap="viridis")
    axis.plot(*x.T, "k.", markersize=1.5)
    axis.set_title(f"three {name} components", fontsize=9)
    axis.set_xlim(-5, 11), axis.set_ylim(-8, 10)

values = torch.linspace(-8, 10, 300, dtype=torch.float64)
for at, colour in ((0.0, "C0"), (5.5, "C1")):
    line = torch.stack((torch.full_like(values, at), values), 1)
    given = model.given(torch.tensor([at, 0.0], dtype=torch.float64), torch.tensor([True, False]))
    axes[2].plot(values, given.log_prob(line).exp(), colour, label=f"a = {at:g}", linewidth=1)
    axes[2].axvline(float(given.mean[0, 1]), color=colour, linestyle=":", linewidth=0.8)
axes[2].set_title("p(b | a), dotted: its mean", fontsize=9)
axes[2].legend(fontsize=7)
for axis in axes:
    axis.tick_params(labelsize=7)
figure.tight_layout()
path = Path(__file__).with_suffix(".png")
figure.savefig(path, dpi=90)
Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
print("wrote", path.name)
