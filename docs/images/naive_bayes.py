"""Draws naive-bayes.png: what a Bernoulli naive Bayes knows of digits, and digits drawn from it.

python docs/images/naive_bayes.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from protea.data import open_data
from protea.distributions.bernoulli import Bernoulli
from protea.models.classical.naive_bayes import NaiveBayes
from protea.space import Rows

data = open_data("digits")
x = (data.train.x.reshape(len(data.train), -1) > 7).double()
model = NaiveBayes(Bernoulli(10, (64,), alpha=1.0), classes=10)
model.initialise(Rows(x, data.train.y, data.train.ids))
labels = torch.arange(10).repeat(2)
drawn = model.sample(20, labels)
figure, axes = plt.subplots(3, 10, figsize=(7.5, 2.4))
pictures = [*model.features.theta, *drawn]  # type: ignore[misc]
for axis, picture in zip(axes.flat, pictures):
    axis.imshow(picture.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
for row, name in zip(axes, ("theta", "draw", "draw")):
    row[0].set_ylabel(name, fontsize=8)
figure.subplots_adjust(left=0.04, right=0.995, top=0.99, bottom=0.01, wspace=0.08, hspace=0.08)
figure.savefig(Path(__file__).with_name("naive-bayes.png"), dpi=80)
