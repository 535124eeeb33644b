"""EM never lowers likelihood times prior for mixed columns and naive Bayes: missing values, repeated rows, constant
columns, more members than rows, unknown labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protea.distributions.bernoulli import Bernoulli
from protea.distributions.discretised import Discretised
from protea.distributions.family import Family
from protea.distributions.gaussian import Gaussian
from protea.distributions.histogram import Histogram
from protea.distributions.multinomial import Multinomial
from protea.distributions.optional import Optional
from protea.distributions.product import Product
from protea.models.classical.mixture import Mixture
from protea.models.classical.naive_bayes import NaiveBayes
from protea.space import Field, Rows

GRID = [Field("n", "grid"), Field("level", "grid", levels=5, low=0.0, high=4.0), Field("cents", "grid", step=0.5)]
CODES = [Field("city", "category", levels=3, missing=True), Field("x", "real", missing=True), Field("n", "grid")]


def product(m: int) -> Product:
    return Product([
        ([3], Histogram(m, CODES[:1], strength=2.0)), ([0, 2], Optional(Discretised(m, [GRID[0], GRID[2]]))),
        ([1], Optional(Gaussian(m, (1,), "diag", 1e-4))), ([4], Bernoulli(m, (1,))),
    ])  # fmt: skip


# What makes the family, and which columns it is given: whole numbers, levels 0-4, halves, codes, bits, reals, counts.
FAMILIES: dict[str, tuple[Callable[[int], Family], str]] = {
    "rounded": (lambda m: Discretised(m, GRID), "wlh"),
    "optional-rounded": (lambda m: Optional(Discretised(m, GRID)), "wlh"),
    "multinomial": (lambda m: Multinomial(m, (3,), 0.5), "nnn"),
    "multinomial-ml": (lambda m: Multinomial(m, (2,), 0.0), "nn"),
    "bernoulli-ml": (lambda m: Bernoulli(m, (3,), 0.0), "bbb"),
    "histogram": (lambda m: Histogram(m, CODES, bins=4, smoothing=0.1), "crw"),
    "histogram-strength": (lambda m: Histogram(m, CODES, bins=4, strength=3.0), "crw"),
    "optional-gaussian": (lambda m: Optional(Gaussian(m, (2,), "full", 1e-4)), "rr"),
    "product": (product, "wrhcb"),
}
NEVER_MISSING = {"histogram": [2], "histogram-strength": [2], "product": [4]}


def column(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """n values about one of two places, so that there is something to find."""
    side = rng.integers(0, 2, n)
    return {
        "w": lambda: np.round(rng.normal(size=n) * 10.0 ** rng.integers(-1, 3) + 20 * side),
        "l": lambda: rng.binomial(4, 0.2 + 0.6 * side).astype(float),
        "h": lambda: np.round(2 * rng.normal(size=n) + 3 * side) / 2,
        "c": lambda: rng.integers(0, 2 + side).astype(float),
        "b": lambda: rng.binomial(1, 0.1 + 0.8 * side).astype(float),
        "r": lambda: rng.normal(size=n) + 5 * side,
        "n": lambda: rng.poisson(1 + 4 * side).astype(float),
    }[kind]()


@st.composite
def problems(draw: st.DrawFn, name: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Rows, labels (some unknown), members."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    x = np.stack([column(kind, rng, n) for kind in FAMILIES[name][1]], 1)
    if draw(st.booleans()):
        x = x[rng.integers(0, max(1, n // 4), size=n)]  # repeated rows
    if draw(st.booleans()):
        x[:, rng.integers(x.shape[1])] = 1.0  # a constant column
    gone = np.zeros(x.shape, dtype=bool)
    if draw(st.booleans()):
        gone |= rng.random(x.shape) < rng.choice([0.1, 0.6])
    if draw(st.booleans()):
        gone[rng.random(n) < 0.2] = True  # rows of which nothing is known
    if draw(st.booleans()):
        gone[:, 0] = True  # a column without values
    gone[:, NEVER_MISSING.get(name, [])] = False
    x[gone] = np.nan
    return torch.from_numpy(x), torch.from_numpy(rng.integers(-1, 2, size=n)), k


def never_falls(model: Mixture, x: torch.Tensor, y: torch.Tensor | None, count: int = 12) -> None:
    previous = -math.inf
    for step in range(count):
        stats = model.expect(x, y)
        now = float(stats["log_prob"] + model.log_prior())
        assert math.isfinite(now)
        assert now >= previous - 1e-8 * (abs(previous) + len(x)), (step, now - previous)
        assert float(stats["log_prob"]) == pytest.approx(float(model.log_prob(x, y).sum()), rel=1e-9, abs=1e-7)
        previous = now
        model.maximise(stats)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_mixtures(name: str, data: st.DataObject):
    x, _, k = data.draw(problems(name))
    model = Mixture(FAMILIES[name][0](k), k)
    model.initialise(Rows(x, None, torch.arange(len(x))))
    never_falls(model, x, None)


@pytest.mark.parametrize("name", ["rounded", "multinomial", "histogram", "product"])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_naive_bayes_with_unknown_labels(name: str, data: st.DataObject):
    """Labels beside the rows, and in a column whose missing labels are a value or unknown."""
    x, y, _ = data.draw(problems(name))
    beside = NaiveBayes(FAMILIES[name][0](2), 2)
    beside.initialise(Rows(x, y, torch.arange(len(x))))
    never_falls(beside, x, y, 6)
    column = torch.where(y < 0, math.nan, y.double())[:, None]
    row = torch.cat((column, x), 1)
    for missing in (True, False):
        inside = NaiveBayes(FAMILIES[name][0](2), 2, 0, missing=missing, weight_prior=2.0)
        inside.initialise(Rows(row, None, torch.arange(len(x))))
        never_falls(inside, row, None, 6)
