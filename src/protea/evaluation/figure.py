r"""Figures: a number, its 95 % bootstrap interval, and the protocol it was measured under.

The bootstrap (Efron 1979) draws rows with replacement. Its replicates are described by *weights*, the
number of times each row was drawn, so that a statistic which is a weighted sum over rows, or over
pairs of rows, needs one matrix product for all replicates.

A distance between two finite samples is biased upwards, and its replicates carry that bias twice.
`recentred` intervals therefore take only the *spread* from the replicates, around the value itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from protea.errors import ProtocolMismatch
from protea.rng import Streams, fold

LEVEL = 0.95
REPLICATES = 200
FREE = frozenset({"seed", "seeds", "sampling_seed"})  # two runs of one protocol may differ in these


@dataclass(frozen=True)
class Figure:
    """A measured number.

    Args:
        value: the number.
        low, high: its 95 % interval.
        protocol: everything another measurement must share to be comparable, as plain JSON values.

    >>> Figure(0.5, 0.4, 0.6, {"n": 100}).to_json()
    {'value': 0.5, 'low': 0.4, 'high': 0.6, 'protocol': {'n': 100}}
    """

    value: float
    low: float
    high: float
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite becomes null."""
        ends = {
            k: v if math.isfinite(v) else None
            for k, v in (("value", self.value), ("low", self.low), ("high", self.high))
        }
        return {**ends, "protocol": dict(self.protocol)}

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def comparable(a: Figure, b: Figure) -> None:
    """Refuse to compare figures of different protocols (the seed alone may differ).

    Raises:
        ProtocolMismatch: naming the entries that differ.

    >>> comparable(Figure(1, 0, 2, {"n": 10}), Figure(1, 0, 2, {"n": 20}))
    Traceback (most recent call last):
    protea.errors.ProtocolMismatch: Measured differently: n is 10 against 20. Measure both in the same way.
    """
    keys = sorted((set(a.protocol) | set(b.protocol)) - FREE)
    differ = [k for k in keys if a.protocol.get(k) != b.protocol.get(k)]
    if differ:
        what = "; ".join(f"{k} is {a.protocol.get(k)!r} against {b.protocol.get(k)!r}" for k in differ)
        raise ProtocolMismatch(f"Measured differently: {what}.", "Measure both in the same way.")


def resample(n: int, replicates: int, seed: int, *tags: int | str) -> Tensor:
    """(replicates, n) row numbers drawn with replacement; a function of the seed and the tags alone."""
    u = Streams(fold(seed, "bootstrap", *tags), replicates).uniform(n)
    return (u * n).long().clamp(max=n - 1)


def resample_weights(n: int, replicates: int, seed: int, *tags: int | str) -> Tensor:
    """(replicates, n) float64: how often each row was drawn; every row of the result sums to n."""
    index = resample(n, replicates, seed, *tags)
    return torch.zeros(replicates, n, dtype=torch.float64).scatter_add_(
        1, index, torch.ones(index.shape, dtype=torch.float64)
    )


def percentile_interval(replicates: Tensor, level: float = LEVEL) -> tuple[float, float]:
    """The central `level` of the replicates (B,)."""
    q = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(replicates.double(), q).tolist()
    return low, high


def recentred_interval(
    value: float, replicates: Tensor, *, floor: float = -math.inf, ceiling: float = math.inf, level: float = LEVEL
) -> tuple[float, float]:
    """`value` plus the central `level` of the replicates' deviations from their own mean, clipped to the range."""
    low, high = percentile_interval(replicates - replicates.mean(), level)
    return max(min(value + low, value), floor), min(max(value + high, value), ceiling)


def bca_interval(value: float, replicates: Tensor, jackknife: Tensor, level: float = LEVEL) -> tuple[float, float]:
    r"""The bias-corrected and accelerated interval (Efron 1987, "Better bootstrap confidence intervals").

    Args:
        value: the statistic of all rows.
        replicates: (B,) the statistic of each bootstrap draw.
        jackknife: (n,) the statistic without row i.
    """
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    r = replicates.double()
    share = ((r < value).double().mean() + (r <= value).double().mean()) / 2
    z0 = normal.icdf(share.clamp(1 / (2 * len(r)), 1 - 1 / (2 * len(r))))
    d = jackknife.double().mean() - jackknife.double()
    denominator = 6 * d.square().sum() ** 1.5
    a = d.pow(3).sum() / denominator if denominator > 0 else torch.zeros(())
    z = normal.icdf(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    low, high = torch.quantile(r, normal.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))).tolist()
    return low, high


def mean_figure(
    values: Tensor, protocol: Mapping[str, Any] | None = None, *, seed: int = 0, replicates: int = REPLICATES,
    weights: Tensor | None = None,
) -> Figure:  # fmt: skip
    """The mean of per-row values (n,) with the percentile interval of its bootstrap over rows.

    Args:
        weights: (n,) how much each row holds; a ratio of totals is then drawn anew, total and size together.

    >>> str(mean_figure(torch.tensor([2.0, 2.0, 2.0])))
    '2 [2, 2]'
    """
    v = values.detach().cpu().double()
    drawn = resample_weights(len(v), replicates, seed, "mean")
    if weights is None:
        means, value = drawn @ v / len(v), float(v.mean())
    else:
        w = weights.detach().cpu().double()
        means, value = drawn @ (v * w) / (drawn @ w), float((v * w).sum() / w.sum())
    low, high = percentile_interval(means)
    return Figure(value, low, high, describe(protocol, replicates, "percentile"))


def describe(protocol: Mapping[str, Any] | None, replicates: int, interval: str, **facts: Any) -> dict[str, Any]:
    """The protocol of a figure: what the caller knows, how the interval was made, and further facts."""
    return {**(protocol or {}), **facts, "interval": f"95 % bootstrap, {interval}", "replicates": replicates}


def over_seeds(figures: Sequence[Figure]) -> Figure:
    """One figure from repeats with other seeds: the mean, with within- and between-seed variance added.

    The within-seed part is not divided by the number of seeds: all seeds share the same held-out rows.
    """
    first = figures[0]
    if len(figures) == 1:
        return first
    for other in figures[1:]:
        comparable(first, other)
    s = len(figures)
    value = math.fsum(f.value for f in figures) / s
    between = math.fsum((f.value - value) ** 2 for f in figures) / (s - 1) / s * 1.96**2
    below = math.sqrt(math.fsum((f.value - f.low) ** 2 for f in figures) / s + between)
    above = math.sqrt(math.fsum((f.high - f.value) ** 2 for f in figures) / s + between)
    return Figure(value, value - below, value + above, {**first.protocol, "seeds": s})
