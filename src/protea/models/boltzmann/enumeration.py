"""Sums over all states of a few units: exact partition functions and distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from protea.errors import NotSupported

MOST = 20  # bits: a million states
CHUNK = 2**14


def states(units: int, levels: int = 2, *, like: Tensor) -> Iterator[Tensor]:
    """All states of `units` units of 0 .. levels-1, in chunks (n, units) of the dtype and device of `like`.

    Raises:
        NotSupported: more than about a million of them.

    >>> [s.tolist() for s in states(2, like=torch.zeros(()))]
    [[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]]
    """
    total = levels**units
    if total > 2**MOST:
        raise NotSupported(f"{units} units of {levels} levels have {total:.3g} states, too many to sum over.",
                           "Estimate instead: annealed importance sampling.")  # fmt: skip
    places = levels ** torch.arange(units - 1, -1, -1, device=like.device)
    for start in range(0, total, CHUNK):
        codes = torch.arange(start, min(start + CHUNK, total), device=like.device)
        yield ((codes[:, None] // places) % levels).to(like.dtype)


def log_sum(units: int, levels: int, log_f: Callable[[Tensor], Tensor], *, like: Tensor) -> Tensor:
    """log sum over all states s of exp(log_f(s)), in float64; differentiable."""
    return torch.logsumexp(torch.stack([torch.logsumexp(log_f(s).double(), 0)
                                        for s in states(units, levels, like=like)]), 0)  # fmt: skip
