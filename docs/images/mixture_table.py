"""Draws mixture-table.png: held-out nats per row against the number of latent classes.

python docs/images/mixture_table.py adult.csv income
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from protea.data import open_data
from protea.models.classical.table_mixture import MixtureConfig, build
from protea.training import Budget, fit

torch.set_num_threads(1)
data = open_data(sys.argv[1], target=sys.argv[2])
figure, axis = plt.subplots(figsize=(5.2, 3.2))
sizes = (1, 2, 4, 8, 16, 32, 64, 128)
for strength, mark in ((0.0, "s:"), (5.0, "o--"), (20.0, "o-")):
    nats = []
    for k in sizes:
        model = build(
            data.space, MixtureConfig(k=k, bins=64, strength=strength, smoothing=1.0 if not strength else 0.3)
        )
        model.initialise(data.train)
        fit(model, data.train, None, budget=Budget(epochs=40), judge=None, progress=None)
        nats.append(-float(model.log_prob(data.holdout.x).mean()))  # type: ignore[attr-defined, operator]
        print(strength, k, round(nats[-1], 3), flush=True)
    axis.plot(sizes, nats, mark, ms=4, label=f"prior of {strength:g} rows" if strength else "flat prior (Lidstone 1)")
axis.set_xscale("log", base=2)
axis.set_xticks(sizes, [str(k) for k in sizes])
axis.set_xlabel("latent classes k")
axis.set_ylabel("held-out nats per row")
axis.legend(frameon=False, fontsize=8)
axis.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
figure.savefig(Path(__file__).with_name("mixture-table.png"), dpi=90)
