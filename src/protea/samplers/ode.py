r"""The probability-flow ODE, whose solutions carry p_1 = noise to p_0 = data and whose divergence gives log p.

With the denoised D(x, t) = E[x_0 | x_t = x] and e(x, t) = (x - alpha_t D) / sigma_t = E[eps | x_t = x],

    dx/dt = alpha'_t D + sigma'_t e                  (Song et al. 2021; the marginal velocity of Lipman et al. 2023).

Since the rates of alpha and sigma are known, a step is best taken with respect to alpha and sigma themselves:
dx = D d alpha + e d sigma. Euler's step of that form is DDIM; its trapezium is `heun`, of second order
(Karras et al. 2022, "Elucidating the design space", where it is written in x/alpha and sigma/alpha).

In the angle phi = arctan(sigma/alpha) and z = x / sqrt(alpha^2 + sigma^2) every path becomes the same one,
dz/dphi = cos(phi) e - sin(phi) D =: v, on phi in (0, pi/2): that is the form `log_likelihood_ode` integrates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from protea.processes.denoiser import Denoiser
from protea.processes.path import GaussianPath, expand
from protea.rng import Streams


def time_grid(steps: int, start: float = 1.0) -> Tensor:
    """Times from `start` down to 0, (steps + 1,), float64.

    >>> time_grid(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return torch.linspace(start, 0.0, steps + 1, dtype=torch.float64)


def velocity(denoise: Denoiser, path: GaussianPath, x: Tensor, t: Tensor) -> Tensor:
    """dx/dt of the probability-flow ODE at x (B, *event) and t (B,), t > 0."""
    x_0 = denoise(x, t)
    eps = (x - expand(path.alpha(t), x) * x_0) / expand(path.sigma(t), x)
    return expand(path.alpha_dot(t), x) * x_0 + expand(path.sigma_dot(t), x) * eps


def euler(denoise: Denoiser, path: GaussianPath, x: Tensor, times: Tensor, rng: Streams | None = None) -> Tensor:
    """Euler's method in t, of order 1, from times[0] to times[-1]; x (B, *event). Draws nothing."""
    for t, s in pairwise(times):
        x = x + (s - t).to(x.dtype) * velocity(denoise, path, x, t.expand(len(x)))
    return x


def heun(denoise: Denoiser, path: GaussianPath, x: Tensor, times: Tensor, rng: Streams | None = None) -> Tensor:
    """The trapezium in alpha and sigma, of order 2; two evaluations a step, one for a last step to t = 0.

    Args:
        denoise: (x_t, t) to E[x_0 | x_t].
        path: the Gaussian path.
        x: points at times[0], (B, *event).
        times: decreasing, (steps + 1,).
        rng: ignored; samplers share one signature.
    """

    def parts(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.expand(len(x))
        x_0 = denoise(x, t)
        return x_0, (x - expand(path.alpha(t), x) * x_0) / expand(path.sigma(t), x)

    for t, s in pairwise(times):
        d_alpha, d_sigma = (path.alpha(s) - path.alpha(t)).to(x.dtype), (path.sigma(s) - path.sigma(t)).to(x.dtype)
        x_0, eps = parts(x, t)
        guess = x + d_alpha * x_0 + d_sigma * eps
        if path.sigma(s) > 0:  # at sigma = 0 eps is 0/0, and the first-order step is exactly x_0
            x_0s, eps_s = parts(guess, s)
            guess = x + 0.5 * d_alpha * (x_0 + x_0s) + 0.5 * d_sigma * (eps + eps_s)
        x = guess
    return x


def _rk4(f: Callable[[float, Tensor], Tensor], y: Tensor, start: float, stop: float, steps: int) -> Tensor:
    h = (stop - start) / steps
    for i in range(steps):
        a = start + i * h
        k1 = f(a, y)
        k2 = f(a + h / 2, y + h / 2 * k1)
        k3 = f(a + h / 2, y + h / 2 * k2)
        k4 = f(a + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


def log_likelihood_ode(
    denoise: Denoiser,
    path: GaussianPath,
    x: Tensor,
    *,
    steps: int = 64,
    log_snr: tuple[float, float] = (-14.0, 14.0),
    probes: Streams | None = None,
) -> Tensor:
    r"""log p(x) by the instantaneous change of variables along the probability-flow ODE, nats, (B,).

    log p_0(x) = log N(z_T; 0, I) + int div v dphi, by the classical Runge-Kutta method of order 4. The estimate
    is exact up to the solver's error and the two ends: the density is that of data noised at log_snr[1].

    Args:
        denoise: (x_t, t) to E[x_0 | x_t]; differentiable in x_t.
        path: the Gaussian path.
        x: points (B, *event).
        steps: Runge-Kutta steps, four evaluations each.
        log_snr: the last and the first log-SNR of the integral (noise, data).
        probes: None for the exact divergence (D backward passes, right for small D), or streams for one
            Gaussian probe a row (Hutchinson 1989), unbiased.
    """
    event, size = x.shape[1:], math.prod(x.shape[1:])
    last, first = (math.atan(math.exp(-0.5 * value)) for value in log_snr)
    probe = None if probes is None else probes.normal(*event).to(x.dtype)

    def field(phi: float, state: Tensor) -> Tensor:
        z = state[:, :-1].reshape(-1, *event).detach().requires_grad_()
        lam = torch.full((len(z),), -2 * math.log(math.tan(phi)), dtype=torch.float64, device=z.device)
        t = path.time(lam)
        scale = expand((path.alpha(t) ** 2 + path.sigma(t) ** 2).sqrt(), z)
        with torch.enable_grad():
            x_0 = denoise(z * scale, t)
            v = (math.cos(phi) * z - x_0) / math.sin(phi)
            flat = v.reshape(len(z), size)
            if probe is None:
                rows = [torch.autograd.grad(flat[:, i].sum(), z, retain_graph=True)[0] for i in range(size)]
                div = sum(g.reshape(len(z), size)[:, i] for i, g in enumerate(rows))
            else:
                (g,) = torch.autograd.grad((v * probe).sum(), z)
                div = (g * probe).reshape(len(z), size).sum(1)
        return torch.cat((flat, torch.as_tensor(div)[:, None]), 1).detach()

    start = torch.cat((math.cos(first) * x.reshape(len(x), size), x.new_zeros(len(x), 1)), 1)
    end = _rk4(field, start, first, last, steps)
    normal = -0.5 * (end[:, :-1] ** 2).sum(1) - 0.5 * size * math.log(2 * math.pi)
    return normal + end[:, -1] + size * math.log(math.cos(first))
