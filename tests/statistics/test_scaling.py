"""Scaling laws: the constants that made the losses are found again, outliers do not matter, errors are clear."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from protea.errors import DataError
from protea.training.scaling import ScalingLaw, fit_scaling_law

# Hoffmann et al. 2022, equation 10: Chinchilla's own law.
CHINCHILLA = ScalingLaw(1.69, (406.4, 410.7), (0.34, 0.28), 0.0)
LADDER = np.array(list(itertools.product(10.0 ** np.linspace(7, 10, 6), 10.0 ** np.linspace(8.5, 11.5, 6))))


def test_chinchillas_constants_are_found(evidence) -> None:
    losses = [CHINCHILLA(n, d) for n, d in LADDER]
    law = fit_scaling_law(LADDER, losses)
    pairs = [(law.irreducible, 1.69), *zip(law.factors, (406.4, 410.7)), *zip(law.exponents, (0.34, 0.28))]
    evidence(id="TS-08", system="Scaling law", claim="constants of L(N, D), 36 exact losses", unit="relative",
             reference="Hoffmann et al. 2022, eq. 10", tolerance=0.02,
             reached=max(abs(got / want - 1) for got, want in pairs))  # fmt: skip


@pytest.mark.slow
def test_noise_and_outliers(evidence) -> None:
    g = np.random.default_rng(0)
    worst = []
    for _ in range(3):
        losses = np.array([CHINCHILLA(n, d) for n, d in LADDER]) * np.exp(0.002 * g.standard_normal(len(LADDER)))
        losses[g.integers(len(losses), size=2)] *= 1.3  # runs that went wrong
        law = fit_scaling_law(LADDER, losses)
        worst.append(abs(law(3e10, 6e11) / CHINCHILLA(3e10, 6e11) - 1))
    evidence(id="TS-08", system="Scaling law", claim="prediction beyond the ladder, noise 0.2 %, two runs 30 % off",
             unit="relative", reference="Hoffmann et al. 2022, eq. 10", tolerance=0.02, reached=max(worst))  # fmt: skip


def test_compute_law() -> None:
    c = 10.0 ** np.linspace(12, 18, 7)
    law = fit_scaling_law(c[:, None], 0.9 + 30 / c**0.12)
    assert law.irreducible == pytest.approx(0.9, rel=0.05) and law.exponents[0] == pytest.approx(0.12, rel=0.05)
    assert law.error < 1e-3


def test_best_sizes_are_the_minimum() -> None:
    compute = 1e21
    n, d = CHINCHILLA.best_sizes(compute)
    want = minimize_scalar(lambda u: CHINCHILLA(np.exp(u), compute / 6 / np.exp(u)), bounds=(10, 30), method="bounded")
    assert np.log(n) == pytest.approx(want.x, abs=1e-3) and 6 * n * d == pytest.approx(compute)


@pytest.mark.parametrize(
    ("x", "loss", "message"),
    [
        ([[1.0], [2.0]], [1.0, 0.9], "at least 3"),
        ([[1.0], [2.0], [3.0]], [1.0, 0.9, np.nan], "positive and finite"),
        ([[2.0], [2.0], [2.0]], [1.0, 0.9, 0.8], "same size"),
        ([[1.0], [2.0], [3.0]], [1.0, 0.9], "do not go with"),
    ],
)
def test_bad_input(x, loss, message) -> None:
    with pytest.raises(DataError, match=message):
        fit_scaling_law(x, loss)
