"""Where the edges of a histogram's bins are, from the values it is to hold."""

from __future__ import annotations

import torch
from torch import Tensor


def edges_of_reals(value: Tensor, bins: int) -> Tensor:
    """bins + 1 equal-mass edges from just below the least to just above the greatest value; repeats at the end.

    >>> edges_of_reals(torch.arange(9.0, dtype=torch.float64), 2).round(decimals=3).tolist()
    [-0.0, 4.0, 8.0]
    """
    low, high = float(value.min()), float(value.max())
    spread = high - low if high > low else 1e-3 * max(abs(low), 1.0)
    levels = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    edges = _quantiles(value, levels)
    edges[0], edges[-1] = low - 1e-6 * spread, high + 1e-6 * spread
    if high == low:
        edges[0], edges[-1] = low - 0.5 * spread, low + 0.5 * spread
    return _pad(edges.unique(), bins)


def edges_of_grid(cell: Tensor, bins: int) -> Tensor:
    """bins + 1 edges between cells: every distinct value its own bin, or else the frequent ones and quantiles.

    >>> edges_of_grid(torch.tensor([3.0, 3.0, 4.0, 9.0], dtype=torch.float64), 8).tolist()
    [2.5, 3.5, 4.5, 8.5, 9.5, 9.5, 9.5, 9.5, 9.5]
    """
    value, count = cell.unique(return_counts=True)
    edges = torch.cat((value - 0.5, value + 0.5)).unique()
    if len(edges) > bins + 1:
        keep = max(bins // 3, 0)
        heavy = value[count.argsort(descending=True)[:keep]]
        heavy = heavy[torch.isin(heavy, value[count * bins >= count.sum()])]
        rest = _quantiles(cell, torch.linspace(0, 1, bins + 1 - 2 * len(heavy), dtype=torch.float64)).floor() + 0.5
        rest[0] = value[0] - 0.5
        edges = torch.cat((rest, heavy - 0.5, heavy + 0.5)).unique()
    return _pad(edges, bins)


def _quantiles(value: Tensor, levels: Tensor) -> Tensor:
    ordered = value.sort().values
    position = levels * (len(ordered) - 1)
    left = position.floor().long()
    right = (left + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[left], ordered[right], position - left)


def _pad(edges: Tensor, bins: int) -> Tensor:
    return torch.cat((edges, edges[-1:].expand(bins + 1 - len(edges))))
