r"""Annealed importance sampling: ratios of partition functions.

A path of unnormalised densities f_0 ... f_K leads from one that can be sampled and integrated to the one wanted.
Each chain starts at x ~ f_0 / Z_0 and alternates a weight and a move that leaves the new density invariant:

    log w = sum_k log f_k(x_k) - log f_{k-1}(x_k),   x_{k+1} ~ T_k(. | x_k),   E[w] = Z_K / Z_0  (unbiased)

    log Z_K ~ log Z_0 + log mean(w),    standard error of the logarithm ~ sd(w) / (mean(w) sqrt(M))  (delta method)

The estimate of Z is unbiased, hence that of log Z low on average (Jensen); chains that mix badly make it lower still
without the standard error saying so, which is why `effective`, (sum w)^2 / sum w^2, is reported beside it, and why
`sandwich.py` looks from the other side as well.

Neal 2001, "Annealed importance sampling"; Salakhutdinov & Murray 2008, "On the quantitative analysis of deep belief
networks", whose spacing of temperatures `spacing` follows; `evened` learns one from the chains themselves: steps along
which the weights' increments spread alike are of equal length in the metric that decides the variance (Gelman & Meng
1998; Grosse, Maddison & Salakhutdinov 2013, "Annealing between distributions by averaging moments").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

X = TypeVar("X")
Step = Callable[[X, float, float], tuple[Tensor, X]]  # (x, b0, b1) to (log f_b1/f_b0 at x, x moved at b1)


class Weights(NamedTuple):
    """Log-weights (M,) in float64 and what follows from them; and how far each step's increments spread, (K,)."""

    log_w: Tensor
    spread: Tensor = torch.zeros(0)

    @property
    def log_ratio(self) -> float:
        """log Z_K / Z_0."""
        return float(torch.logsumexp(self.log_w, 0)) - math.log(len(self.log_w))

    @property
    def error(self) -> float:
        """One standard error of `log_ratio`."""
        w = (self.log_w - self.log_w.max()).exp()
        return float(w.std() / w.mean()) / math.sqrt(len(w)) if len(w) > 1 else math.inf

    @property
    def effective(self) -> float:
        """(sum w)^2 / sum w^2: M if all weigh the same, 1 if one outweighs all others."""
        w = (self.log_w - self.log_w.max()).exp()
        return float(w.sum() ** 2 / w.square().sum())


def spacing(steps: int) -> list[float]:
    """0 = beta_0 < ... < beta_steps = 1, denser towards 1: a 29th up to 0.5, 8/29 to 0.9, 20/29 beyond.

    >>> spacing(29)[:3], len(spacing(29))
    ([0.0, 0.5, 0.55], 30)
    """
    a, b = max(1, round(steps / 29)), max(1, round(8 * steps / 29))
    if steps < 3 or steps - a - b < 1:
        return [i / steps for i in range(steps + 1)]
    c = steps - a - b
    parts = ((0.0, 0.5, a), (0.5, 0.4, b), (0.9, 0.1, c))
    return [low + width * i / n for low, width, n in parts for i in range(n)] + [1.0]


def evened(betas: Sequence[float], spread: Tensor, steps: int) -> list[float]:
    """A path of `steps` steps along which the increments of chains spread alike.

    Args:
        betas: a path, from 0 to 1.
        spread: standard deviation of the increments of each of its steps, (len(betas) - 1,).

    >>> [round(b, 2) for b in evened([0.0, 0.5, 1.0], torch.tensor([3.0, 1.0]), 4)]
    [0.0, 0.17, 0.33, 0.5, 1.0]
    """
    spread = spread.double().cpu()
    length = (spread + 0.01 * float(spread.mean()) + 1e-12).cumsum(0)  # no step of no length
    length = torch.cat((length.new_zeros(1), length)) / length[-1]
    if float(spread.max()) == 0:
        return spacing(steps)
    path = np.interp(np.linspace(0, 1, steps + 1), length.numpy(), np.asarray(betas))
    return [0.0, *path[1:-1].tolist(), 1.0]


@torch.no_grad()
def ais(x: X, betas: Sequence[float], step: Step[X]) -> tuple[Weights, X]:
    """Weights of M chains, and where they ended.

    Args:
        x: M independent draws of the first density, a tensor or whatever `step` takes.
        betas: the path.
        step: weighs and moves: (x, b0, b1) to (log f_b1(x) - log f_b0(x), (M,); x moved by a kernel of f_b1).

    >>> import torch
    >>> from protea.rng import Streams
    >>> rng = Streams(0, 500)  # from N(0, 1) to exp(-2 x^2), whose integral is half as large
    >>> def step(x, b0, b1):
    ...     return -1.5 * (b1 - b0) * x[:, 0] ** 2, rng.normal(1, dtype=x.dtype) / (1 + 3 * b1) ** 0.5
    >>> w, _ = ais(rng.normal(1, dtype=torch.float64), spacing(100), step)
    >>> abs(w.log_ratio - math.log(0.5)) < 4 * w.error < 0.1
    True
    """
    log_w, spread = torch.zeros((), dtype=torch.float64), []
    for b0, b1 in pairwise(betas):
        log_ratio, x = step(x, b0, b1)
        log_w = log_w.to(log_ratio.device) + log_ratio.double()
        spread.append(log_ratio.double().std(correction=0))
    return Weights(log_w, torch.stack(spread)), x
