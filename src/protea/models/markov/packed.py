r"""Sequences of unequal length laid out for a scan over time: no padding, and every step a contiguous block.

The B sequences are sorted by length, longest first, and their N steps are stored time by time: the n_t sequences that
last beyond step t are the rows offset_t .. offset_t + n_t of a packed tensor (N, ...), in the same order at every step.
"""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from protea.errors import DataError


def known(x: Tensor) -> Tensor:
    """Which entries have a value: not NaN, and no negative integer."""
    return ~x.isnan() if x.is_floating_point() else x >= 0


class Packed:
    """The layout of B sequences of at most T steps.

    Args:
        lengths: (B,) int64, steps of each sequence, 0 .. steps.
        steps: T of the padded tensors (B, T, ...).

    >>> p = Packed(torch.tensor([1, 3]), 3)
    >>> p.active, p.pack(torch.tensor([[1, 0, 0], [2, 3, 4]])).tolist()
    ([2, 1, 1], [2, 1, 3, 4])
    """

    def __init__(self, lengths: Tensor, steps: int) -> None:
        if len(lengths) and (int(lengths.min()) < 0 or int(lengths.max()) > steps):
            raise DataError(f"Lengths run from {int(lengths.min())} to {int(lengths.max())}.",
                            f"They must lie in 0 .. {steps}.")  # fmt: skip
        self.steps, self.count = steps, len(lengths)
        self.uniform = bool((lengths == steps).all())
        self.order = torch.arange(self.count, device=lengths.device)
        self.lengths = lengths
        if not self.uniform:
            self.order = lengths.argsort(descending=True, stable=True)
            self.lengths = lengths[self.order]  # sorted
        self.active: list[int]
        if self.uniform:
            self.active = [self.count] * (steps if self.count else 0)
        else:
            ended = torch.bincount(self.lengths, minlength=steps + 1).cumsum(0)
            active = (self.count - ended)[:steps].tolist()
            self.active = [n for n in active if n]
        self.total = sum(self.active)
        self.offset = [0, *accumulate(self.active)][:-1]  # packed row where each step starts

    @cached_property
    def row(self) -> Tensor:
        """(N,) which of the sorted sequences each packed step belongs to."""
        every = torch.arange(self.count, device=self.order.device)
        if self.uniform:
            return every.repeat(len(self.active))
        return torch.cat([every[:n] for n in self.active]) if self.active else every[:0]

    @cached_property
    def step(self) -> Tensor:
        """(N,) the time of each packed step."""
        active = torch.tensor(self.active, device=self.order.device, dtype=torch.int64)
        return torch.arange(len(active), device=active.device).repeat_interleave(active)

    @cached_property
    def index(self) -> Tensor:
        """(N,) position of each packed step in the padded steps, flattened (B * T,)."""
        return self.order[self.row] * self.steps + self.step

    @cached_property
    def last(self) -> Tensor:
        """(B',) packed row of the last step of each sorted sequence that has one; these come first in the order."""
        some = self.lengths[self.lengths > 0]
        starts = torch.tensor(self.offset, device=self.order.device, dtype=torch.int64)
        return starts[some - 1] + torch.arange(len(some), device=some.device)

    @property
    def first(self) -> int:
        """Number of sequences that have a step."""
        return self.active[0] if self.active else 0

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) to (N, ...)."""
        if self.uniform:
            return x.transpose(0, 1).reshape(self.total, *x.shape[2:])
        return x.reshape(-1, *x.shape[2:])[self.index]

    def unpack(self, v: Tensor, fill: float = 0.0) -> Tensor:
        """(N, ...) to (B, T, ...), with `fill` beyond the ends."""
        if self.uniform:
            return v.view(self.steps, self.count, *v.shape[1:]).transpose(0, 1)
        out = v.new_full((self.count * self.steps, *v.shape[1:]), fill)
        out[self.index] = v
        return out.view(self.count, self.steps, *v.shape[1:])

    def sort(self, v: Tensor) -> Tensor:
        """(B, ...) in the order of the packed rows."""
        return v if self.uniform else v[self.order]

    def unsort(self, v: Tensor) -> Tensor:
        """(B, ...) back in the callers' order."""
        if self.uniform:
            return v
        out = torch.empty_like(v)
        out[self.order] = v
        return out

    def per_sequence(self, v: Tensor) -> Tensor:
        """Sums over time of (N,), (B,) in sorted order."""
        if self.uniform:
            return v.view(-1, self.count).sum(0) if self.active else v.new_zeros(self.count)
        return v.new_zeros(self.count).index_add_(0, self.row, v)

    def only(self, which: Tensor) -> tuple[Packed, Tensor]:
        """The layout of some of the sorted sequences, (M,) ascending, and the packed rows they hold."""
        position = torch.full((self.count,), -1, device=self.order.device)
        position[which] = torch.arange(len(which), device=which.device)
        rows = (position[self.row] >= 0).nonzero()[:, 0]
        return Packed(self.lengths[which], self.steps), rows


class Steps:
    """The steps of x (B, T, *event) in packed order, put together slice by slice.

    >>> Steps(Packed(torch.tensor([2, 2]), 2), torch.tensor([[1, 2], [3, 4]]))[1:3].tolist()
    [3, 2]
    """

    def __init__(self, packed: Packed, x: Tensor) -> None:
        self.packed, self.dtype, self.device = packed, x.dtype, x.device
        self.x = x.transpose(0, 1) if packed.uniform else x.reshape(-1, *x.shape[2:])

    def __len__(self) -> int:
        return self.packed.total

    def __getitem__(self, i: slice) -> Tensor:
        if not self.packed.uniform:
            return self.x[self.packed.index[i]]
        n, start, stop = max(self.packed.count, 1), i.start, min(i.stop, len(self))
        first = start // n
        part = self.x[first : -(-stop // n)]
        return part.reshape(-1, *part.shape[2:])[start - first * n : stop - first * n]
