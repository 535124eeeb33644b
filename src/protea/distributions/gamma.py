r"""Gamma draws from streams.

Marsaglia & Tsang 2000, "A simple method for generating gamma variables": with d = a - 1/3, c = 1 / sqrt(9 d) and normal
z, v = (1 + c z)^3, the value d v is accepted where log u < z^2 / 2 + d - d v + d log v, which happens more than 95 % of
the time for a >= 1. For a < 1, Gamma(a) = Gamma(a + 1) u^{1/a}. A fixed number of attempts keeps draw i a function of
stream i alone; that all fail has probability below 1e-20.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.rng import Streams

ATTEMPTS = 16


def gamma(rng: Streams, shape: Tensor) -> Tensor:
    """One draw of Gamma(shape, rate 1) for each stream, (B,) float64, from shape (B,) > 0.

    >>> x = gamma(Streams(0, 20000), torch.full((20000,), 2.5))
    >>> abs(float(x.mean()) - 2.5) < 0.05
    True
    """
    shape = shape.to(torch.float64)
    z = rng.normal(ATTEMPTS, dtype=torch.float64).to(shape.device)
    u = rng.uniform(ATTEMPTS + 1, dtype=torch.float64).to(shape.device)
    d = (torch.where(shape < 1, shape + 1, shape) - 1 / 3)[:, None]
    v = (1 + z / (9 * d).sqrt()).clamp(min=0) ** 3
    accepted = u[:, :-1].log() < 0.5 * z.square() + d - d * v + d * v.clamp(min=1e-300).log()
    value = (d * v).gather(1, accepted.double().argmax(1, keepdim=True))[:, 0]
    return torch.where(shape < 1, value * u[:, -1] ** (1 / shape.clamp(max=1)), value)
