"""Averages of weights equal the weighted sums that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protea.training.ema import Ema, constant, power


def path(n: int = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3)).cumsum(0)


def averaged(weight, thetas: np.ndarray) -> np.ndarray:
    p = torch.zeros(3, dtype=torch.float64)
    ema = Ema({"p": p}, weight)
    for theta in thetas:
        p.copy_(torch.as_tensor(theta))
        ema.update()
    return ema.average["p"].numpy()


def test_constant_is_the_bias_corrected_sum() -> None:
    thetas, d = path(), 0.9
    w = d ** np.arange(len(thetas))[::-1]
    assert np.abs(averaged(constant(d), thetas) - (w[:, None] * thetas).sum(0) / w.sum()).max() < 1e-12


def test_power_is_the_power_function_average(evidence) -> None:
    # Karras et al. 2024, eq. 128: theta_bar(t) is the integral of theta(tau) tau^gamma over [0, t], normalised. The
    # recursion weighs theta_k by its own weight times the decays of all later updates.
    thetas, gamma = path(), 3.0
    t = np.arange(1, len(thetas) + 1)
    beta = (1 - 1 / t) ** (gamma + 1)
    w = (1 - beta) * np.append(np.cumprod(beta[:0:-1])[::-1], 1.0)
    assert np.allclose(w, (t ** (gamma + 1) - (t - 1) ** (gamma + 1)) / t[-1] ** (gamma + 1))  # exactly tau^gamma
    error = np.abs(averaged(power(gamma), thetas) - w @ thetas).max()
    evidence(id="TS-02", system="Weight averaging", claim="power-function EMA", reference="closed-form weights",
             reached=error, tolerance=1e-12, unit="max abs")  # fmt: skip


def test_capped_power_becomes_exponential() -> None:
    weight = power(16.0, decay=0.999)
    assert weight(1) == 1.0
    assert weight(10**6) == pytest.approx(1e-3)


def test_exchange_twice_is_nothing() -> None:
    p = torch.randn(5)
    ema = Ema({"p": p}, constant(0.5))
    ema.update()
    held = p.clone()
    p.add_(1.0)
    ema.exchange()
    assert torch.equal(p, held) and torch.equal(ema.average["p"], held + 1.0)
    ema.exchange()
    assert torch.equal(p, held + 1.0) and torch.equal(ema.average["p"], held)
