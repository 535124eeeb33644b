"""One epoch of a restricted Boltzmann machine by PCD-1 against scikit-learn's: 784 visible, 256 hidden units, batches
of 100, float32, binarised digits (10,000 of MNIST where the development data are there, else scikit-learn's digits
tiled to the same shape). Then both learn as many epochs and are scored by scikit-learn's own pseudo-likelihood.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import compare, save, several
from sklearn.neural_network import BernoulliRBM

from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial
from protea.objectives.contrastive_divergence import PersistentChains
from protea.space import Rows
from protea.training.batches import Batches
from protea.training.contrast import Contrast

HIDDEN, BATCH, RATE, EPOCHS = 256, 100, 0.05, 10


def digits() -> np.ndarray:
    """(10000, 784) float32 of 0 and 1."""
    folder = Path(os.environ.get("PROTEA_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "images" / "mnist10k.npz"
    if path.exists():
        x = np.load(path)["x"].reshape(-1, 784) > 127
    else:
        from sklearn.datasets import load_digits

        x = np.kron(load_digits().images > 7, np.ones((1, 4, 4)))[:, 2:30, 2:30].reshape(-1, 784) > 0
        x = np.tile(x, (6, 1))[:10_000]
    return x.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    x = digits()
    rows = Rows(torch.from_numpy(x.astype(np.uint8)), None, torch.arange(len(x)))
    peer = BernoulliRBM(HIDDEN, learning_rate=RATE, batch_size=BATCH, n_iter=1, random_state=0)
    model, batches = RBM((784,), Binomial(784, HIDDEN)), Batches(rows, BATCH, 0)

    def fresh(centre: float | None) -> Callable[[], None]:
        """Learning from the beginning; each call is one epoch."""
        model.initialise(rows)
        learner = Contrast(model, PersistentChains(BATCH), rate=RATE, momentum=0.0, decay=0.0, ema=None, centre=centre)
        steps = itertools.count()

        def epoch() -> None:
            for _ in range(batches.per_epoch):
                learner.step(batches(next(steps)))

        return epoch

    kinds = {"the peer's algorithm": None, "centred (the default)": 0.01}
    found = [
        compare(f"three epochs of PCD-1, {kind}, float32", several(fresh(centre)), several(lambda: peer.fit(x)),
                rounds=options.rounds)
        for kind, centre in kinds.items()
    ]  # fmt: skip
    peer.set_params(n_iter=options.epochs).fit(x)

    def pseudo() -> float:
        """Mean of scikit-learn's score, one flipped pixel a row, over five draws of the pixels."""
        return float(np.mean([peer.set_params(random_state=s).score_samples(x).mean() for s in range(5)]))

    theirs = pseudo()
    for row, centre in zip(found, kinds.values()):
        epoch = fresh(centre)
        for _ in range(options.epochs):
            epoch()
        peer.components_, peer.intercept_hidden_, peer.intercept_visible_ = (
            t.detach().numpy() for t in (model.visible.weight.T, model.bias, model.visible.bias)
        )
        row["note"] = f"pseudo-likelihood after {options.epochs} epochs: ours {pseudo():.1f}, peer {theirs:.1f}"
        print(row["name"], row["note"])
    save("rbm", found)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
