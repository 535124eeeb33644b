r"""Train, validation and holdout by the content of a row.

    u(row) = first 64 bits of sha256(seed | sha256(content)) / 2^64,   train where u < 0.8, validation
    where u < 0.9, holdout otherwise.

A row falls the same way on every machine, in every run and in any order of the file, and so do its exact
duplicates, which therefore never straddle the split; rows added later do not move the others. A label is no
part of the content: two copies of a picture with different labels stay together. With fewer than 200 distinct
rows a part could come out nearly empty; there, the sorted hashes are cut at the exact fractions instead.

Content is what the user sees, not how it is stored: a category is hashed by its name (not its code), a number
as its float64 bits with one zero and one missing value, and columns in the order of their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from protea.errors import DataError
from protea.space import Space
from protea.spaces import Table

FRACTIONS = (0.8, 0.1, 0.1)
SMALL = 200  # distinct rows below which fractions are exact
FEWEST = 10  # distinct rows below which there is nothing to learn from and to judge by


def digests(contents: Iterable[bytes | memoryview]) -> np.ndarray:
    """sha256 of each: (N, 4) big-endian words, uint64."""
    joined = b"".join(hashlib.sha256(content).digest() for content in contents)
    return np.frombuffer(joined, dtype=">u8").reshape(-1, 4).astype(np.uint64)


def row_keys(space: Space, x: Tensor) -> np.ndarray:
    """(N, 4) sha256 of the content of each row."""
    if isinstance(space, Table):
        values = space.values(x)
        order = sorted(space.columns, key=lambda column: str(column.name))
        matrix = np.stack([_bits(values[c.name], c.levels if c.coded else None) for c in order], 1)
    elif x.is_floating_point():
        matrix = _bits(x.cpu().double().numpy().reshape(len(x), -1), None)
    else:
        matrix = np.ascontiguousarray(x.cpu().numpy().reshape(len(x), -1))
    rows = np.ascontiguousarray(matrix.astype(matrix.dtype.newbyteorder("<")))
    return digests(memoryview(row) for row in rows)


def _bits(x: np.ndarray, levels: tuple | None) -> np.ndarray:
    if levels is None:
        x = np.where(np.isnan(x), np.nan, x + 0.0)  # one NaN, one zero
        return x.astype(np.float64).view(np.uint64)
    named = [f"{type(level).__name__} {level}".encode() for level in levels] + [b"missing"]
    table = np.array([int.from_bytes(hashlib.sha256(n).digest()[:8], "little") for n in named], dtype=np.uint64)
    return table[np.where(np.isnan(x), len(levels), np.nan_to_num(x)).astype(np.int64)]


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows by key: the first row of each distinct key in the order of the keys, and each row's place among them."""
    order = np.lexsort(tuple(keys.T[::-1]))  # stable: the first of equal rows comes first
    new = np.ones(len(keys), dtype=bool)
    new[1:] = (keys[order][1:] != keys[order][:-1]).any(1)
    place = np.empty(len(keys), dtype=np.int64)
    place[order] = np.cumsum(new) - 1
    return order[new], place


def assign(keys: np.ndarray, seed: int = 0, fractions: tuple[float, float, float] = FRACTIONS) -> np.ndarray:
    """(N,) 0, 1 or 2 for train, validation or holdout.

    Raises:
        DataError: fewer than 10 distinct rows.
    """
    first, place = distinct(keys)
    if len(first) < FEWEST:
        raise DataError(
            f"There are {len(keys)} rows, of which {len(first)} are distinct: too few to split into train, "
            "validation and holdout.",
            f"Give at least {FEWEST} distinct rows.",
        )
    salt = f"protea split {int(seed)}:".encode()
    words = digests(salt + key.astype(">u8").tobytes() for key in keys[first])[:, 0]
    cuts = np.cumsum(fractions)[:2] / sum(fractions)
    if len(first) < SMALL:
        rank = np.argsort(np.argsort(words, kind="stable"), kind="stable")
        wanted = np.rint(cuts * len(first)).astype(np.int64)
        wanted[1] = min(max(wanted[1], wanted[0] + 1), len(first) - 1)
        wanted[0] = max(min(wanted[0], wanted[1] - 1), 1)
        part = np.searchsorted(wanted, rank, side="right")
    else:
        part = np.searchsorted(cuts, words / 2.0**64, side="right")
    return part[place]


def split_hash(keys: np.ndarray, part: np.ndarray) -> str:
    """sha256 over the distinct rows and their parts, whatever their order: equal hashes, equal splits."""
    first, _ = distinct(keys)
    rows = np.concatenate((keys[first], part[first, None].astype(np.uint64)), 1)
    return hashlib.sha256(rows.astype(">u8").tobytes()).hexdigest()


def fingerprint(space: Space, keys: np.ndarray, y: Tensor | None) -> str:
    """sha256 over the kind of data and its rows with their labels and multiplicities, whatever their order."""
    labels = np.zeros(len(keys), np.uint64) if y is None else (y.numpy() + 1).astype(np.uint64)
    rows = np.concatenate((keys, labels[:, None]), 1)
    rows = rows[np.lexsort(tuple(rows.T[::-1]))]
    head = f"{space.kind} {list(space.classes)}".encode()
    return hashlib.sha256(head + rows.astype(">u8").tobytes()).hexdigest()
