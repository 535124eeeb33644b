"""EM never lowers likelihood times prior, at any step: any family, unknown entries, few labels, degenerate data."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protea.distributions.bernoulli import Bernoulli
from protea.distributions.categorical import Categorical
from protea.distributions.family import Family
from protea.distributions.gaussian import Gaussian
from protea.distributions.poisson import Poisson
from protea.distributions.priors import NormalInverseWishart
from protea.distributions.product import Product
from protea.distributions.student_t import StudentT
from protea.models.classical.mixture import Mixture
from protea.space import Rows

EPS = torch.finfo(torch.float64).eps
FLOOR = 1e-4
KINDS = ("full", "tied", "diag", "spherical")
Make = Callable[[int, int], Family]

REAL: dict[str, Make] = {}
for _kind in KINDS:
    REAL[f"gaussian-{_kind}"] = lambda m, d, kind=_kind: Gaussian(m, (d,), kind, FLOOR)
    REAL[f"gaussian-{_kind}-map"] = lambda m, d, kind=_kind: Gaussian(m, (d,), kind, FLOOR, NormalInverseWishart(d))
    REAL[f"student-{_kind}"] = lambda m, d, kind=_kind: StudentT(m, (d,), kind, FLOOR)
REAL["student-map"] = lambda m, d: StudentT(m, (d,), "full", FLOOR, prior=NormalInverseWishart(d))
REAL["student-fixed"] = lambda m, d: StudentT(m, (d,), "full", FLOOR, dof=2.0)
CODES: dict[str, Make] = {
    "categorical": lambda m, d: Categorical(m, 3, (d,)),
    "bernoulli": lambda m, d: Bernoulli(m, (d,)),
    "poisson": lambda m, d: Poisson(m, (d,), shape=1.5, rate=0.1),
    "mixed": lambda m, d: Product(
        [([0], Categorical(m, 3, (1,), 0.5)), (range(1, d + 1), Gaussian(m, (d,), "full", FLOOR))]
    ),
}


@st.composite
def problems(draw: st.DrawFn, codes: str = "") -> tuple[torch.Tensor, torch.Tensor | None, int, int, int, float]:
    """Rows, labels (some unknown), classes, members a class, columns a family is made for, weights' prior."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, k = draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    x = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-2, 3, size=d) + 10 * rng.normal(size=d)
    if codes:
        x = np.floor(rng.random((n, d)) * (2 if codes == "bernoulli" else 3))
    if codes == "mixed":
        x = np.concatenate((x[:, :1], rng.normal(size=(n, d)) * (1 + x[:, :1])), 1)
    if draw(st.booleans()):
        x = x[rng.integers(0, max(1, n // 4), size=n)]  # repeated rows
    if draw(st.booleans()):
        x[:, rng.integers(d)] = 1.0  # a constant column
    if draw(st.booleans()):
        x[:, 0] = rng.integers(0, 2, size=n)  # two values
    if draw(st.booleans()):
        x[rng.random(x.shape) < rng.choice([0.1, 0.6])] = np.nan  # unknown entries
    if draw(st.booleans()):
        x[rng.random(n) < 0.2] = np.nan  # rows of which nothing is known
    if draw(st.booleans()):
        x[:, -1] = np.nan  # a column of which nothing is known
    classes = draw(st.sampled_from([0, 0, 2]))
    y = torch.from_numpy(rng.integers(-1, classes, size=n)) if classes else None
    return torch.from_numpy(x), y, classes, k, d, draw(st.sampled_from([1.0, 1.0, 2.0]))


def never_falls(make: Make, problem: tuple, count: int = 10) -> None:
    x, y, classes, k, d, alpha = problem
    model = Mixture(make(max(classes, 1) * k, d), k, classes, alpha)
    model.initialise(Rows(x, y, torch.arange(len(x))))
    spread = float(torch.nan_to_num(x).var(0, correction=0).sum())
    rounding = 8 * EPS * len(x) * (1 + spread / FLOOR)  # of second moments, as far as variance exceeds the floor
    previous = -math.inf
    for step in range(count):
        stats = model.expect(x, y)
        now = float(stats["log_prob"] + model.log_prior())
        assert math.isfinite(now)
        assert now >= previous - 1e-10 * (abs(previous) + len(x)) - rounding, (step, now - previous)
        assert float(stats["log_prob"]) == pytest.approx(float(model.log_prob(x, y).sum()), rel=1e-9, abs=1e-7)
        previous = now
        model.maximise(stats)


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(problem=problems())
def test_real_families(name: str, problem):
    never_falls(REAL[name], problem)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(problem=problems("categorical"))
def test_categorical(problem):
    never_falls(CODES["categorical"], problem)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(problem=problems("bernoulli"))
def test_bernoulli(problem):
    never_falls(CODES["bernoulli"], problem)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(problem=problems("poisson"))
def test_poisson(problem):
    never_falls(CODES["poisson"], problem)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(problem=problems("mixed"))
def test_mixed_columns(problem):
    never_falls(CODES["mixed"], problem)
