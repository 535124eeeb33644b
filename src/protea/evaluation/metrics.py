"""The table of metrics: fixed names, which way is better, and which ones the overall rank is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        better: "low", "high"; "half": 0.5 is the best; "real": the held-out data's own value is the best.
        kinds: the spaces in which it is part of the overall rank.
        ratio: compared on a logarithmic scale (an unbounded distance that is positive for real data too).
    """

    better: Literal["low", "high", "half", "real"]
    kinds: frozenset[str] = frozenset()
    ratio: bool = False


ALL = frozenset({"vector", "table", "image", "tokens", "series"})
TABLE, TOKENS = frozenset({"table"}), frozenset({"tokens"})

METRICS: dict[str, Metric] = {
    "c2st_accuracy": Metric("half", ALL),
    "frechet": Metric("low", ALL, ratio=True),
    "precision": Metric("high", ALL),
    "coverage": Metric("high", ALL),
    "column_error": Metric("low", TABLE),
    "association_error": Metric("low", TABLE),
    "bits_per_byte_ngram": Metric("real", TOKENS),
    "distinct_n": Metric("real", TOKENS),
    "self_bleu": Metric("real"),
    "mmd": Metric("low"),
    "sliced_wasserstein": Metric("low"),
    "kernel_distance": Metric("low"),
    "recall": Metric("high"),
    "density": Metric("high"),
    "vendi": Metric("real"),
    "duplicates": Metric("real"),
    "tstr_accuracy": Metric("high"),
    "trtr_accuracy": Metric("high"),
    "tstr_auc": Metric("high"),
    "trtr_auc": Metric("high"),
    "tstr_r2": Metric("high"),
    "trtr_r2": Metric("high"),
    "copies": Metric("low"),
    "gap": Metric("low"),
}


def ranking(kind: str) -> list[str]:
    """The metrics that make up the rank for one kind of space.

    >>> ranking("image")
    ['c2st_accuracy', 'frechet', 'precision', 'coverage']
    """
    return [name for name, metric in METRICS.items() if kind in metric.kinds]
