r"""DDIM and ancestral sampling: from x_t to x_s, s < t, through the posterior of a Gaussian path.

Given a denoised estimate x_0 and eps = (x_t - alpha_t x_0) / sigma_t,

    ddim       x_s = alpha_s x_0 + sqrt(sigma_s^2 - eta^2 var) eps + eta sqrt(var) z      (Song et al. 2021, DDIM)
    ancestral  x_s ~ q(x_s | x_t, x_0), the posterior of the forward process              (Ho et al. 2020, DDPM)

with alpha_ts = alpha_t/alpha_s, beta_ts = sigma_t^2 - alpha_ts^2 sigma_s^2 and var = beta_ts sigma_s^2/sigma_t^2.
eta = 0 is the probability-flow ODE by first-order steps, exact when x_0 and eps do not change; eta = 1 is ancestral.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from protea.processes.denoiser import Denoiser
from protea.processes.path import GaussianPath, expand
from protea.rng import Streams


def posterior_variance(path: GaussianPath, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(var, beta_ts): the variances of q(x_s | x_t, x_0) and of q(x_t | x_s), for s < t."""
    alpha_ts = path.alpha(t.double()) / path.alpha(s.double())
    sigma2_t, sigma2_s = path.sigma(t.double()) ** 2, path.sigma(s.double()) ** 2
    beta = (sigma2_t - alpha_ts**2 * sigma2_s).clamp(min=0)
    return beta * sigma2_s / sigma2_t, beta


def ddim_step(
    path: GaussianPath, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor, eta: float = 0.0, z: Tensor | None = None
) -> Tensor:
    """x_s from x_t and the estimate x_0, all (B, *event); t, s (B,) with s < t; z standard normal if eta > 0."""
    eps = (x_t - expand(path.alpha(t), x_t) * x_0) / expand(path.sigma(t), x_t)
    var = eta**2 * posterior_variance(path, t, s)[0]
    kept = (path.sigma(s.double()) ** 2 - var).clamp(min=0).sqrt()
    x_s = expand(path.alpha(s), x_t) * x_0 + expand(kept, x_t) * eps
    return x_s if z is None else x_s + expand(var.sqrt(), x_t) * z


def ancestral_step(
    path: GaussianPath,
    x_t: Tensor,
    x_0: Tensor,
    t: Tensor,
    s: Tensor,
    z: Tensor,
    variance: float | Tensor = 0.0,
) -> Tensor:
    """x_s from the posterior mean and a variance between its smallest and largest sensible values.

    Args:
        path: the Gaussian path.
        x_t, x_0, z: the point, its denoised estimate and standard normal noise, (B, *event).
        t, s: times (B,), s < t. No noise is added at s = 0.
        variance: 0 for var (right for a single data point), 1 for beta_ts (right for Gaussian data), or
            the share in between on a log scale, as a network may learn it (Nichol & Dhariwal 2021).
    """
    var, beta = posterior_variance(path, t, s)
    sigma2_t, sigma2_s = path.sigma(t.double()) ** 2, path.sigma(s.double()) ** 2
    alpha_s = path.alpha(s.double())
    alpha_ts = path.alpha(t.double()) / alpha_s
    mean = expand(alpha_ts * sigma2_s / sigma2_t, x_t) * x_t + expand(alpha_s * beta / sigma2_t, x_t) * x_0
    log_var, log_beta = var.clamp(min=1e-40).log(), beta.clamp(min=1e-40).log()
    share = torch.as_tensor(variance, dtype=x_t.dtype, device=x_t.device)
    deviation = (0.5 * (share * expand(log_beta, x_t) + (1 - share) * expand(log_var, x_t))).exp()
    return mean + torch.where(expand(sigma2_s, x_t) > 0, deviation, 0.0) * z


def ddim(
    denoise: Denoiser, path: GaussianPath, x: Tensor, times: Tensor, rng: Streams | None = None, eta: float = 0.0
) -> Tensor:
    """Run x (B, *event) from times[0] to times[-1] by DDIM; eta > 0 needs `rng` for its noise."""
    for t, s in pairwise(times):
        t, s = t.expand(len(x)), s.expand(len(x))
        z = rng.normal(*x.shape[1:]) if eta > 0 and rng is not None else None
        x = ddim_step(path, x, denoise(x, t), t, s, eta, z)
    return x


def ancestral(
    denoise: Denoiser, path: GaussianPath, x: Tensor, times: Tensor, rng: Streams, variance: float = 0.0
) -> Tensor:
    """Run x (B, *event) from times[0] to times[-1] by DDPM's ancestral sampling (see `ancestral_step`)."""
    for t, s in pairwise(times):
        t, s = t.expand(len(x)), s.expand(len(x))
        x = ancestral_step(path, x, denoise(x, t), t, s, rng.normal(*x.shape[1:]), variance)
    return x
