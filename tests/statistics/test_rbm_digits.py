"""Restricted Boltzmann machines on real digits: likelihood, completion, features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial
from protea.objectives.contrastive_divergence import PersistentChains
from protea.rng import Streams
from protea.space import Rows
from protea.training.batches import Batches
from protea.training.contrast import Contrast


def learn(x: torch.Tensor, hidden: int, epochs: int, rate: float, batch: int = 100) -> RBM:
    rows = Rows(x, None, torch.arange(len(x)))
    model = RBM(tuple(x.shape[1:]), Binomial(x[0].numel(), hidden), dtype=torch.uint8)
    model.initialise(rows)
    learner, batches = Contrast(model, PersistentChains(batch), rate=rate), Batches(rows, batch, 0)
    learner.horizon = batches.per_epoch * epochs
    for step in range(learner.horizon):
        learner.step(batches(step))
    assert learner.ema is not None
    learner.ema.exchange()
    return model


@pytest.mark.slow
def test_binarised_mnist(shared_data, evidence) -> None:
    x = torch.from_numpy((np.load(shared_data / "images" / "mnist10k.npz")["x"] > 127).astype(np.uint8))
    train, test = x[:9000], x[9000:]
    model = learn(train, 100, 8, 0.05)
    with torch.no_grad():
        log_z = model.log_partition(steps=1000)
        longer = model.log_partition(1, steps=8 * log_z.steps)  # paths start at an eighth, and double at least once
        nats = float(-model.energy(test).mean()) - log_z.value
        marginal = float(model.visible.own(model.flat(test), 0.0).mean())  # the base: independent pixels
        marginal -= float(torch.nn.functional.softplus(model.visible.base).sum())
    evidence(
        id="EB-02", system="rbm, 100 hidden, 8 epochs of digits", claim="AIS test log-likelihood over the marginals'",
        reference=f"independent pixels {marginal:.1f} nats", reached=nats - marginal, tolerance=60, unit="nats",
        at_least=True,
    )  # fmt: skip
    assert log_z.converged and log_z.lower - 3 < log_z.upper + 3 and longer.steps >= 2 * log_z.steps - 2
    apart = abs(longer.value - log_z.value) / math.hypot(log_z.error, longer.error)
    evidence(
        id="EB-06", system="rbm, 100 hidden, 8 epochs of digits", claim="log Z of a longer path and other seed, less",
        reference="this path's", reached=apart, tolerance=1.96, unit="standard errors",
    )  # fmt: skip
    seen = torch.zeros_like(test[:200], dtype=torch.bool)
    seen[:, :14] = True
    guess = model.given(test[:200], seen).mean(20) > 0.5
    mean = (train.double().mean(0) > 0.5).expand_as(guess)
    below = ~seen
    ours, theirs = (float((g != test[:200].bool())[below].double().mean()) for g in (guess, mean))
    evidence(
        id="EB-02", system="rbm, 100 hidden", claim="wrong pixels of completed lower halves, over the mean image's",
        reference=f"mean image {theirs:.4f}", reached=ours / theirs, tolerance=0.9, unit="ratio",
    )  # fmt: skip


@pytest.mark.slow
def test_features_help_a_linear_classifier(evidence) -> None:
    """EB-09: digits shifted by one pixel in five ways, as in scikit-learn's example."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, y = load_digits(return_X_y=True)
    pictures = torch.from_numpy(images.reshape(-1, 8, 8))
    shifts = [pictures, *(torch.roll(pictures, s, d) for s in (1, -1) for d in (1, 2))]
    x = (torch.cat(shifts) > 7).to(torch.uint8)
    y = np.tile(y, 5)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
    model = learn(x[train], 100, 30, 0.1, batch=50)
    with torch.no_grad():
        h = model.hidden(x).numpy()
    flat = x.flatten(1).numpy()
    scores = [LogisticRegression(max_iter=300).fit(f[train], y[train]).score(f[test], y[test]) for f in (h, flat)]
    evidence(
        id="EB-09", system="rbm features", claim="accuracy of logistic regression on hidden units, less that on pixels",
        reference=f"pixels {scores[1]:.3f}", reached=scores[0] - scores[1], tolerance=0.05, unit="share", at_least=True,
    )  # fmt: skip


@pytest.mark.slow
def test_pseudo_likelihood_is_that_of_scikit_learn(evidence) -> None:
    """The same weights, the same formula; the flipped pixel is drawn, so means over many draws are compared."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import BernoulliRBM

    x = (load_digits().images > 7).astype(np.float64).reshape(-1, 64)
    peer = BernoulliRBM(32, learning_rate=0.05, n_iter=5, random_state=0).fit(x)
    model = RBM((64,), Binomial(64, 32)).double()
    with torch.no_grad():
        model.visible.weight.copy_(torch.from_numpy(peer.components_.T))
        model.visible.bias.copy_(torch.from_numpy(peer.intercept_visible_))
        model.bias.copy_(torch.from_numpy(peer.intercept_hidden_))
        rows = torch.from_numpy(x)
        ours = [float(model.pseudo_log_likelihood(rows, Streams(s, len(x))).mean()) for s in range(20)]
    theirs = [float(peer.set_params(random_state=s).score_samples(x).mean()) for s in range(20)]
    spread = (np.var(ours) / 20 + np.var(theirs) / 20) ** 0.5
    evidence(
        id="EB-02", system="rbm", claim="mean pseudo-log-likelihood of 20 draws, in standard errors",
        reference="sklearn score_samples", reached=abs(np.mean(ours) - np.mean(theirs)) / spread, tolerance=4,
        unit="errors",
    )  # fmt: skip
