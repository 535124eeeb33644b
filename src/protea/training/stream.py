"""Learning from an array that need not fit in memory: a `.npy` file read in blocks, in its own order.

Exact EM does not mind the order of rows, so one pass of sequential reads is one iteration, and memory does not grow
with the file. Under several processes rank r reads blocks r, r + world, ...; sums over ranks make the iterates equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protea.core import Batch, Learner
from protea.errors import DataError
from protea.rng import Streams, fold
from protea.space import Rows
from protea.training import parallel


class NpyStream:
    """Rows of a `.npy` file of shape (N, *event), C order.

    Args:
        path: the file.
        block: rows that are read at once.

    Raises:
        DataError: no such file, an object or Fortran-ordered array, or no rows.
    """

    def __init__(self, path: Path | str, block: int = 1 << 16) -> None:
        self.path, self.block = Path(path), block
        try:
            held = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} is no array that can be streamed ({error}).", "Write it by numpy.save."
            ) from None
        if not isinstance(held, np.memmap) or not held.flags.c_contiguous or held.ndim < 1 or len(held) == 0:
            raise DataError(f"{self.path} is not a C-ordered array with rows.", "Write it by numpy.save.")
        self.shape, self.dtype, self.offset = held.shape, held.dtype, int(held.offset)
        self.items = int(np.prod(self.shape[1:], dtype=np.int64))  # of a row

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1, in the file's dtype."""
        # Plain reads: pages of a memory map would count as this process's memory.
        with self.path.open("rb") as file:
            file.seek(self.offset + start * self.items * self.dtype.itemsize)
            flat = np.fromfile(file, self.dtype, (stop - start) * self.items)
        return torch.from_numpy(flat.reshape(stop - start, *self.shape[1:]))

    def sample(self, n: int, seed: int = 0) -> Rows:
        """About n rows for a start, in evenly spread blocks whose place depends on the seed."""
        pieces = min(64, -(-len(self) // max(1, min(n, len(self)))) * 8, max(1, n))
        size = max(1, min(n, len(self)) // pieces)
        room = len(self) - size
        u = float(Streams(fold(seed, "stream"), 1).uniform(1)[0, 0])
        starts = sorted({int(room * ((i + u) / pieces)) for i in range(pieces)})
        x = torch.cat([self.read(s, s + size) for s in starts])
        ids = torch.cat([torch.arange(s, s + size) for s in starts])
        return Rows(x, None, ids)

    def epoch(self, step: int = 0, seed: int = 0) -> Iterator[Batch]:
        """This rank's blocks, in order."""
        for i in range(parallel.data_rank() * self.block, len(self), self.block * parallel.data_world()):
            stop = min(i + self.block, len(self))
            yield Batch(self.read(i, stop), None, Streams(fold(seed, "step", step), torch.arange(i, stop)))


def fit_stream(learner: Learner, stream: NpyStream, epochs: int, seed: int = 0) -> list[Mapping[str, float]]:
    """Passes over the stream until the learner converged or `epochs` are done; the figures of each."""
    history = []
    for epoch in range(epochs):
        figures: dict[str, float] = {}
        for batch in stream.epoch(epoch, seed):
            figures |= learner.step(batch)
        figures |= learner.end_epoch()
        history.append(figures)
        if learner.converged:
            break
    return history
