"""What the states emit: log-densities of packed steps, and the statistics of the emissions under their posterior.

Both go through the steps in chunks that fit the cache, and through the exponential family's two matrix products where
the emissions have them (`distributions/natural.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from protea.core import Stats
from protea.distributions.covariance import CHUNK
from protea.distributions.family import Family

FEATURES = 64  # most features of an exponential family by which log b is looked up


def table(emission: Family, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """log b of packed steps (N, K); or a table (M, K), shorter than that, and what to look up in it for each step.

    That is a code (N,), or the features phi (M, N) of an exponential family.
    """
    if not torch.is_grad_enabled() and len(rows):
        found, linear = emission.by_code(rows), emission.linear()
        if found is not None and len(found[0]) <= len(rows):
            return found[0].to(dtype), found[1]
        if linear is not None and linear.eta.dtype == dtype and linear.eta.shape[1] <= FEATURES:
            phi = linear.phi(rows)
            if phi is not None:
                return linear.eta.T.contiguous(), phi
    return log_b(emission, rows, dtype), None


def look_up(table: Tensor, index: Tensor | None) -> Tensor:
    """log b of each step (N, K), from what `table` gives."""
    if index is None:
        return table
    return index.T @ table if index.is_floating_point() else table[index]


def counted(emission: Family, sums: Tensor, index: Tensor) -> Stats:
    """The emissions' statistics from weights summed by row of the table, (M, K)."""
    return emission.gathered(sums.T) if index.is_floating_point() else emission.counted(sums)


def chunks(emission: Family, rows: Tensor, width: int = 0) -> Iterator[slice]:
    """Slices of packed steps (N, *event); `width` is the number of entries that a step takes, if that is known."""
    width = width or max(emission.members * emission.width, math.prod(emission.event))
    size = max(256, CHUNK * torch.get_num_threads() // width)
    for i in range(0, max(len(rows), 1), size):
        yield slice(i, i + size)


def log_b(emission: Family, rows: Tensor, dtype: torch.dtype, observed: Tensor | None = None) -> Tensor:
    """log b (N, K) of packed steps; differentiable."""
    if not len(rows):
        return torch.zeros(0, emission.members, dtype=dtype, device=rows.device)
    if torch.is_grad_enabled():
        density = emission.density()
        seen = (None if observed is None else observed[i] for i in chunks(emission, rows))
        return torch.cat([density(rows[i], o).to(dtype) for i, o in zip(chunks(emission, rows), seen)])
    out = torch.empty(len(rows), emission.members, dtype=dtype, device=rows.device)
    linear, density = emission.linear() if observed is None else None, None
    for i in chunks(emission, rows, 0 if linear is None else max(linear.eta.shape)):
        phi = None if linear is None else linear.phi(rows[i])
        if linear is not None and phi is not None:
            if linear.eta.dtype == dtype:
                torch.mm(phi.T, linear.eta.T, out=out[i])
            else:
                out[i] = phi.T @ linear.eta.T
            continue
        density = emission.density() if density is None else density
        out[i] = density(rows[i], None if observed is None else observed[i])
    return out


def statistics(emission: Family, rows: Tensor, gamma: Tensor, dtype: torch.dtype) -> Stats:
    """The emissions' statistics under weights gamma (N, K), in float64; `dtype` is the emissions' own."""
    stats: Stats = {}

    def add(found: Stats) -> None:
        for name, value in found.items():
            value = value.double()
            stats[name] = stats[name] + value if name in stats else value

    linear = emission.linear()
    sums = None if linear is None else torch.zeros_like(linear.eta, dtype=torch.float64)
    for i in chunks(emission, rows, 0 if linear is None else max(linear.eta.shape)):
        r = gamma[i].to(dtype)
        phi = None if linear is None or not len(r) else linear.phi(rows[i])
        if sums is not None and phi is not None:
            sums += (phi @ r).T
        else:
            add(emission.expect(rows[i], r))
    if sums is not None:
        add(emission.gathered(sums))
    return stats
