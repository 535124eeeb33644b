r"""Two-dimensional toys with known densities, so that every claim about a model can be checked.

| name | density |
|---|---|
| eight-gaussians | mixture of eight N(mu_k, 0.2^2 I), mu_k on a circle of radius 2 |
| rings | r from a mixture of N(r_k, 0.08^2) on r > 0, angle uniform: p(x) = p(r) / (2 pi r) |
| checkerboard | uniform on the eight dark squares of side 1 in [-2, 2]^2 |
| two-moons | mixture of 128 N(mu_k, 0.1^2 I) set densely along two half circles |
| pinwheel | r from Gamma(16, 1/8), angle from one of five wrapped N(theta_k + 0.8 r, 0.15^2): p(x) = p(r) p(angle given r) / r |
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from protea.data.dataset import Loaded
from protea.rng import Streams, fold
from protea.spaces import Vector

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Toy:
    """A density on the plane: `sample` from streams to (B, 2) float64, exact `log_prob` of (B, 2) to (B,)."""

    sample: Callable[[Streams], Tensor]
    log_prob: Callable[[Tensor], Tensor]


def _pick(rng: Streams, k: int) -> Tensor:
    return rng.child("component").categorical(torch.zeros(len(rng), k))


def _mixture(mu: Tensor, sigma: float) -> Toy:
    """Equal mixture of N(mu_k, sigma^2 I); mu is (K, 2)."""

    def sample(rng: Streams) -> Tensor:
        return mu[_pick(rng, len(mu))] + sigma * rng.normal(2, dtype=torch.float64)

    def log_prob(x: Tensor) -> Tensor:
        squares = torch.cdist(x.double(), mu, compute_mode="donot_use_mm_for_euclid_dist").square()
        return torch.logsumexp(-0.5 * squares / sigma**2, 1) - math.log(len(mu)) - LOG_2PI - 2 * math.log(sigma)

    return Toy(sample, log_prob)


def _circle(angle: Tensor, radius: float = 1.0) -> Tensor:
    return radius * torch.stack((torch.cos(angle), torch.sin(angle)), 1)


def _eight_gaussians() -> Toy:
    return _mixture(_circle(torch.arange(8, dtype=torch.float64) * (math.pi / 4), 2.0), 0.2)


def _two_moons() -> Toy:
    t = (torch.arange(64, dtype=torch.float64) + 0.5) * (math.pi / 64)
    upper = _circle(t)
    lower = torch.stack((1 - torch.cos(t), 0.5 - torch.sin(t)), 1)
    return _mixture(torch.cat((upper, lower)) - torch.tensor([0.5, 0.25], dtype=torch.float64), 0.1)


def _rings() -> Toy:
    radius, sigma = torch.tensor([0.75, 1.5, 2.25, 3.0], dtype=torch.float64), 0.08

    def sample(rng: Streams) -> Tensor:
        # r > 0 misses a share Phi(-0.75 / 0.08) < 1e-20 of the innermost normal: no draw can show it
        r = radius[_pick(rng, 4)] + sigma * rng.normal(1, dtype=torch.float64)[:, 0]
        return r[:, None] * _circle(2 * math.pi * rng.uniform(1, dtype=torch.float64)[:, 0])

    def log_prob(x: Tensor) -> Tensor:
        r = x.double().norm(dim=1)
        z = (r[:, None] - radius) / sigma
        log_r = torch.logsumexp(-0.5 * z**2, 1) - math.log(4 * sigma) - 0.5 * LOG_2PI
        return log_r - LOG_2PI - r.clamp_min(1e-300).log()

    return Toy(sample, log_prob)


def _checkerboard() -> Toy:
    def sample(rng: Streams) -> Tensor:
        square = _pick(rng, 8)
        row, column = square // 2, 2 * (square % 2) + (square // 2) % 2
        corner = torch.stack((column, row), 1).double() - 2
        return corner + rng.uniform(2, dtype=torch.float64)

    def log_prob(x: Tensor) -> Tensor:
        x = x.double()
        dark = torch.floor(x).sum(1).remainder(2) == 0
        inside = (x.abs() < 2).all(1)
        return torch.where(dark & inside, -math.log(8), -math.inf).double()

    return Toy(sample, log_prob)


def _pinwheel() -> Toy:
    shape, scale, swirl, spread, arms = 16.0, 0.125, 0.8, 0.15, 5

    def sample(rng: Streams) -> Tensor:
        u = rng.uniform(1, dtype=torch.float64)[:, 0]
        r = scale * torch.from_numpy(special.gammaincinv(shape, u.cpu().numpy())).to(u.device)
        angle = _pick(rng, arms) * (2 * math.pi / arms) + swirl * r
        return r[:, None] * _circle(angle + spread * rng.normal(1, dtype=torch.float64)[:, 0])

    def log_prob(x: Tensor) -> Tensor:
        x = x.double()
        r = x.norm(dim=1).clamp_min(1e-300)
        log_r = (shape - 1) * r.log() - r / scale - math.lgamma(shape) - shape * math.log(scale)
        centre = torch.arange(arms, dtype=torch.float64) * (2 * math.pi / arms) + swirl * r[:, None]
        off = torch.remainder(torch.atan2(x[:, 1], x[:, 0])[:, None] - centre + math.pi, 2 * math.pi) - math.pi
        wraps = off[:, :, None] + 2 * math.pi * torch.arange(-1, 2)  # the next wrap is 60 standard deviations away
        log_angle = torch.logsumexp((-0.5 * (wraps / spread) ** 2).flatten(1), 1)
        return log_r + log_angle - math.log(arms * spread) - 0.5 * LOG_2PI - r.log()

    return Toy(sample, log_prob)


TOYS: dict[str, Toy] = {
    "eight-gaussians": _eight_gaussians(),
    "rings": _rings(),
    "checkerboard": _checkerboard(),
    "two-moons": _two_moons(),
    "pinwheel": _pinwheel(),
}


def load_toy(name: str, n: int = 10_000, seed: int = 0) -> Loaded:
    """n points of a toy.

    >>> load_toy("rings", n=5).x.shape
    torch.Size([5, 2])
    """
    x = TOYS[name].sample(Streams(fold(seed, "toy", name), n))
    return Loaded(name, f"the toy {name!r} with a known density", Vector(("x", "y")), x)
