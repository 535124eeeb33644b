r"""Monotone rational-quadratic splines with linear tails.

Durkan, Bekasov, Murray & Papamakarios 2019, "Neural Spline Flows" (arXiv:1906.04032), section 3.
Between the knots (x_k, y_k) and (x_{k+1}, y_{k+1}), with slopes d_k and d_{k+1} at the knots,
s_k = (y_{k+1} - y_k) / (x_{k+1} - x_k) and xi = (x - x_k) / (x_{k+1} - x_k),

    y  = y_k + (y_{k+1} - y_k) [s_k xi^2 + d_k xi (1 - xi)] / q,
    dy/dx = s_k^2 [d_{k+1} xi^2 + 2 s_k xi (1 - xi) + d_k (1 - xi)^2] / q^2,
    q  = s_k + (d_{k+1} + d_k - 2 s_k) xi (1 - xi).

Outside [-B, B] the spline is the identity, which it meets with slope one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Knots(NamedTuple):
    """Knots of a spline of K bins: places x, values y and slopes d, each (..., K + 1)."""

    x: Tensor
    y: Tensor
    d: Tensor


def parameters_per_spline(bins: int) -> int:
    """Free numbers of one spline of K bins: K widths, K heights and K - 1 inner slopes."""
    return 3 * bins - 1


def knots(parameters: Tensor, *, bound: float = 5.0, smallest: float = 1e-3) -> Knots:
    """Knots from unconstrained numbers; zeros give the identity.

    Widths and heights are softmaxes, slopes are exponentials, of softly clipped numbers. Clipping
    bounds slopes to (smallest, 1/smallest) and the ratio of any two bins likewise, on both sides,
    which keeps the inverse well conditioned in single precision.

    Args:
        parameters: (..., 3K - 1): K widths, K heights, K - 1 slopes at the inner knots.
        bound: B, the half-width of the square in which the spline acts.
        smallest: the smallest slope.

    >>> k = knots(torch.zeros(11))  # K = 4
    >>> k.x.tolist(), k.d.tolist()
    ([-5.0, -2.5, 0.0, 2.5, 5.0], [1.0, 1.0, 1.0, 1.0, 1.0])
    """
    bins = (parameters.shape[-1] + 1) // 3
    limit = -math.log(smallest)
    w, h, d = parameters.split((bins, bins, bins - 1), -1)
    places = [F.softmax(u / (1 + (2 * u / limit).abs()), -1)[..., :-1].cumsum(-1) for u in (w, h)]
    # Ends are set, not summed, so that the outer knots are the bound to the last bit.
    x, y = (bound * (2 * F.pad(F.pad(p, (1, 0)), (0, 1), value=1.0) - 1) for p in places)
    return Knots(x, y, F.pad((d / (1 + (d / limit).abs())).exp(), (1, 1), value=1.0))


class _Bin(NamedTuple):
    """The bin that holds an argument: its lower corner, its size, its slopes at both ends, its mean slope."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    d0: Tensor
    d1: Tensor
    s: Tensor


def _bin(at: Tensor, edges: Tensor, k: Knots) -> _Bin:
    index = (edges[..., 1:-1] <= at[..., None]).sum(-1, keepdim=True)
    pair = torch.cat((index, index + 1), -1)
    shape = (*at.shape, k.x.shape[-1])
    (x0, x1), (y0, y1), (d0, d1) = (v.expand(shape).gather(-1, pair).unbind(-1) for v in k)
    return _Bin(x0, y0, x1 - x0, y1 - y0, d0, d1, (y1 - y0) / (x1 - x0))


def spline(x: Tensor, k: Knots) -> tuple[Tensor, Tensor]:
    """y and log dy/dx at x, elementwise: x (...), knots (..., K + 1).

    >>> y, log_slope = spline(torch.tensor([0.3, 9.0]), knots(torch.zeros(2, 11)))
    >>> bool(torch.allclose(y, torch.tensor([0.3, 9.0])))
    True
    """
    low, high = k.x[..., 0], k.x[..., -1]
    inside = (x > low) & (x < high)
    c = torch.minimum(torch.maximum(x, low), high)  # keeps the branch not taken finite, and its gradient too
    b = _bin(c, k.x, k)
    xi = (c - b.x) / b.width
    mix = xi * (1 - xi)
    q = b.s + (b.d0 + b.d1 - 2 * b.s) * mix
    y = b.y + b.height * (b.s * xi * xi + b.d0 * mix) / q
    slope = b.d1 * xi * xi + 2 * b.s * mix + b.d0 * (1 - xi) ** 2
    log_slope = 2 * (b.s.log() - q.log()) + slope.log()
    return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(x))


def spline_inverse(y: Tensor, k: Knots) -> Tensor:
    """x with spline(x) = y: the root of a quadratic, in the form that does not cancel (their eq. 6-8)."""
    low, high = k.y[..., 0], k.y[..., -1]
    inside = (y > low) & (y < high)
    c = torch.minimum(torch.maximum(y, low), high)
    b = _bin(c, k.y, k)
    rise = c - b.y
    bend = rise * (b.d0 + b.d1 - 2 * b.s)
    a = b.height * (b.s - b.d0) + bend
    h = b.height * b.d0 - bend
    g = -b.s * rise
    root = (h * h - 4 * a * g).clamp(min=0).sqrt()
    xi = (2 * g / (-h - root)).clamp(0, 1)
    return torch.where(inside, b.x + xi * b.width, y)
