r"""k-means++ seeding and Lloyd's iterations, for where mixtures start.

Arthur & Vassilvitskii 2007, "k-means++: the advantages of careful seeding": each next centre is a row drawn with
probability proportional to its squared distance to the nearest centre so far. As the authors advise, several are drawn
and the one that lowers the sum of squared distances most is kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protea.rng import Streams

SEEDING = 20_000  # rows that centres are chosen from


def kmeans(x: Tensor, ids: Tensor, k: int, seed: int, steps: int = 10) -> tuple[Tensor, Tensor]:
    """Centres (k, D) and the nearest one of each row, (N,).

    Args:
        x: rows (N, D), float64.
        ids: fixed row numbers (N,); they, and not the rows' order, decide the random choices.
        k: number of centres; with fewer distinct rows than that some centres coincide.
        seed: of the choices.
        steps: Lloyd iterations.
    """
    # The Gumbel trick with one uniform a row: argmax of log d^2 + g is a draw proportional to d^2.
    pool = Streams(seed, ids).uniform(1, dtype=torch.float64)[:, 0].to(x.device).argsort()[:SEEDING]
    rows, streams = x[pool], Streams(seed, ids[pool.cpu()]).child("gumbel")
    squared = (rows * rows).sum(1)
    distance = torch.full((len(rows),), 1e150, dtype=x.dtype, device=x.device)
    trials = 2 + int(math.log(k))
    chosen = []
    for _ in range(k):
        gumbel = -torch.log(-torch.log(streams.uniform(1, dtype=torch.float64)[:, 0])).to(x.device)
        weight = distance if bool((distance > 0).any()) else torch.ones_like(distance)
        j = (weight.log() + gumbel).topk(min(trials, len(rows))).indices
        apart = (squared + squared[j, None] - 2 * rows[j] @ rows.T).clamp(min=0)  # (trials, rows)
        apart[torch.arange(len(j)), j] = 0.0
        apart = torch.minimum(distance, apart)
        best = int(apart.sum(1).argmin())
        chosen.append(int(j[best]))
        distance = apart[best]
    centres = rows[chosen]
    for _ in range(steps):
        label = assign(rows, centres)
        count = torch.bincount(label, minlength=k).to(x.dtype)
        moved = torch.zeros_like(centres).index_add_(0, label, rows) / count.clamp(min=1)[:, None]
        moved = torch.where(count[:, None] > 0, moved, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres, assign(x, centres)


def assign(x: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each row, (N,)."""
    half = 0.5 * (centres * centres).sum(1)
    return torch.cat([(part @ centres.T - half).argmax(1) for part in x.split(1 << 16)])
