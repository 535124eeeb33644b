r"""Documents packed into rows of T tokens, each of which a model reads at once.

A row holds T + 1 ids: the first T are read and the last T are predicted. Documents are told apart by the id that
begins each of them, so a row says all there is to know: which tokens see each other (`documents_of`), and which are
predicted (not the beginnings, and not padding).

*Cut*: the stream of all tokens, cut every T; nothing is padded, and documents are cut where they happen to cross.
*Fit*: whole documents, best-fit decreasing (Ding et al. 2024, "Fewer truncations improve language modeling"): only
documents longer than a row are cut, and a few per cent of the tokens are padding.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from protea.data.shards import TokenShards
from protea.errors import ConfigError
from protea.space import Rows

PAD = -1  # in place of an id, at the end of a row


class PackedRows:
    """Rows of packed documents, read from disk when asked for; what `fit` learns a language from.

    A row depends on its number alone, so order and resume are the training loop's (a function of seed and step).

    Args:
        shards: the tokens.
        spans: for each row the pieces it holds, as (row, start, stop) in ascending rows; see `cut` and `best_fit`.
        length: T.
    """

    def __init__(self, shards: TokenShards, spans: np.ndarray, length: int) -> None:
        self.shards, self.spans, self.length = shards, spans, length
        self.n = int(spans[-1, 0]) + 1
        self.first = np.searchsorted(spans[:, 0], np.arange(self.n + 1))
        self.x = torch.empty(0, length + 1, dtype=torch.int64)  # whose device says where rows are

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Tensor | slice) -> Rows:
        ids = torch.arange(self.n)[index]
        x = np.full((len(ids), self.length + 1), PAD, np.int64)
        for row, i in zip(x, ids.tolist()):
            place = 0
            for _, start, stop in self.spans[self.first[i] : self.first[i + 1]]:
                row[place : place + stop - start] = self.shards.read(start, stop)
                place += stop - start
        return Rows(torch.from_numpy(x), None, ids)


def cut(shards: TokenShards, length: int) -> PackedRows:
    """Row i is tokens i T .. i T + T of the stream (its last token is the next row's first); a tail is dropped.

    Raises:
        ConfigError: fewer tokens than one row.
    """
    n = (len(shards) - 1) // length
    if n < 1 or length < 1:
        raise ConfigError(f"{len(shards)} tokens do not fill a row of {length}.", "Give more text, or shorter rows.")
    i = np.arange(n, dtype=np.int64)
    return PackedRows(shards, np.stack([i, i * length, i * length + length + 1], 1), length)


def best_fit(shards: TokenShards, length: int) -> PackedRows:
    """Documents as whole as can be: the longest first, each into the fullest row with room for it."""
    rows = fit_rows(shards.documents, length)
    return PackedRows(shards, rows, length)


def fit_rows(documents: np.ndarray, length: int) -> np.ndarray:
    """The plan of `best_fit`: (pieces, 3) of (row, start, stop).

    Args:
        documents: where they start, and the end of the last.
        length: T; a row has room for T + 1 ids.

    >>> fit_rows(np.array([0, 4, 6, 9]), 5).tolist()  # documents of 4, 2 and 3 tokens into rows of 6
    [[0, 0, 4], [0, 4, 6], [1, 6, 9]]
    """
    room = length + 1
    if room < 2:
        raise ConfigError(f"Rows of {length} tokens hold nothing.", "Ask for at least 1.")
    pieces = [(a, min(a + room, stop)) for start, stop in pairwise(documents)
              for a in range(int(start), int(stop), room) if min(a + room, stop) - a > 1]  # fmt: skip
    pieces.sort(key=lambda piece: (piece[0] - piece[1], piece[0]))
    free: list[tuple[int, int]] = []  # (room left, row), ascending
    found, rows = [], 0
    for start, stop in pieces:
        at = bisect_left(free, (stop - start, -1))
        left, row = free.pop(at) if at < len(free) else (room, rows)
        rows += row == rows
        found.append((row, start, stop))
        if left - (stop - start) > 1:
            insort(free, (left - (stop - start), row))
    return np.array(sorted(found), np.int64).reshape(-1, 3)


def documents_of(tokens: Tensor, begin: int) -> Tensor:
    """(B, T) numbers of the documents of packed rows: one more at every `begin`; padding is a document of its own.

    >>> documents_of(torch.tensor([[7, 0, 5, 5, 0, 5, PAD]]), begin=0).tolist()
    [[0, 1, 1, 1, 2, 2, -1]]
    """
    return (tokens == begin).cumsum(1).masked_fill(tokens == PAD, -1)
