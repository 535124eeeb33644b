"""The Gaussian mixture on toys of known density: it nears the entropy, finds every mode, and draws what it scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from protea.data.toys import TOYS
from protea.models.classical.gmm import ENTRY, GaussianMixture, GMMConfig
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Vector
from protea.training.budget import Budget
from protea.training.fit import fit

SPACE = Vector(("x", "y"))


def rows(name: str, n: int, seed: int = 0) -> Rows:
    x = TOYS[name].sample(Streams(seed, n))
    return Rows(x, None, torch.arange(n))


@pytest.fixture(scope="module")
def eight():
    train = rows("eight-gaussians", 4000)
    config = ENTRY.suggest(SPACE, train, 60.0)
    model = ENTRY.build(SPACE, config)
    model.initialise(train)
    fit(model, train, None, budget=Budget(epochs=60), judge=None, progress=None)
    return config, model


def test_eight_gaussians_are_found(eight, evidence):
    """Held-out log-likelihood against the true density's on the same points, and k by BIC."""
    config, model = eight
    assert config.k == 8
    test = rows("eight-gaussians", 4000, seed=1).x
    gap = float((TOYS["eight-gaussians"].log_prob(test) - model.log_prob(test)).mean())
    evidence(
        id="TR-07", system="Gaussian mixture", claim="eight Gaussians: nats above the entropy, held out, k by BIC",
        reference="the toy's own density", reached=gap, tolerance=0.02, unit="nats",
    )  # fmt: skip


def test_draws_follow_the_true_density(eight, evidence):
    """Kolmogorov-Smirnov on each axis and on a diagonal, between the model's draws and the toy's."""
    _, model = eight
    drawn, true = model.sample(2000, rng=3).numpy(), rows("eight-gaussians", 4000, seed=2).x.numpy()
    p = [stats.ks_2samp(drawn @ w, true @ w).pvalue for w in np.array([[1.0, 0], [0, 1], [1, 1], [1, -2]])]
    evidence(
        id="TR-13", system="Gaussian mixture", claim="draws against draws of the toy, four projections",
        reference="scipy.stats.ks_2samp", reached=min(p), tolerance=1e-3, unit="p-value", at_least=True,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_draws_have_the_mixture_moments(kind: str):
    """Mean and covariance of draws against the closed form, E[Sigma] + Cov[mu]."""
    model = GaussianMixture((3,), 2, kind, classes=2)
    data = Rows(Streams(0, 200).normal(3, dtype=torch.float64).exp(), torch.arange(200) % 2, torch.arange(200))
    model.initialise(data)
    w = (model.log_weights.exp() * model.class_prior[:, None]).reshape(-1)
    mu, sigma = model.means.reshape(-1, 3), model.kind.dense(model.scale, 4, 3)
    mean = w @ mu
    cov = torch.einsum("k,kij->ij", w, sigma) + (mu * w[:, None]).T @ mu - mean[:, None] * mean
    drawn = model.sample(20_000, rng=1)
    error = cov.diagonal().sqrt() / math.sqrt(20_000)
    assert bool(((drawn.mean(0) - mean).abs() < 5 * error).all())
    assert torch.allclose(torch.cov(drawn.T), cov, atol=0.12 * float(cov.diagonal().max()))


@pytest.mark.parametrize("name", sorted(TOYS))
def test_no_toy_is_scored_above_its_entropy(name: str):
    """By Gibbs' inequality no density beats the true one, and a mixture comes near it."""
    train, test = rows(name, 2000), rows(name, 4000, seed=1).x
    model = ENTRY.build(SPACE, GMMConfig(k=16))
    model.initialise(train)
    fit(model, train, None, budget=Budget(epochs=20), judge=None, progress=None)
    gap = TOYS[name].log_prob(test) - model.log_prob(test)
    low = float(gap.mean()) - 4 * float(gap.std()) / math.sqrt(len(gap))
    one = ENTRY.build(SPACE, GMMConfig(k=1))
    one.initialise(train)
    assert float(gap.mean()) > -1e-3 and low < 1
    assert float((model.log_prob(test) - one.log_prob(test)).mean()) > 0.1


def test_semi_supervised_rows_help():
    """Six labels and many rows without: EM through the marginal finds what six rows cannot."""
    y = torch.arange(600) % 2
    x = Streams(0, 600).normal(2, dtype=torch.float64) * torch.tensor([1.0, 3.0]) + 4.0 * y[:, None] * torch.tensor(
        [1.0, 0.0]
    )
    test_x = Streams(1, 600).normal(2, dtype=torch.float64) * torch.tensor([1.0, 3.0]) + 4.0 * y[
        :, None
    ] * torch.tensor([1.0, 0.0])
    known = torch.where(torch.arange(600) < 6, y, -1)

    def accuracy(x: torch.Tensor, y_: torch.Tensor) -> float:
        model = GaussianMixture((2,), 1, "full", classes=2, reg_covar=1e-3)
        model.initialise(Rows(x, y_, torch.arange(len(x))))
        for _ in range(40):
            model.maximise(model.expect(x, y_))
        return float((model.responsibilities(test_x).sum(2).argmax(1) == y).double().mean())

    assert accuracy(x, known) > 0.95
    assert accuracy(x, known) >= accuracy(x[:6], y[:6])
