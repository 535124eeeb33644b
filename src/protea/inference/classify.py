r"""How good class probabilities are: accuracy, AUC, Brier score, log loss and calibration, with intervals.

With p (N, K) probabilities and y the labels,

    accuracy  mean of 1{argmax_k p_ik = y_i}
    log loss  mean of -log p_{i, y_i}, in nats                                    (proper: best at the true p(y|x))
    Brier     mean of sum_k (p_ik - 1{y_i = k})^2; of two classes, (p_i1 - y_i)^2  (proper; Brier 1950)
    AUC       P(score of a positive > score of a negative) + half the ties; of K > 2 classes the mean over classes
              of one against the rest, each weighing the same (Hanley & McNeil 1982)
    ECE       sum over 10 bins of equal width of the confidence max_k p_ik:
              (rows of the bin / N) |mean confidence - accuracy in the bin|       (Naeini et al. 2015)

Intervals are 95 % bootstraps over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from protea.errors import DataError
from protea.evaluation.figure import REPLICATES, Figure, describe, mean_figure, recentred_interval, resample_weights

BINS = 10


def areas(score: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Areas (R,) under the ROC curve of scores (N,) for row weights (R, N); `positive` (N,) is boolean.

    >>> areas(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]), torch.ones(1, 4).double())
    tensor([0.7500], dtype=torch.float64)
    """
    values, group = torch.unique(score, return_inverse=True)
    zero = torch.zeros(len(weights), len(values), dtype=torch.float64)
    up = zero.index_add(1, group[positive], weights[:, positive])
    down = zero.index_add(1, group[~positive], weights[:, ~positive])
    return (up * (down.cumsum(1) - down / 2)).sum(1) / (up.sum(1) * down.sum(1))


def auroc(
    score: Tensor, positive: Tensor, protocol: Mapping[str, Any] | None = None, *,
    seed: int = 0, replicates: int = REPLICATES,
) -> Figure:  # fmt: skip
    """The area under the ROC curve of one score, with its interval over rows."""
    w = resample_weights(len(score), replicates, seed, "auroc")
    found = areas(score, positive, torch.cat((torch.ones(1, len(score), dtype=torch.float64), w)))
    return _around(found, protocol, replicates)


def judge_probabilities(
    log_prob: Tensor, labels: Tensor, protocol: Mapping[str, Any] | None = None, *,
    seed: int = 0, replicates: int = REPLICATES,
) -> dict[str, Figure]:  # fmt: skip
    """Accuracy, AUC, Brier score, log loss and expected calibration error of log p(y | x) (N, K) for labels (N,).

    AUC is there where two classes or more occur. Rows of unknown label (-1) must be left out by the caller.

    Raises:
        DataError: no rows, or a label outside 0 .. K-1.
    """
    n, k = log_prob.shape
    if n == 0 or int(labels.min()) < 0 or int(labels.max()) >= k:
        raise DataError(f"{n} rows with labels outside 0 .. {k - 1} cannot be judged.", "Give labelled rows.")
    p, facts = log_prob.exp(), {**(protocol or {}), "n": n, "classes": k}
    hot = torch.nn.functional.one_hot(labels, k).double()
    own = log_prob.gather(1, labels[:, None])[:, 0]
    brier = (p - hot).square().sum(1) / (2 if k == 2 else 1)
    options: dict[str, Any] = {"seed": seed, "replicates": replicates}
    found = {
        "accuracy": mean_figure((log_prob.argmax(1) == labels).double(), facts, **options),
        "log_loss": mean_figure(-own, facts, **options),
        "brier": mean_figure(brier, facts, **options),
    }
    w = torch.cat((torch.ones(1, n, dtype=torch.float64), resample_weights(n, replicates, seed, "classify")))
    seen = labels.unique().tolist()
    if len(seen) > 1:
        against = [1] if k == 2 else seen  # of two classes both areas are the same
        each = torch.stack([areas(log_prob[:, c] if k > 2 else log_prob[:, 1] - log_prob[:, 0], labels == c, w)
                            for c in against])  # fmt: skip
        found["auc"] = _around(each.mean(0), facts, replicates)
    found["calibration_error"] = _around(calibration_errors(log_prob, labels, w), facts, replicates, floor=0.0)
    return found


def calibration_errors(log_prob: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Expected calibration errors (R,) for row weights (R, N)."""
    confidence, said = log_prob.exp().max(1)
    bin_ = (confidence * BINS).long().clamp(max=BINS - 1)
    gap = confidence - (said == labels).double()
    sums = torch.zeros(len(weights), BINS, dtype=torch.float64).index_add(1, bin_, weights * gap)
    return sums.abs().sum(1) / weights.sum(1)


def reliability(log_prob: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """For each bin of confidence that holds rows: mean confidence, accuracy, and number of rows."""
    confidence, said = log_prob.exp().max(1)
    bin_ = (confidence * BINS).long().clamp(max=BINS - 1)
    right = (said == labels).double()
    return [
        {"confidence": float(confidence[bin_ == b].mean()), "accuracy": float(right[bin_ == b].mean()),
         "rows": int((bin_ == b).sum())}
        for b in bin_.unique().tolist()
    ]  # fmt: skip


def _around(
    values: Tensor, protocol: Mapping[str, Any] | None, replicates: int, floor: float = 0.0, ceiling: float = 1.0
) -> Figure:
    """A figure from the statistic of all rows (first) and of the bootstrap's draws."""
    value = float(values[0])
    spread = values[1:]
    low, high = recentred_interval(value, spread[spread.isfinite()], floor=floor, ceiling=ceiling)
    return Figure(value, low, high, describe(protocol, replicates, "recentred"))
