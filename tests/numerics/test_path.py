"""Gaussian paths and parameterisations: against autograd, closed forms and simulation of the forward process."""

from __future__ import annotations

import math

import pytest
import torch

from protea.errors import ConfigError
from protea.processes.ddpm import Tabulated, alphas_cumprod, betas, zero_terminal_snr
from protea.processes.parameterisation import (
    PARAMETERISATIONS,
    from_denoised,
    target,
    to_denoised,
    to_noise,
)
from protea.processes.path import GaussianPath, Rectified, VPCosine, VPLinear

CONTINUOUS: list[GaussianPath] = [VPLinear(), VPCosine(), Rectified()]
ALL = [*CONTINUOUS, Tabulated(alphas_cumprod(betas()))]
T = torch.linspace(0.0003, 0.9993, 57, dtype=torch.float64)  # between the knots of the table


@pytest.mark.parametrize("path", ALL, ids=lambda p: type(p).__name__)
def test_derivatives_match_autograd(path: GaussianPath) -> None:
    for value, rate in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot), (path.log_snr, path.log_snr_dot)):
        t = T.clone().requires_grad_()
        (expected,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(rate(T), expected, rtol=1e-9, atol=1e-9)
    assert bool((path.log_snr(T).diff() < 0).all())


@pytest.mark.parametrize("path", ALL, ids=lambda p: type(p).__name__)
def test_time_inverts_log_snr(path: GaussianPath) -> None:
    torch.testing.assert_close(path.time(path.log_snr(T)), T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", CONTINUOUS, ids=lambda p: type(p).__name__)
def test_time_reaches_the_ends_of_the_bound(path: GaussianPath) -> None:
    lam = torch.linspace(-10, 14, 49, dtype=torch.float64)
    torch.testing.assert_close(path.log_snr(path.time(lam)), lam, rtol=1e-7, atol=1e-7)


def test_closed_forms() -> None:
    t = T
    bar = (((t + 0.008) / 1.008 * math.pi / 2).cos() / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    torch.testing.assert_close(VPCosine().alpha(t) ** 2, bar)
    torch.testing.assert_close(VPCosine().sigma(t) ** 2, 1 - bar)
    torch.testing.assert_close(VPLinear().alpha(t) ** 2, (-0.1 * t - 9.95 * t**2).exp())
    torch.testing.assert_close(VPLinear().sigma(t) ** 2, 1 - (-0.1 * t - 9.95 * t**2).exp())
    ends = torch.tensor([0.0, 1.0])
    assert VPCosine().alpha(ends).tolist() == [1.0, 0.0] == Rectified().alpha(ends).tolist()
    assert VPCosine().sigma(ends).tolist() == [0.0, 1.0] == Rectified().sigma(ends).tolist()


def test_float32_keeps_the_small_ends() -> None:
    t = torch.tensor([1e-6, 1e-4, 1 - 1e-4])
    for path in CONTINUOUS:
        torch.testing.assert_close(path.sigma(t).double(), path.sigma(t.double()), rtol=1e-6, atol=0)
        torch.testing.assert_close(path.alpha(t).double(), path.alpha(t.double()), rtol=1e-6, atol=0)


def test_sde_limit_of_ddpm(evidence) -> None:
    """1000 steps of beta(i/T)/T approach the VP-SDE: alpha-bar differs by O(1/T)."""
    errors = []
    for steps in (500, 1000, 2000, 4000):
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        bar = (1 - (0.1 + 19.9 * (t - 0.5 / steps)) / steps).cumprod(0)
        errors.append(float((bar - VPLinear().alpha(t) ** 2).abs().max()))
    slope = math.log(errors[0] / errors[-1]) / math.log(8)
    assert abs(slope - 1) < 0.05
    evidence(id="DI-07", system="VP-SDE", claim="DDPM schedule tends to the VP-SDE's, max |alpha-bar| at T=4000",
             reference="(1 - beta(i/T)/T) cumulated", reached=errors[-1], tolerance=2e-3)  # fmt: skip


def test_forward_chain_has_the_closed_moments(evidence) -> None:
    """q(x_T | x_0) composed of T single steps equals its closed form, mean and variance."""
    beta = betas("linear", 1000)
    mean, var = torch.tensor(1.7, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    worst, bar = 0.0, alphas_cumprod(beta)
    for i, b in enumerate(beta):
        mean, var = (1 - b).sqrt() * mean, (1 - b) * var + b
        worst = max(worst, float((mean - 1.7 * bar[i].sqrt()).abs()), float((var - (1 - bar[i])).abs()))
    assert float(bar[-1]) < 1e-4  # x_T is noise
    evidence(id="DI-01", system="DDPM forward process", claim="moments of the T-fold chain",
             reference="composition of Gaussians", reached=worst, tolerance=1e-12)  # fmt: skip


def test_zero_terminal_snr() -> None:
    bar = zero_terminal_snr(alphas_cumprod(betas("scaled_linear", 1000, 0.00085, 0.012)))
    path = Tabulated(bar)
    one = torch.ones(1)
    assert float(bar[-1]) == 0 and path.alpha(one).item() == 0 and path.sigma(one).item() == 1


@pytest.mark.parametrize("path", CONTINUOUS, ids=lambda p: type(p).__name__)
def test_conversions_round_trip(path: GaussianPath, evidence) -> None:
    g = torch.Generator().manual_seed(1)
    x_0, eps = (torch.randn(64, 3, 2, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.01, 0.98, 64, dtype=torch.float64)
    x_t = path.mix(x_0, eps, t)
    worst = 0.0
    for kind in PARAMETERISATIONS:
        y = target(path, kind, x_0, eps, t)
        for found, true in (
            (to_denoised(path, kind, y, x_t, t), x_0),
            (to_noise(path, kind, y, x_t, t), eps),
            (from_denoised(path, kind, x_0, x_t, t), y),
        ):
            worst = max(worst, float(((found - true).abs() / (1 + true.abs())).max()))
    evidence(id="DI-29", system="Parameterisations", claim=f"x0, eps, v, velocity, score agree on {path}",
             reference="the definitions of the targets", reached=worst, tolerance=1e-10)  # fmt: skip


def test_velocity_is_the_derivative_of_the_path() -> None:
    t = torch.full((1,), 0.3, dtype=torch.float64)
    x_0, eps = torch.full((1, 1), 0.7, dtype=torch.float64), torch.full((1, 1), -1.1, dtype=torch.float64)
    for path in CONTINUOUS:
        h = 1e-5
        slope = (path.mix(x_0, eps, t + h) - path.mix(x_0, eps, t - h)) / (2 * h)
        torch.testing.assert_close(target(path, "velocity", x_0, eps, t), slope, rtol=1e-7, atol=1e-7)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="epsilon"):
        target(Rectified(), "epsilon", torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1))
    with pytest.raises(ConfigError, match="quadratic"):
        betas("quadratic")
    with pytest.raises(ConfigError, match="decrease"):
        Tabulated(torch.tensor([0.5, 0.7]))
