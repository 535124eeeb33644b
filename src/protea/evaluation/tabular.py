r"""Tables: columns, associations, and usefulness for a task.

*Column error.* Per column the Kolmogorov-Smirnov distance sup_t |F(t) - G(t)| of numbers, where missing counts
as minus infinity (so that the missing rate is part of it), or the total variation of categories, where
missing counts as a level. The figure is the mean over columns.

*Association.* With Z_a the whitened indicators of column a (standardised ranks of a number; levels of a
category divided by the root of their shares),

    A(a, b)^2 = |Z_a^T Z_b|_F^2 / min(dim a, dim b)

is Spearman's correlation of two numbers, the correlation ratio of a number with a category, and
Cramér's V of two categories: one formula. The figure is the mean absolute difference over pairs.

*Train on synthetic, test on real* (Esteban et al. 2017): a model of the target column trained on
generated rows is tested on held-out real ones, beside one trained on as many real rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protea.evaluation.figure import REPLICATES, Figure, describe, mean_figure, recentred_interval, resample_weights
from protea.evaluation.two_sample import one_thread
from protea.rng import fold
from protea.space import Field

LEVELS = 12  # levels of a category that are kept apart for associations; the rest are one


def column_error(
    real: Tensor, fake: Tensor, fields: Sequence[Field], protocol: Mapping[str, Any] | None = None,
    *, seed: int = 0, replicates: int = REPLICATES,
) -> tuple[Figure, dict[str, float]]:  # fmt: skip
    """Mean column distance of rows (n, C) and (m, C), in [0, 1]; and the distance of each column by name."""
    w = torch.cat(
        (torch.ones(1, len(real), dtype=torch.float64), resample_weights(len(real), replicates, seed, "real"))
    )
    v = torch.cat(
        (torch.ones(1, len(fake), dtype=torch.float64), resample_weights(len(fake), replicates, seed, "fake"))
    )
    measure = (w / len(real), v / len(fake))
    per_column = torch.stack([_distance(real[:, c], fake[:, c], f, *measure) for c, f in enumerate(fields)])
    mean = per_column.mean(0)
    value = float(mean[0])
    low, high = recentred_interval(value, mean[1:], floor=0.0, ceiling=1.0)
    columns = {f.name: float(d) for f, d in zip(fields, per_column[:, 0])}
    return Figure(value, low, high, describe(protocol, replicates, "recentred")), columns


def association_error(
    real: Tensor, fake: Tensor, fields: Sequence[Field], protocol: Mapping[str, Any] | None = None,
    *, seed: int = 0, replicates: int = 100,
) -> Figure:  # fmt: skip
    """Mean absolute difference of the associations of all pairs of columns, in [0, 2]; lower is better.

    Raises:
        ValueError: a single column has no pairs.
    """
    if len(fields) < 2:
        raise ValueError("Associations need two columns.")
    kept = [_frequent(real[:, c], LEVELS) if f.kind == "category" else None for c, f in enumerate(fields)]
    sides = []
    for x, side in ((real, "real"), (fake, "fake")):
        weights = resample_weights(len(x), replicates, seed, side)
        sides.append(_associations(x, kept, torch.cat((torch.ones(1, len(x), dtype=torch.float64), weights))))
    pairs = torch.triu_indices(len(fields), len(fields), 1)
    gaps = (sides[0] - sides[1]).abs()[:, pairs[0], pairs[1]].mean(1)
    value = float(gaps[0])
    low, high = recentred_interval(value, gaps[1:], floor=0.0)
    return Figure(value, low, high, describe(protocol, replicates, "recentred"))


def usefulness(
    train: Tensor, test: Tensor, target: int, fields: Sequence[Field], protocol: Mapping[str, Any] | None = None,
    *, seed: int = 0, replicates: int = REPLICATES,
) -> dict[str, Figure]:  # fmt: skip
    """How well a model of column `target` trained on rows `train` (n, C) does on `test` (m, C).

    Returns:
        {"accuracy"} and, for two classes, {"auc"}; {"r2"} where the target is a number. Rows that miss the target are
        left out; where the training rows show fewer than two values, the constant answer is scored.
    """
    categorical = fields[target].kind == "category"
    inputs = [c for c in range(len(fields)) if c != target]
    (a, t), (b, s) = ((x[:, inputs].numpy(), x[:, target].numpy()) for x in (train, test))
    a, t, b, s = a[~np.isnan(t)], t[~np.isnan(t)], b[~np.isnan(s)], s[~np.isnan(s)]
    coded = [fields[c].kind == "category" and fields[c].levels <= 200 for c in inputs]
    options: dict[str, Any] = {
        "max_iter": 100, "early_stopping": False, "random_state": fold(seed, "usefulness") % 2**31,
        "categorical_features": coded if any(coded) else None,
    }  # fmt: skip
    facts = {**(protocol or {}), "model": "gradient boosting, 100 trees"}
    with one_thread():
        if categorical:
            return _classify(a, t, b, s, options, facts, seed, replicates)
        return {"r2": _regress(a, t, b, s, options, facts, seed, replicates)}


def accuracy_of_labels(
    train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, protocol: Mapping[str, Any] | None = None,
    *, seed: int = 0, replicates: int = REPLICATES,
) -> Figure:  # fmt: skip
    """Accuracy on real features (m, F) of extra trees trained on generated features (n, F) and their labels."""
    from sklearn.ensemble import ExtraTreesClassifier

    forest = ExtraTreesClassifier(100, random_state=fold(seed, "usefulness") % 2**31).fit(train.numpy(), labels.numpy())
    correct = torch.from_numpy(forest.predict(test.numpy()) == truth.numpy())
    facts = {**(protocol or {}), "model": "extra trees, 100"}
    return mean_figure(correct, facts, seed=seed, replicates=replicates)


def _classify(
    a: np.ndarray, t: np.ndarray, b: np.ndarray, s: np.ndarray,
    options: dict[str, Any], facts: dict[str, Any], seed: int, replicates: int,
) -> dict[str, Figure]:  # fmt: skip
    from sklearn.ensemble import HistGradientBoostingClassifier

    if len(np.unique(t)) < 2:
        said, score = np.full(len(s), t[0] if len(t) else np.nan), np.zeros(len(s))
    else:
        model = HistGradientBoostingClassifier(**options).fit(a, t)
        said = model.predict(b)
        score = model.predict_proba(b)[:, -1]
    found = {"accuracy": mean_figure(torch.from_numpy(said == s), facts, seed=seed, replicates=replicates)}
    if len(np.unique(s)) == 2:
        w = resample_weights(len(s), replicates, seed, "auc")
        w = torch.cat((torch.ones(1, len(s), dtype=torch.float64), w))
        auc = _auc(torch.from_numpy(score), torch.from_numpy(s == s.max()), w)
        low, high = recentred_interval(float(auc[0]), auc[1:].nan_to_num(float(auc[0])), floor=0.0, ceiling=1.0)
        found["auc"] = Figure(float(auc[0]), low, high, describe(facts, replicates, "recentred"))
    return found


def _auc(score: Tensor, positive: Tensor, w: Tensor) -> Tensor:
    """Areas (R,) under the ROC curve for weights (R, m): P(score of a positive > of a negative) + half of ties."""
    values, group = torch.unique(score, return_inverse=True)
    zero = torch.zeros(len(w), len(values), dtype=torch.float64)
    up = zero.index_add(1, group[positive], w[:, positive])
    down = zero.index_add(1, group[~positive], w[:, ~positive])
    return (up * (down.cumsum(1) - down / 2)).sum(1) / (up.sum(1) * down.sum(1))


def _regress(
    a: np.ndarray, t: np.ndarray, b: np.ndarray, s: np.ndarray,
    options: dict[str, Any], facts: dict[str, Any], seed: int, replicates: int,
) -> Figure:  # fmt: skip
    from sklearn.ensemble import HistGradientBoostingRegressor

    said = HistGradientBoostingRegressor(**options).fit(a, t).predict(b) if len(t) > 1 else np.full(len(s), t.mean())
    w = resample_weights(len(s), replicates, seed, "r2")
    w = torch.cat((torch.ones(1, len(s), dtype=torch.float64), w)) / len(s)
    y, error = torch.from_numpy(s), torch.from_numpy((s - said) ** 2)
    r2 = 1 - (w @ error) / (w @ y.square() - (w @ y).square()).clamp_min(1e-300)
    low, high = recentred_interval(float(r2[0]), r2[1:], ceiling=1.0)
    return Figure(float(r2[0]), low, high, describe(facts, replicates, "recentred"))


def _distance(a: Tensor, b: Tensor, field: Field, w: Tensor, v: Tensor) -> Tensor:
    """Distances (R,) of one column under each replicate's measure (R, n) and (R, m)."""
    a, b = (x.double() for x in (a, b))
    if field.kind == "category":
        codes = torch.cat((a, b)).nan_to_num(nan=-1.0)
        values, index = torch.unique(codes, return_inverse=True)
        p, q = (
            torch.zeros(len(m), len(values), dtype=torch.float64).index_add_(1, i, m)
            for m, i in ((w, index[: len(a)]), (v, index[len(a) :]))
        )
        return (p - q).abs().sum(1) / 2
    both = torch.cat((a, b)).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    values, order = both.sort()
    last = torch.ones(len(values), dtype=torch.bool)
    last[:-1] = values[1:] != values[:-1]  # the distribution functions are compared after each distinct value
    steps = torch.cat((w, -v), 1)[:, order].cumsum(1)
    return steps[:, last].abs().amax(1)


def _frequent(codes: Tensor, most: int) -> Tensor:
    values, counts = torch.unique(codes.nan_to_num(nan=-1.0), return_counts=True)
    return values[counts.argsort(descending=True, stable=True)[:most]]


def _associations(x: Tensor, kept: Sequence[Tensor | None], w: Tensor) -> Tensor:
    """(R, C, C) associations under weights (R, n)."""
    blocks, column = [], []
    for c, levels in enumerate(kept):
        if levels is None:
            value = x[:, c].double()
            filled = torch.where(value.isnan(), value.nanmean().nan_to_num(), value)
            from scipy.stats import rankdata

            rank = torch.from_numpy(rankdata(filled.numpy())) / len(x)
            block = rank[:, None] - 0.5
        else:
            code = x[:, c].double().nan_to_num(nan=-1.0)
            hot = (code[:, None] == levels).double()
            block = torch.cat((hot, 1 - hot.sum(1, keepdim=True)), 1)
        blocks.append(block)
        column += [c] * block.shape[1]
    z, of = torch.cat(blocks, 1), torch.tensor(column)
    numeric = torch.tensor([levels is None for levels in kept])
    n = len(x)
    sums = torch.stack([_pair_strength(z, of, numeric, row / n) for row in w])
    return sums


def _pair_strength(z: Tensor, of: Tensor, numeric: Tensor, w: Tensor) -> Tensor:
    """(C, C): the association formula from the weighted second moments of the blocks."""
    c = len(numeric)
    mean = w @ z
    moment = (z * w[:, None]).mT @ z - mean[:, None] * mean
    scale = torch.where(numeric[of], moment.diagonal(), mean).clamp_min(0)
    inverse = torch.where(scale > 1e-12, scale.clamp_min(1e-12).rsqrt(), torch.zeros_like(scale))
    s = moment * inverse[:, None] * inverse
    member = torch.zeros(len(of), c, dtype=torch.float64)
    member[torch.arange(len(of)), of] = 1
    alive = (inverse > 0).double() @ member
    dims = torch.where(numeric, alive, alive - 1)  # the shares of a category sum to 1
    least = torch.minimum(dims[:, None], dims).clamp_min(1)
    strength = ((member.mT @ s.square() @ member) / least).clamp(0, 1).sqrt()
    sign = (member.mT @ s @ member).sign()
    return torch.where(numeric[:, None] & numeric, strength * sign, strength)
