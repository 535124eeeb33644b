"""Rows that are not equal but nearly: the same photograph saved twice, the same person with a corrected field.

Two different rows are near duplicates if they are closer than a twentieth of the median distance of a row to
its nearest different row, in standardised features. For independent rows from a density in d dimensions that
happens to a share 1 - 2^-(0.05^d) of them: 3 % for d = 1 (which is not searched), 0.2 % for d = 2, and
practically never above.

The search is bounded: 2,000 rows are looked up among at most 20,000 (fewer where a row is wide), in at most 64
dimensions (a random projection keeps distances to about a tenth).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from protea.rng import Streams, permutation
from protea.space import Space

RATIO = 0.05
QUERIES, CANDIDATES, DIMENSIONS = 2_000, 20_000, 64
NUMBERS = 20_000_000  # of features held at once


@dataclass(frozen=True)
class NearDuplicates:
    """What the search found.

    Args:
        searched: rows looked up.
        found: those with a near duplicate.
        straddling: of those, how many have it in another part of the split.
        threshold: the distance below which two rows count.
        pairs: up to 8 pairs of row numbers, closest first.
    """

    searched: int
    found: int
    straddling: int
    threshold: float
    pairs: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "pairs": [list(pair) for pair in self.pairs]}


def near_duplicates(space: Space, x: Tensor, rows: Tensor, part: Tensor) -> NearDuplicates:
    """Search distinct rows for near duplicates.

    Args:
        space: gives the features.
        x: (N, *event) canonical rows.
        rows: (M,) numbers of rows with distinct contents.
        part: (N,) part of the split of each row.
    """
    rows = rows[permutation(len(rows), 0, "near duplicates")]
    width = space.features(x[rows[:1]]).shape[1]
    rows = rows[: min(CANDIDATES, max(QUERIES, NUMBERS // max(width, 1)))]
    f = space.features(x[rows])
    if len(rows) < 3 or f.shape[1] < 2:
        return NearDuplicates(0, 0, 0, 0.0, ())
    f = standardise(f)
    if f.shape[1] > DIMENSIONS:
        f = f @ (Streams(0, width).normal(DIMENSIONS) / DIMENSIONS**0.5)
    near, who = [], []
    squares = (f * f).sum(1)
    for start in range(0, min(QUERIES, len(f)), 500):
        q = f[start : start + 500]
        q = q[: QUERIES - start]
        d = squares[start : start + len(q), None] + squares - 2 * q @ f.T
        d[torch.arange(len(q)), torch.arange(start, start + len(q))] = torch.inf
        value, index = d.min(1)
        near.append(value)
        who.append(index)
    index = torch.cat(who)
    queries = torch.arange(len(index))
    distance = (f[queries] - f[index]).double().square().sum(1).sqrt()  # exact where the product cancels
    threshold = RATIO * float(distance.median())
    close = (distance <= threshold).nonzero()[:, 0]
    a, b = rows[close], rows[index[close]]
    order = torch.argsort(distance[close])
    seen = {tuple(sorted(pair)) for pair in zip(a[order][:16].tolist(), b[order][:16].tolist())}
    ranked = sorted(seen, key=lambda pair: _distance_of(pair, a, b, distance[close]))[:8]
    return NearDuplicates(len(index), len(close), int((part[a] != part[b]).sum()), threshold, tuple(ranked))


def _distance_of(pair: tuple[int, ...], a: Tensor, b: Tensor, distance: Tensor) -> float:
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return float(distance[(low == pair[0]) & (high == pair[1])].min())


def standardise(f: Tensor) -> Tensor:
    """Features with mean 0 and standard deviation 1, float32; NaN becomes the mean, constants 0."""
    mean = f.nanmean(0)
    f = torch.where(f.isnan(), mean, f) - mean
    scale = f.square().mean(0).sqrt()
    return (f / torch.where(scale > 1e-12 * (1 + mean.abs()), scale, torch.inf)).nan_to_num(0.0).float()
