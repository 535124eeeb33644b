"""Samplers on problems with exact answers: Gaussian data, whose denoiser and probability-flow map are closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from protea.processes.denoiser import Denoiser
from protea.processes.path import GaussianPath, Rectified, VPCosine, VPLinear, expand
from protea.rng import Streams
from protea.samplers.ddim import ancestral, ddim
from protea.samplers.ode import euler, heun, log_likelihood_ode, time_grid, velocity
from protea.samplers.sde import drift_diffusion, euler_maruyama

PATHS: list[GaussianPath] = [VPLinear(), VPCosine(), Rectified()]
MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)


def gaussian(path: GaussianPath) -> Denoiser:
    """E[x_0 | x_t] of N(MEAN, COV) data, by Gaussian conditioning."""
    eigenvalues, basis = torch.linalg.eigh(COV)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha(t.double())[:, None], path.sigma(t.double())[:, None]
        gain = alpha * eigenvalues / (alpha**2 * eigenvalues + sigma**2)
        mean, basis_ = MEAN.to(x_t), basis.to(x_t)
        return mean + (gain.to(x_t) * ((x_t - alpha.to(x_t) * mean) @ basis_)) @ basis_.T

    return denoise


def exact_map(path: GaussianPath, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The probability-flow map from t to s: standardised coordinates in the eigenbasis are kept."""
    eigenvalues, basis = torch.linalg.eigh(COV)

    def scale(u: Tensor) -> Tensor:
        return (path.alpha(u) ** 2 * eigenvalues + path.sigma(u) ** 2).sqrt()

    z = ((x - path.alpha(t) * MEAN) @ basis) / scale(t)
    return path.alpha(s) * MEAN + (z * scale(s)) @ basis.T


def order(sampler, path: GaussianPath, start: float, stop: float) -> tuple[float, float]:
    """Slope of log error against log step, and the last error."""
    x = Streams(3, 64).normal(2, dtype=torch.float64)
    ends = torch.tensor([start, stop], dtype=torch.float64)
    true = exact_map(path, x, ends[0], ends[1])
    counts, errors = [20, 40, 80, 160], []
    for steps in counts:
        times = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
        errors.append(float((sampler(gaussian(path), path, x, times) - true).abs().max()))
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0]), errors[-1]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("name", "sampler", "claim"), [("Euler", euler, 1), ("DDIM", ddim, 1), ("Heun", heun, 2)])
def test_order_of_convergence(name: str, sampler, claim: int, path: GaussianPath, evidence) -> None:
    slope, _ = order(sampler, path, 0.95, 0.05)
    evidence(id="DI-14", system=name, claim=f"order {claim} on {type(path).__name__}: |slope - {claim}|",
             reference="exact probability-flow map of a Gaussian", reached=abs(slope - claim),
             tolerance=0.12)  # fmt: skip


def test_heun_to_the_very_end_is_of_order_two(evidence) -> None:
    """With the last step of first order (sigma = 0 there) and the first from alpha = 0."""
    slope, error = order(heun, Rectified(), 1.0, 0.0)
    assert error < 1e-4
    evidence(id="DI-27", system="Flow matching, Heun", claim="order from pure noise to data",
             reference="exact Gaussian to Gaussian map", reached=slope, tolerance=1.88, at_least=True)  # fmt: skip


def test_euler_on_the_straight_path_is_ddim() -> None:
    x, times = Streams(0, 8).normal(2, dtype=torch.float64), time_grid(7)
    a = euler(gaussian(Rectified()), Rectified(), x, times)
    torch.testing.assert_close(a, ddim(gaussian(Rectified()), Rectified(), x, times), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_the_forward_sde_has_the_moments_of_the_path(path: GaussianPath) -> None:
    """d/dt of mean factor and variance: alpha' = f alpha, (sigma^2)' = 2 f sigma^2 + g^2 (Sarkka & Solin 2019)."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    f, g2 = drift_diffusion(path, t)
    h = 1e-6
    torch.testing.assert_close((path.alpha(t + h) - path.alpha(t - h)) / (2 * h), f * path.alpha(t), rtol=1e-6, atol=0)
    slope = (path.sigma(t + h) ** 2 - path.sigma(t - h) ** 2) / (2 * h)
    torch.testing.assert_close(slope, 2 * f * path.sigma(t) ** 2 + g2, rtol=1e-6, atol=1e-8)


def stochastic(name: str, path: GaussianPath, n: int) -> Tensor:
    rng = Streams(5, n)
    if name == "sde":
        times = torch.linspace(0.999, 1e-3, 301, dtype=torch.float64)
        alpha, sigma = path.alpha(times[0]), path.sigma(times[0])
        x = alpha * (MEAN + Streams(7, n).normal(2, dtype=torch.float64) @ torch.linalg.cholesky(COV).T)
        return euler_maruyama(
            gaussian(path), path, x + sigma * Streams(8, n).normal(2, dtype=torch.float64), times, rng
        )
    x = Streams(7, n).normal(2, dtype=torch.float64)
    times = time_grid(300, 0.9999)
    if name == "ddim":
        return ddim(gaussian(path), path, x, times, rng, 1.0)
    return ancestral(gaussian(path), path, x, times, rng, 1.0 if name == "ancestral large" else 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", ["ancestral", "ancestral large", "ddim", "sde"])
def test_stochastic_samplers_draw_the_data(name: str, path: GaussianPath, evidence) -> None:
    n = 20_000
    x = stochastic(name, path, n)
    mean = float((x.mean(0) - MEAN).abs().max())
    cov = float((x.T.cov() - COV).abs().max())
    assert mean < 0.02
    evidence(id="DI-07" if name == "sde" else "DI-03", system=f"{name} sampler",
             claim=f"covariance, {type(path).__name__}", reference="Gaussian data, exact denoiser, 20,000 draws",
             reached=cov, tolerance=0.025, unit="max abs")  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_every_marginal_on_the_way_is_exact(path: GaussianPath, evidence) -> None:
    """DDPM with the exact denoiser: at each t the draws have the moments alpha m, alpha^2 C + sigma^2 I.

    The recursion of the moments under the sampler's affine steps is computed without noise: each step is applied
    to the mean and to the columns of a square root of the covariance.
    """
    steps, worst = 600, 0.0
    times = time_grid(steps, 0.9999)
    from protea.samplers.ddim import ancestral_step, posterior_variance

    denoise = gaussian(path)
    alpha, sigma = path.alpha(times[0]), path.sigma(times[0])
    eye = torch.eye(2, dtype=torch.float64)
    mean, cov = alpha * MEAN, alpha**2 * COV + sigma**2 * eye
    for i, (t, s) in enumerate(pairwise(times)):
        probes = torch.stack((mean, mean + eye[0], mean + eye[1]))
        t3, s3 = t.expand(3), s.expand(3)
        out = ancestral_step(path, probes, denoise(probes, t3), t3, s3, torch.zeros(3, 2, dtype=torch.float64))
        linear = (out[1:] - out[0]).T
        mean, cov = out[0], linear @ cov @ linear.T + posterior_variance(path, t, s)[0] * eye
        if i % 50 == 49 or s == 0:
            true = path.alpha(s) ** 2 * COV + path.sigma(s) ** 2 * eye
            worst = max(worst, float((mean - path.alpha(s) * MEAN).abs().max()), float((cov - true).abs().max()))
    evidence(id="DI-03", system="DDPM", claim=f"marginals at every t, {type(path).__name__}, 600 steps",
             reference="alpha m, alpha^2 C + sigma^2 I", reached=worst, tolerance=0.012)  # fmt: skip


def mixture_log_prob(x: Tensor) -> Tensor:
    return torch.logsumexp(torch.stack([-0.5 * ((x - c) ** 2).sum(1) / 0.04 for c in (-0.8, 0.8)]), 0) - math.log(
        2 * 2 * math.pi * 0.04
    )


def mixture(path: GaussianPath) -> Denoiser:
    """E[x_0 | x_t] of the half-half mixture of N(-0.8, 0.04 I) and N(0.8, 0.04 I) in 2-D."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = expand(path.alpha(t.double()), x), expand(path.sigma(t.double()), x)
        var = 0.04 * alpha**2 + sigma**2
        logits = torch.stack([-0.5 * ((x - alpha * c) ** 2).sum(1) / var[:, 0] for c in (-0.8, 0.8)], 1)
        w = torch.softmax(logits, 1)
        means = torch.stack([c + alpha * 0.04 / var * (x - alpha * c) for c in (-0.8, 0.8)], 1)
        return (w[..., None] * means).sum(1)

    return denoise


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_ode_likelihood_is_the_closed_form(path: GaussianPath, evidence) -> None:
    x = Streams(2, 50).normal(2, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(MEAN, COV)
    gap = (log_likelihood_ode(gaussian(path), path, x) - normal.log_prob(x)).abs().max()
    evidence(id="DI-07", system="Probability-flow ODE likelihood", claim=f"Gaussian, {type(path).__name__}",
             reference="closed form", reached=gap, tolerance=0.01, unit="nats")  # fmt: skip
    gap = (log_likelihood_ode(mixture(path), path, x, steps=128) - mixture_log_prob(x)).abs().max()
    evidence(id="DI-07", system="Probability-flow ODE likelihood", claim=f"mixture of two, {type(path).__name__}",
             reference="closed form", reached=gap, tolerance=0.01, unit="nats")  # fmt: skip


def test_ode_likelihood_agrees_with_torchdiffeq(evidence) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    path, denoise = Rectified(), mixture(Rectified())
    x = Streams(4, 20).normal(2, dtype=torch.float64)
    ends = path.time(torch.tensor([14.0, -14.0], dtype=torch.float64))

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        y = state[0].detach().requires_grad_()
        u = velocity(denoise, path, y, t.expand(len(y)))
        div = sum(torch.autograd.grad(u[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(2))
        return u.detach(), torch.as_tensor(div).detach()

    start = x * path.alpha(ends[0])
    end, change = torchdiffeq.odeint(field, (start, torch.zeros(20, dtype=torch.float64)), ends, rtol=1e-6, atol=1e-6)
    scale = (path.alpha(ends[1]) ** 2 + path.sigma(ends[1]) ** 2).sqrt()
    expected = (
        torch.distributions.Normal(0, scale).log_prob(end[-1]).sum(1) + change[-1] + 2 * path.alpha(ends[0]).log()
    )
    gap = (log_likelihood_ode(denoise, path, x, steps=128) - expected).abs().max()
    evidence(id="DI-07", system="Probability-flow ODE likelihood", claim="mixture of two, straight path",
             reference="torchdiffeq.odeint (dopri5, rtol 1e-6)", reached=gap, tolerance=1e-3, unit="nats")  # fmt: skip


def test_hutchinson_probes_are_unbiased() -> None:
    x = Streams(2, 1).normal(2, dtype=torch.float64).expand(4000, 2)
    path = VPCosine()
    exact = log_likelihood_ode(gaussian(path), path, x[:1], steps=24)
    probed = log_likelihood_ode(gaussian(path), path, x, steps=24, probes=Streams(1, 4000))
    assert float(probed.std()) > 0.1
    assert abs(float(probed.mean() - exact)) < 4 * float(probed.std()) / 4000**0.5
