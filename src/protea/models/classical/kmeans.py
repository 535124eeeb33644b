r"""k-means++ seeding and Lloyd's iterations, for where mixtures start.

Arthur & Vassilvitskii 2007, "k-means++: the advantages of careful seeding": each next centre is a row drawn with
probability proportional to its squared distance to the nearest centre so far.
"""

from __future__ import annotations

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
    distance = torch.ones(len(rows), dtype=x.dtype, device=x.device)
    chosen = []
    for _ in range(k):
        gumbel = -torch.log(-torch.log(streams.uniform(1, dtype=torch.float64)[:, 0])).to(x.device)
        weight = distance if bool((distance > 0).any()) else torch.ones_like(distance)
        j = int((weight.log() + gumbel).argmax())
        chosen.append(j)
        apart = (squared + squared[j] - 2 * rows @ rows[j]).clamp(min=0)
        apart[j] = 0.0
        distance = apart if len(chosen) == 1 else torch.minimum(distance, apart)
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
