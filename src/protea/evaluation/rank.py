r"""Ranks that share places where intervals overlap.

*Gap.* Each metric of the rank is put on the scale of the null rows, 0 where real held-out data stands (c) and
1 where shuffled marginals stand (f),

    g = (v - c) / (f - c),      on logarithms for the Fréchet distance,

clipped to [0, 2]; where the real value itself is the aim, g = |v - c| / |f - c|. A row's gap is the plain mean over the
metrics, and so are the ends of its interval, as if all metrics erred together: wide rather than bold. A metric by
which real and shuffled data cannot be told apart says nothing and is left out. The gap of a row depends on the
null rows alone, never on which other models took part.

*Rank.* [1 + rows certainly better, rows - rows certainly worse], certain meaning that the intervals do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from protea.evaluation.figure import Figure, comparable
from protea.evaluation.likelihood import Likelihood
from protea.evaluation.metrics import METRICS, ranking

CAP = 2.0


def gap(
    metrics: Mapping[str, Figure], ceiling: Mapping[str, Figure], floor: Mapping[str, Figure], kind: str
) -> Figure | None:
    """Where a row stands between real held-out data (0) and shuffled marginals (1); None when nothing can be said.

    Raises:
        ProtocolMismatch: a figure and the null rows' were measured differently.
    """
    parts: list[tuple[float, float, float]] = []
    used = []
    for name in ranking(kind):
        if not all(name in row for row in (metrics, ceiling, floor)):
            continue
        v, c, f = metrics[name], ceiling[name], floor[name]
        comparable(v, c)
        comparable(v, f)
        if (part := _position(name, v, c, f)) is not None:
            parts.append(part)
            used.append(name)
    if not parts:
        return None
    value, low, high = (math.fsum(p[i] for p in parts) / len(parts) for i in range(3))
    split = next(iter(metrics.values())).protocol.get("split")
    return Figure(
        value, low, high, {"split": split, "metrics": used, "scale": "0 real held-out data, 1 shuffled marginals"}
    )


def shared_ranks(figures: Sequence[Figure | None], better: str = "low") -> list[tuple[int, int] | None]:
    """For each figure the places [low, high] it may hold; None for rows without a figure.

    >>> shared_ranks([Figure(1, 0, 2), Figure(3, 1, 4), Figure(9, 8, 10), None])
    [(1, 2), (1, 2), (3, 3), None]
    """
    sign = 1.0 if better == "low" else -1.0
    ends = [None if f is None else sorted((sign * f.low, sign * f.high)) for f in figures]
    known = [e for e in ends if e is not None]
    return [
        None if e is None else (1 + sum(o[1] < e[0] for o in known), len(known) - sum(e[1] < o[0] for o in known))
        for e in ends
    ]


def likelihood_ranks(likelihoods: Sequence[Likelihood | None]) -> list[tuple[int, int] | None]:
    """Shared ranks by likelihood (lower is better), among rows of the same exactness and unit only.

    Exact figures rank among exact ones, bounds among bounds: a bound that looks worse may belong to a better model.
    """
    ranks: list[tuple[int, int] | None] = [None] * len(likelihoods)
    for group in {(k.exactness, k.unit) for k in likelihoods if k is not None}:
        mine = [i for i, k in enumerate(likelihoods) if k is not None and (k.exactness, k.unit) == group]
        for i, r in zip(mine, shared_ranks([likelihoods[i].figure for i in mine])):  # type: ignore[union-attr]
            ranks[i] = r
    return ranks


def _position(name: str, v: Figure, c: Figure, f: Figure) -> tuple[float, float, float] | None:
    """(value, low, high) on the null rows' scale, or None where the metric does not separate them."""
    metric = METRICS[name]

    def scale(x: float) -> float:
        if metric.better == "half":
            return max(x, 0.5)
        return math.log(max(x, 1e-12)) if metric.ratio else x

    zero, one = scale(c.value), scale(f.value)
    if abs(one - zero) < 1e-12 or (f.low <= c.high and c.low <= f.high):
        return None

    def put(x: float) -> float:
        g = (scale(x) - zero) / (one - zero)
        return abs(g) if metric.better == "real" else g

    ends = sorted((put(v.low), put(v.high)))
    if metric.better == "real" and (v.low - c.value) * (v.high - c.value) <= 0:
        ends[0] = 0.0
    value, low, high = (min(max(x, 0.0), CAP) for x in (put(v.value), *ends))
    return value, min(low, value), max(high, value)
