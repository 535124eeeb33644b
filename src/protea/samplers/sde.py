r"""The reverse-time SDE of a Gaussian path (Anderson 1982; Song et al. 2021), by Euler and Maruyama.

    forward  dx = f_t x dt + g_t dw,      f = alpha'/alpha,  g^2 = 2 sigma sigma' - 2 f sigma^2
    reverse  dx = [f_t x - g_t^2 score(x, t)] dt + g_t dw-bar,  score = (alpha_t E[x_0|x_t] - x) / sigma_t^2

g^2 = -sigma^2 d(log-SNR)/dt, which is how it is computed. The drift is singular where alpha_t = 0, so start at t < 1.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from protea.processes.denoiser import Denoiser
from protea.processes.path import GaussianPath, expand
from protea.rng import Streams


def drift_diffusion(path: GaussianPath, t: Tensor) -> tuple[Tensor, Tensor]:
    """f_t and g_t^2 of the forward SDE, shaped as t; 0 < t and alpha_t > 0."""
    return path.alpha_dot(t) / path.alpha(t), -(path.sigma(t) ** 2) * path.log_snr_dot(t)


def score(denoise: Denoiser, path: GaussianPath, x: Tensor, t: Tensor) -> Tensor:
    """grad log p_t(x) by Tweedie's formula, (B, *event)."""
    return (expand(path.alpha(t), x) * denoise(x, t) - x) / expand(path.sigma(t), x) ** 2


def euler_maruyama(denoise: Denoiser, path: GaussianPath, x: Tensor, times: Tensor, rng: Streams) -> Tensor:
    """Run the reverse SDE on x (B, *event) from times[0] to times[-1]; both ends inside (0, 1)."""
    for t, s in pairwise(times):
        t, h = t.expand(len(x)), (t - s).expand(len(x))
        f, g2 = drift_diffusion(path, t)
        x = x - expand(h * f, x) * x + expand(h * g2, x) * score(denoise, path, x, t)
        x = x + expand(torch.sqrt(h * g2), x) * rng.normal(*x.shape[1:])
    return x
