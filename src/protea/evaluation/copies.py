r"""Does the model hand out its training rows?

For a sample s let d_T be the distance to its nearest training row and d_H that to its nearest held-out
row. A model that learnt the distribution owes no more to the one set than to the other; a copier sits
on top of T. The ratio rho(s) = d_T / d_H forgets how far apart rows lie where s happens to fall.

*Share.* Fresh real rows have ratios too (validation rows, and each held-out row against the others). The share
of samples with a ratio below the 1 % quantile of those is the headline: 1 % is expected.

*Test.* If the samples owe nothing to which rows were trained on, then the rows of T and H are exchangeable. We
deal the same rows anew into a "train" and a "holdout" of the same sizes, many times, and ask how often the samples
sink as deep below the threshold, sum_i min(5, max(0, log threshold - log rho_i)): an exact one-sided p-value,
for any sampler, however bad its samples are. It is an audit of copying, not of quality. A model is
flagged when p <= 0.01 and the whole interval of the share is above twice what is expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from protea.evaluation.diversity import repeated, row_keys
from protea.evaluation.figure import REPLICATES, Figure, mean_figure
from protea.rng import permutation

EXPECTED = 0.01  # share of honest samples below the threshold
ALPHA = 0.01  # false-alarm rate
NEIGHBOURS = 64
MOST_NULL = 500  # real rows of each kind from which the threshold is read
DEPTH = 5.0  # a sample counts at most this much: exact copies do not drown near ones
PERMUTATIONS = 199


def equal_to_any(samples: Tensor, rows: Tensor) -> Tensor:
    """(n,) whether a sample (n, *event) equals one of the rows exactly (NaN equals NaN).

    >>> equal_to_any(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [3.0]])).tolist()
    [False, True]
    """
    return torch.from_numpy(np.isin(row_keys(samples), row_keys(rows)))


class Pair(NamedTuple):
    """A sample, the training row it is closest to, and its nearest held-out row for scale."""

    sample: int
    train: int
    distance: float
    holdout: int
    holdout_distance: float


@dataclass(frozen=True)
class Copies:
    """The finding of the audit.

    Args:
        share: samples closer to training rows than 99 % of fresh real rows are, with interval.
        p_value: how often so large a share arises when train and holdout are dealt anew.
        flagged: the audit fails.
        exact_train, exact_holdout: samples that equal a training row, a held-out row.
        pairs: the closest pairs, worst first, each training row once.
    """

    share: Figure
    p_value: float
    flagged: bool
    exact_train: int
    exact_holdout: int
    pairs: list[Pair]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "passed": not self.flagged, "copies": self.share.value, "expected": EXPECTED, "p_value": self.p_value,
            "alpha": ALPHA, "exact_copies": self.exact_train, "exact_holdout": self.exact_holdout,
            "pairs": [pair._asdict() for pair in self.pairs],
        }  # fmt: skip


def copies(
    samples: Tensor,
    train: Tensor,
    holdout: Tensor,
    fresh: Tensor | None = None,
    protocol: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    replicates: int = REPLICATES,
) -> Copies:
    """Audit features of samples (n, F) against training (N, F) and held-out rows (m, F).

    Args:
        fresh: further real rows the model was not fitted on (the validation rows).
        permutations: how many times train and holdout are dealt anew; p is at least 1 / (permutations + 1).

    A few dozen samples are needed before a copier can be told from chance; take 200 or more.
    """
    rows = [(~repeated(x)).nonzero()[:, 0] for x in (train, holdout)]  # duplicates would not be exchangeable
    pool = torch.cat((train[rows[0]], holdout[rows[1]])).double()
    n_train = len(rows[0])
    is_holdout = torch.arange(len(pool)) >= n_train
    near, d = _neighbours(samples.double(), pool)
    tiny = 1e-9 * float(d[:, -1].median()) + 1e-300
    held = torch.arange(n_train, len(pool))[:MOST_NULL]
    null = [_ratio(*_neighbours(pool[held], pool, skip_self=held), is_holdout, tiny)]
    if fresh is not None and len(fresh):
        null.append(_ratio(*_neighbours(fresh[:MOST_NULL].double(), pool), is_holdout, tiny))
    threshold = torch.quantile(torch.cat(null), EXPECTED, interpolation="lower")

    ratio = _ratio(near, d, is_holdout, tiny)
    below = ratio < threshold
    share = mean_figure(below, {**(protocol or {}), "n_train": n_train}, seed=seed, replicates=replicates)

    def depth(r: Tensor) -> float:
        return float((threshold.log() - r.log()).clamp(0, DEPTH).sum())

    dealt = (is_holdout[permutation(len(pool), seed, "deal", i)] for i in range(permutations))
    as_deep = sum(depth(_ratio(near, d, side, tiny)) >= depth(ratio) for side in dealt)
    p_value = (1 + as_deep) / (1 + permutations)

    first_train, first_holdout = _first(near, ~is_holdout[near]), _first(near, is_holdout[near])
    zero = d == 0
    return Copies(
        share=share,
        p_value=p_value,
        flagged=p_value <= ALPHA and share.low > 2 * EXPECTED,
        exact_train=int((zero & ~is_holdout[near]).any(1).sum()),
        exact_holdout=int((zero & is_holdout[near]).any(1).sum()),
        pairs=_closest(ratio, near, d, first_train, first_holdout, rows[0], rows[1]),
    )


def _neighbours(x: Tensor, pool: Tensor, skip_self: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest rows of the pool, nearest first: numbers and distances (n, K).

    Candidates come from fast float32 products; their distances are then exact, so that a copy is at 0.
    """
    k = min(NEIGHBOURS, len(pool) - (skip_self is not None))
    centre = pool.mean(0)
    p = (pool - centre).float()
    p2 = p.square().sum(1)
    near, far = [], []
    step = max(1, int(2e7 / max(len(pool), k * pool.shape[1])))
    for start in range(0, len(x), step):
        block = x[start : start + step]
        score = p2 - 2 * ((block - centre).float() @ p.mT)
        if skip_self is not None:
            score[torch.arange(len(block)), skip_self[start : start + step]] = torch.inf
        candidate = score.topk(k, dim=1, largest=False).indices
        d, order = (pool[candidate] - block[:, None]).norm(dim=2).sort(dim=1, stable=True)
        near.append(candidate.gather(1, order))
        far.append(d)
    return torch.cat(near), torch.cat(far)


def _first(near: Tensor, wanted: Tensor) -> Tensor:
    """(n,) the position of the first wanted neighbour, or the last position where there is none."""
    position = wanted.int().argmax(1)
    return torch.where(wanted.any(1), position, near.shape[1] - 1)


def _ratio(near: Tensor, d: Tensor, is_holdout: Tensor, tiny: float) -> Tensor:
    """rho = d_T / d_H, (n,); 1 where both are 0."""
    held = is_holdout[near]
    d_t, d_h = (d.gather(1, _first(near, side)[:, None])[:, 0] for side in (~held, held))
    return (d_t + tiny) / (d_h + tiny)


def _closest(
    ratio: Tensor,
    near: Tensor,
    d: Tensor,
    t: Tensor,
    h: Tensor,
    train_rows: Tensor,
    held_rows: Tensor,
    most: int = 8,
) -> list[Pair]:
    pairs: list[Pair] = []
    seen: set[int] = set()
    d_t = d.gather(1, t[:, None])[:, 0]
    for i in np.lexsort((d_t.numpy(), ratio.numpy())).tolist():
        row, other = int(near[i, t[i]]), int(near[i, h[i]])
        if row >= len(train_rows) or row in seen:
            continue
        seen.add(row)
        held = int(held_rows[other - len(train_rows)]) if other >= len(train_rows) else -1
        pairs.append(Pair(i, int(train_rows[row]), float(d_t[i]), held, float(d[i, h[i]])))
        if len(pairs) == most:
            break
    return pairs
