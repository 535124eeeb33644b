"""Draws tutorial-hmm.png: the states of a run over two years of New York, and what it says of seven days to come.

python docs/images/tutorial_hmm.py runs/weather weather.csv     (docs/tutorials/hidden-markov.md)
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import protea
from protea.data.rows import read_rows
from protea.inference.series import forecast
from protea.models.markov.hmm import HiddenMarkov

run = protea.load(sys.argv[1])
model, x = run.model, read_rows(run.space, sys.argv[2]).x
assert isinstance(model, HiddenMarkov) and x is not None
path = model.decode(x)[0]
half = len(x) // 2  # New York stands before Seattle
states, days = path[:half].flatten(), x[:half].flatten(0, 1)
states, days = states[states >= 0][:731].numpy(), days[states >= 0][:731].numpy()
means = model.emission.means.numpy()  # type: ignore[union-attr]
order = np.argsort(means[:, 1])
colours = dict(zip(order.tolist(), plt.get_cmap("turbo")(np.linspace(0.08, 0.92, len(means)))))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=(2.2, 1))
for k in order.tolist():
    mine = np.flatnonzero(states == k)
    wet = np.expm1(means[k, 0])
    left.scatter(mine, days[mine, 1], s=6, color=colours[k], label=f"{means[k, 1]:.0f} °C, {wet:.1f} mm")
left.set(xlabel="day", ylabel="highest temperature, °C")
left.legend(title="state: high, rain", fontsize=6, title_fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))

row = 13  # a fortnight of summer
start = x[row : row + 1].clone()
known = start[0, :, 1].numpy()
drawn = forecast(model, start, 7, draws=500)[:, 0, :, 1].numpy()
mean = forecast(model, start, 7)[0, :, 1].numpy()
t = np.arange(len(mean))
low, high = np.quantile(drawn, (0.1, 0.9), axis=0)
right.fill_between(t[13:], low[13:], high[13:], alpha=0.25, label="80 % of draws")
right.plot(t[13:], mean[13:], "C0-", label="mean")
right.plot(t[: len(known)], known, "k.-", ms=4, lw=0.8, label="seen")
right.plot(t[14:], x[row + 1, :7, 1].numpy(), "C1.", ms=4, label="what came")
right.set(xlabel="day of the series")
right.legend(fontsize=6)
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
figure.tight_layout()
out = Path(__file__).with_name("tutorial-hmm.png")
figure.savefig(out, dpi=80)
Image.open(out).convert("RGB").quantize(64).save(out, optimize=True)
