"""A verdict in plain words: what a row's figures say, worst first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protea.evaluation.figure import Figure

FAIR = 0.75  # a classifier that is right less often than this still leaves much in common
FEW = 30  # held-out rows below which a classifier decides nothing


def verdict(
    metrics: Mapping[str, Figure], audit: Mapping[str, Any], *, improving: bool = False, failed: str = "",
    ceiling: Mapping[str, Figure] | None = None,
) -> str:  # fmt: skip
    """One line for a person.

    Args:
        metrics, audit: of the row's `Judgement`.
        improving: the held-out figure was still getting better when the budget ended.
        failed: why the model could not be trained or sampled.
        ceiling: metrics of the real held-out row: what a classifier reaches between real rows.

    >>> verdict({}, {"modes": [3, 8]})
    'collapsing: 3 of 8 modes'
    """
    if failed:
        return f"failed: {failed}"
    said = []
    if audit.get("passed") is False:
        said.append(f"memorises: {_percent(audit['copies'])} of samples closer to train than 99 % of holdout")
    covered, modes = audit.get("modes") or (0, 0)
    if covered < modes:
        said.append(f"collapsing: {covered} of {modes} modes")
    repeats, own = metrics.get("duplicates"), (ceiling or {}).get("duplicates")
    if repeats and repeats.low > max(0.05, 2 * own.high if own else 0.0):
        said.append(f"collapsing: {_percent(repeats.value)} of samples repeat another one")
    if (accuracy := metrics.get("c2st_accuracy")) is not None:
        said.append(_closeness(accuracy, (ceiling or {}).get("c2st_accuracy")))
    if improving:
        said.append("budget-limited: still improving")
    return "; ".join(said) if said else "not judged"


def _closeness(accuracy: Figure, real: Figure | None) -> str:
    share = _percent(accuracy.value)
    n = accuracy.protocol.get("n_real")
    if isinstance(n, int) and n < FEW:
        return f"undecided: only {n} held-out rows to compare with (a classifier is {share} right)"
    ceiling = max(0.5, real.value if real else 0.5)  # real rows of a small or shifting set may be told apart too
    within = accuracy.low <= max(ceiling, real.high if real else 0.5)
    if within and accuracy.value < ceiling + FAIR - 0.5:
        return f"good: indistinguishable from held-out data by a classifier ({share} right, 50 % is a guess)"
    if accuracy.value < ceiling + FAIR - 0.5:
        return f"fair: a classifier tells samples from data with {share} accuracy"
    return f"poor: a classifier tells samples from data with {share} accuracy"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
