"""Memory for scans over time: matrices by columns, and space for them that is used again.

A step's n_t sequences are contiguous for each state in packed tensors (N, K) laid out by columns, and the product of
(n_t, K) by (K, K) in float64 takes 4 microseconds in place of 7 (200 sequences, 16 states). Fresh memory comes from the
system page by page, which may cost more than all arithmetic of a scan; so what is not returned to callers is borrowed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_own = threading.local()
KEPT = 2  # spaces that a thread keeps for the next scan


def _width(n: int, size: int) -> int:
    """Entries between columns of n: multiples of a page would all fall into the same few places of the cache."""
    return n + (16 if n * size % 4096 == 0 else 0)


def columns(n: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty (n, k) of which each column is contiguous."""
    return torch.empty(k, _width(n, dtype.itemsize), dtype=dtype, device=device)[:, :n].T


@contextmanager
def borrowed(n: int, k: int, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """The same, in memory that is someone else's afterwards.

    >>> with borrowed(3, 2, torch.float64, torch.device("cpu")) as a:
    ...     a.shape, a.stride()
    (torch.Size([3, 2]), (1, 3))
    """
    if device.type != "cpu":  # which keeps freed memory by itself
        yield columns(n, k, dtype, device)
        return
    free: list[Tensor] = _own.__dict__.setdefault("free", [])
    space = free.pop() if free else torch.empty(0, dtype=torch.uint8)
    width = _width(n, dtype.itemsize)
    size = width * k * dtype.itemsize
    if len(space) < size:
        space = torch.empty(size, dtype=torch.uint8)
    try:
        yield space[:size].view(dtype).view(k, width)[:, :n].T
    finally:
        if len(free) < KEPT:
            free.append(space)
