"""EM never lowers the likelihood, at any step: repeated rows, constant columns, fewer rows than components."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protea.distributions.covariance import floored
from protea.models.classical.gmm import GaussianMixture
from protea.models.classical.kmeans import kmeans
from protea.space import Rows

KINDS = ("full", "tied", "diag", "spherical")
TOLERANCE = 1e-10  # of the likelihood's size: rounding only
EPS = torch.finfo(torch.float64).eps


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor | None, int, int]:
    """Rows, labels (some unknown), classes, components."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, k = draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 7))
    x = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-2, 3, size=d) + 10 * rng.normal(size=d)
    if draw(st.booleans()):
        x = x[rng.integers(0, max(1, n // 4), size=n)]  # repeated rows
    if draw(st.booleans()):
        x[:, rng.integers(d)] = 3.0  # a constant column
    if draw(st.booleans()):
        x[:, 0] = rng.integers(0, 2, size=n)  # two values
    if draw(st.booleans()):
        x[0] += 1e4  # an outlier
    classes = draw(st.sampled_from([0, 0, 2, 3]))
    y = torch.from_numpy(rng.integers(-1, classes, size=n)) if classes else None
    return torch.from_numpy(x), y, classes, k


def steps(model: GaussianMixture, x: torch.Tensor, y: torch.Tensor | None, count: int = 12) -> None:
    # Rounding of second moments, of relative size eps, weighs as much as variance exceeds the floor.
    rounding = 4 * EPS * len(x) * (1 + float(x.var(0, correction=0).sum()) / model.reg_covar)
    previous = -math.inf
    for step in range(count):
        stats = model.expect(x, y)
        now = float(stats["log_prob"])
        assert math.isfinite(now)
        assert now >= previous - TOLERANCE * (abs(previous) + len(x)) - rounding, (step, now - previous)
        previous = now
        model.maximise(stats)
        sigma = model.kind.dense(model.scale, model.groups * model.k, model.dim)
        least = torch.linalg.eigvalsh(sigma)[:, 0]
        top = torch.linalg.eigvalsh(sigma)[:, -1]
        assert bool((least >= model.reg_covar * (1 - 1e-6) - 1e-12 * top).all())
        assert torch.allclose(model.log_weights.exp().sum(1), torch.ones(model.groups, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(problem=problems())
def test_likelihood_never_falls(kind: str, problem):
    x, y, classes, k = problem
    model = GaussianMixture((x.shape[1],), k, kind, classes, reg_covar=1e-4)
    model.initialise(Rows(x, y, torch.arange(len(x))))
    steps(model, x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unused_component_is_revived_without_loss(kind: str):
    x = torch.cat((torch.randn(60, 2), torch.randn(60, 2) + 6)).double()
    model = GaussianMixture((2,), 3, kind)
    model.initialise(Rows(x, None, torch.arange(120)))
    model.means[0, 2] = 1e6  # no row will use it
    stats = model.expect(x)
    assert float(stats["n"][2]) < 1e-10
    before = float(stats["log_prob"])
    model.maximise(stats)
    after = model.expect(x)
    assert float(after["log_prob"]) >= before
    assert float(after["n"][2]) > 1  # it is used again
    steps(model, x, None)


def test_converged_mixture_keeps_its_empty_component():
    """No gain, no split: at the optimum a split could only lose."""
    x = torch.randn(500, 1).double()
    model = GaussianMixture((1,), 2, "full")
    model.means[0] = torch.stack((x.mean(0), x.mean(0) + 1e6))
    model.scale[:] = x.std(correction=0)
    model.log_weights[0] = torch.tensor([0.0, -1e3])
    model.maximise(model.expect(x))
    assert float(model.expect(x)["n"][1]) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_of_the_data_changes_nothing_but_the_means(kind: str):
    """Second moments are taken about the data's mean: a far-away origin costs no accuracy."""
    x = torch.randn(300, 3).double() @ torch.tensor([[2.0, 0, 0], [1, 0.1, 0], [0, 3, 1]], dtype=torch.float64)
    near, far = GaussianMixture((3,), 2, kind), GaussianMixture((3,), 2, kind)
    ids = torch.arange(300)
    near.initialise(Rows(x, None, ids))
    far.initialise(Rows(x + 1e6, None, ids))
    for _ in range(5):
        near.maximise(near.expect(x))
        far.maximise(far.expect(x + 1e6))
    assert torch.allclose(near.log_prob(x), far.log_prob(x + 1e6), atol=1e-6)
    assert torch.allclose(far.means - near.means, torch.tensor(1e6, dtype=torch.float64), rtol=0, atol=1e-6)


def test_floor_is_the_constrained_maximiser():
    """Among covariances above the floor, none is likelier than the one with clipped eigenvalues."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 2))
    scatter = torch.from_numpy(a @ a.T)  # rank two: the maximum lies on the boundary
    floor = 0.3

    def score(sigma: torch.Tensor) -> float:
        return float(-torch.logdet(sigma) - torch.linalg.solve(sigma, scatter).trace())

    factor = floored(scatter[None], floor)[0]
    best = score(factor @ factor.T)
    for _ in range(300):
        q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
        mix = torch.from_numpy(q) * torch.from_numpy(floor + rng.exponential(size=4) * rng.integers(0, 2, size=4))
        near = factor @ factor.T + 0.1 * torch.from_numpy((b := rng.normal(size=(4, 4))) @ b.T)
        assert score(mix @ torch.from_numpy(q).T) <= best + 1e-9
        assert score(near) <= best + 1e-9


def test_kmeans_spreads_centres_and_survives_few_rows():
    x = torch.cat(
        [torch.randn(50, 2) * 0.1 + 10 * torch.tensor(c) for c in ([0.0, 0], [1, 0], [0, 1], [1, 1])]
    ).double()
    centres, label = kmeans(x, torch.arange(200), 4, seed=3)
    assert sorted(torch.bincount(label).tolist()) == [50] * 4
    assert torch.equal(kmeans(x, torch.arange(200), 4, seed=3)[0], centres)
    few, label = kmeans(x[:2], torch.arange(2), 5, seed=0)
    assert few.shape == (5, 2) and few.isfinite().all() and len(label) == 2
