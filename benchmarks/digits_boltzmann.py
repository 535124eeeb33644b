"""The picture of a general Boltzmann machine: scikit-learn's digits (8 x 8, binarised above 7), all pixels coupled.

    python benchmarks/digits_boltzmann.py --figures docs/images          # a few minutes of one core

Writes boltzmann-couplings.png: what 12 pixels are coupled to (red: on together, blue: not), then rows and samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from protea.models.boltzmann.full import BoltzmannMachine, symmetric
from protea.models.boltzmann.units import Binomial
from protea.objectives.contrastive_divergence import PersistentChains
from protea.space import Rows
from protea.training.batches import Batches
from protea.training.contrast import Contrast


def main() -> None:
    from sklearn.datasets import load_digits

    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--figures", type=Path, required=True)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x = torch.from_numpy((load_digits().images > 7).astype(np.uint8))
    rows = Rows(x, None, torch.arange(len(x)))
    model = BoltzmannMachine((8, 8), Binomial(64, 12), settle=3, dtype=torch.uint8)
    model.initialise(rows)
    learner, batches = Contrast(model, PersistentChains(100), rate=0.02), Batches(rows, 100, 0)
    learner.horizon = steps = batches.per_epoch * options.epochs
    for step in range(steps):
        learner.step(batches(step))
    assert learner.ema is not None and model.lateral is not None
    learner.ema.exchange()
    drawn = model.sample(24)
    couplings = symmetric(model.lateral.detach())
    pixels = [8 * r + c for r in (1, 3, 6) for c in (2, 3, 4, 5)]
    most = float(couplings[pixels].abs().max())
    figure, axes = plt.subplots(5, 12, figsize=(7.2, 3.3))
    for i, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[])
        if i < 12:
            axis.imshow(couplings[pixels[i]].reshape(8, 8).numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
            axis.plot(pixels[i] % 8, pixels[i] // 8, "k.", ms=4)
        elif i < 36:
            axis.imshow(x[70 * (i - 12)].numpy(), cmap="gray")
        else:
            axis.imshow(drawn[i - 36].numpy(), cmap="gray")
    for row, label in ((0, "couplings"), (1, "rows"), (3, "samples")):
        axes[row, 0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.4)
    figure.savefig(options.figures / "boltzmann-couplings.png", dpi=90)
    rate = (drawn.double().mean((1, 2)).mean(), x.double().mean())
    pairs = [torch.corrcoef(t.flatten(1).T.double())[pixels].nan_to_num() for t in (model.sample(512), x)]
    print(f"share of pixels on: samples {rate[0]:.3f}, rows {rate[1]:.3f}; correlations with the 12 pixels differ by "
          f"{float((pairs[0] - pairs[1]).square().mean().sqrt()):.3f} (root mean square)")  # fmt: skip


if __name__ == "__main__":
    main()
