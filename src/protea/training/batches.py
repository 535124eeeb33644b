"""The data's order as a function of (seed, step), so that a resume needs only the step."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from protea.core import Batch
from protea.errors import ConfigError, DataError
from protea.rng import Streams, fold, permutation
from protea.space import Rows
from protea.training import parallel


class Source(Protocol):
    """Rows that may lie on a disk: numbered 0 .. n-1, read when asked for (`Rows` are one)."""

    @property
    def x(self) -> Tensor: ...  # only its device is asked for

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Rows: ...


class Batches:
    """Global batch of any step: a slice of the epoch's permutation, of which rank r gets the rows r::world.

    An epoch of n rows has ceil(n / size) batches of nearly equal size (they differ by one row at most),
    so every row is seen once an epoch and no last batch is tiny.

    >>> rows = Rows(torch.arange(10), None, torch.arange(10))
    >>> batches = Batches(rows, 4, seed=0)
    >>> batches.per_epoch, [len(batches(step).x) for step in range(3)]
    (3, [4, 3, 3])
    >>> sorted(int(i) for step in range(3) for i in batches(step).x) == list(range(10))
    True
    """

    def __init__(self, rows: Rows | Source, size: int, seed: int, device: torch.device | str = "cpu") -> None:
        if len(rows) == 0:
            raise DataError(
                "There are no training rows.", "Give more data, or a smaller share for validation and holdout."
            )
        if size < 1:
            raise ConfigError(f"The batch size must be at least 1, not {size}.")
        self.rows, self.seed, self.device = rows, seed, torch.device(device)
        self.size = min(size, len(rows))
        self.per_epoch = -(-len(rows) // self.size)
        if len(rows) // self.per_epoch < parallel.data_world():
            raise ConfigError(
                f"A batch of {self.size} rows cannot be shared by {parallel.data_world()} processes.",
                "Raise --batch-size or use fewer processes.",
            )
        self._epoch, self._order = -1, torch.empty(0)

    def __call__(self, step: int) -> Batch:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = permutation(len(self.rows), self.seed, "epoch", epoch)
            self._epoch, self._order = epoch, order.tensor_split(self.per_epoch)
        index = self._order[place][parallel.data_rank() :: parallel.data_world()].to(self.rows.x.device)
        rows = self.rows[index]
        rng = Streams(fold(self.seed, "step", step), rows.ids, self.device)
        return Batch(rows.x.to(self.device), None if rows.y is None else rows.y.to(self.device), rng)


def default_size(n: int) -> int:
    """A batch size for n rows: a power of two near n / 20, from 32 to 256.

    >>> default_size(500), default_size(2000), default_size(10**6)
    (32, 64, 256)
    """
    return max(32, min(256, 2 ** ((max(n, 1) // 20).bit_length() - 1 if n >= 20 else 5)))
