r"""Sequences of unequal length laid out without padding: one after the other, N steps in all.

A packed tensor (N, ...) has the steps of sequence b in rows start_b .. start_b + length_b.
"""

from __future__ import annotations

from functools import cached_property

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
    >>> p.start.tolist(), p.pack(torch.tensor([[1, 0, 0], [2, 3, 4]])).tolist()
    ([0, 1], [1, 2, 3, 4])
    """

    def __init__(self, lengths: Tensor, steps: int) -> None:
        low, high = (int(v) for v in lengths.aminmax()) if len(lengths) else (steps, steps)
        if low < 0 or high > steps:
            raise DataError(f"Lengths run from {low} to {high}.", f"They must lie in 0 .. {steps}.")
        self.lengths, self.steps, self.count, self.uniform = lengths, steps, len(lengths), low == steps
        self.start = lengths.cumsum(0) - lengths
        self.total = int(lengths.sum())

    @cached_property
    def order(self) -> Tensor:
        """(B,) the sequences, longest first."""
        return self.lengths.argsort(descending=True, stable=True)

    @cached_property
    def row(self) -> Tensor:
        """(N,) which sequence each packed step belongs to."""
        return torch.arange(self.count, device=self.lengths.device).repeat_interleave(self.lengths)

    @cached_property
    def step(self) -> Tensor:
        """(N,) the time of each packed step."""
        return torch.arange(self.total, device=self.lengths.device) - self.start[self.row]

    @cached_property
    def index(self) -> Tensor:
        """(N,) position of each packed step in the padded steps, flattened (B * T,)."""
        return self.row * self.steps + self.step

    @cached_property
    def some(self) -> Tensor:
        """The sequences that have a step."""
        return (self.lengths > 0).nonzero()[:, 0]

    @property
    def first(self) -> Tensor:
        """Packed row of the first step of each sequence in `some`."""
        return self.start[self.some]

    @property
    def last(self) -> Tensor:
        """Packed row of the last step of each sequence in `some`."""
        return (self.start + self.lengths - 1)[self.some]

    @property
    def followed(self) -> Tensor:
        """Packed rows after which the same sequence goes on, in the next row."""
        going = torch.ones(self.total, dtype=torch.bool, device=self.lengths.device)
        going[self.last] = False
        return going.nonzero()[:, 0]

    @property
    def running(self) -> Tensor:
        """(B, T), True at steps that there are."""
        return torch.arange(self.steps, device=self.lengths.device) < self.lengths[:, None]

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) to (N, ...)."""
        flat = x.flatten(0, 1)
        return flat if self.uniform else flat[self.index]

    def unpack(self, v: Tensor, fill: float = 0.0) -> Tensor:
        """(N, ...) to (B, T, ...), with `fill` beyond the ends."""
        if self.uniform:
            return v.view(self.count, self.steps, *v.shape[1:])
        out = v.new_full((self.count * self.steps, *v.shape[1:]), fill)
        out[self.index] = v
        return out.view(self.count, self.steps, *v.shape[1:])

    def per_sequence(self, v: Tensor) -> Tensor:
        """Sums over time of (N,), (B,)."""
        return v.new_zeros(self.count).index_add_(0, self.row, v)

    def only(self, which: Tensor) -> tuple[Packed, Tensor]:
        """The layout of some of the sequences, (M,) ascending, and the packed rows they hold."""
        chosen = torch.zeros(self.count, dtype=torch.bool, device=which.device)
        chosen[which] = True
        return Packed(self.lengths[which], self.steps), chosen[self.row].nonzero()[:, 0]
