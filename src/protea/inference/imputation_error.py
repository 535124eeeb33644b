r"""How well missing values are filled, on held-out rows whose values are known.

A share (20 %) of the present cells of held-out rows is hidden completely at random, and every way of filling sees the
same holes. Then

    rmse       of numbers: root mean square over cells of (filled - true) / (deviation of the column's training rows)
    accuracy   of categories: share of cells whose most probable level is the true one
    log_loss   of categories: mean of -log p(true level | what is observed), in nats

The peers are those people use: the column's mean or mode (with the column's frequencies as probabilities), and
scikit-learn's KNNImputer and IterativeImputer on standardised numbers and one-hot categories, whose filled indicators
are clipped to [0.001, 1] and normalised to be read as probabilities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from protea.core import Model
from protea.errors import DataError
from protea.evaluation.figure import Figure, mean_figure
from protea.inference.missing import impute, level_probabilities
from protea.rng import Streams, fold
from protea.space import Field, Rows

RATE = 0.2


class Filled(NamedTuple):
    """A way's answer: filled rows (B, C), and for each category column the probabilities (B, levels) of its levels."""

    x: Tensor
    probabilities: Mapping[int, Tensor]


Filler = Callable[[Tensor, Tensor], Filled]  # rows (B, C), observed (B, C)


def hide(x: Tensor, rate: float = RATE, seed: int = 0, ids: Tensor | None = None) -> Tensor:
    """Which present cells of flat rows (B, C) stay observed when a share `rate` is hidden at random, (B, C) boolean."""
    streams = Streams(fold(seed, "hide"), len(x) if ids is None else ids)
    return (streams.uniform(x.shape[1], dtype=torch.float64) >= rate) & ~x.isnan()


def by_model(model: Model) -> Filler:
    """Conditional means of numbers, exact probabilities of categories."""

    def fill(x: Tensor, observed: Tensor) -> Filled:
        x = x.reshape(-1, *model.space.event)
        filled = impute(model, x, observed.reshape(x.shape)).double()
        found = {}
        for j, field in enumerate(model.space.fields):
            if field.kind == "category":
                asked = ~observed[:, j]
                p = torch.full((len(x), field.levels), 1 / field.levels, dtype=torch.float64)
                p[asked] = level_probabilities(model, x[asked], observed[asked], j)
                found[j] = p
        return Filled(filled.reshape(len(x), -1), found)

    return fill


def by_column(train: Tensor, fields: Sequence[Field]) -> Filler:
    """The mean of each number, the frequencies of each category: what SimpleImputer fills in."""

    def fill(x: Tensor, observed: Tensor) -> Filled:
        values, found = train.double().nanmean(0), {}
        for j, field in enumerate(fields):
            if field.kind == "category":
                codes = train[:, j][~train[:, j].isnan()].long()
                p = torch.bincount(codes, minlength=field.levels).double() + 1
                found[j] = (p / p.sum()).expand(len(x), -1)
                values[j] = p.argmax().double()
        return Filled(torch.where(observed, x.double(), values), found)

    return fill


def by_peer(peer: Any, train: Tensor, fields: Sequence[Field]) -> Filler:
    """A scikit-learn imputer of numbers, on standardised columns and indicators of categories."""
    mean, scale = train.double().nanmean(0), deviations(train)

    def wide(x: Tensor) -> np.ndarray:
        parts = []
        for j, field in enumerate(fields):
            if field.kind == "category":
                hot = (x[:, j : j + 1].nan_to_num(-1) == torch.arange(field.levels)).double()
                parts.append(torch.where(x[:, j : j + 1].isnan(), torch.nan, hot))
            else:
                parts.append((x[:, j : j + 1].double() - mean[j]) / scale[j])
        return torch.cat(parts, 1).numpy()

    def fill(x: Tensor, observed: Tensor) -> Filled:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # IterativeImputer: not converged after its rounds
            fitted = peer.set_params(keep_empty_features=True).fit(wide(train))
            got = torch.from_numpy(fitted.transform(wide(torch.where(observed, x.double(), torch.nan))))
        out, found, start = x.double().clone(), {}, 0
        for j, field in enumerate(fields):
            size = field.levels if field.kind == "category" else 1
            part = got[:, start : start + size]
            start += size
            if field.kind == "category":
                p = part.clamp(1e-3, 1.0)
                found[j] = p / p.sum(1, keepdim=True)
                value = p.argmax(1).double()
            else:
                value = part[:, 0] * scale[j] + mean[j]
            out[:, j] = torch.where(observed[:, j], out[:, j], value)
        return Filled(out, found)

    return fill


def peers(train: Tensor, fields: Sequence[Field], rows: int = 2000) -> dict[str, Filler]:
    """The column's own mean or mode, and scikit-learn's KNNImputer and IterativeImputer fitted on at most `rows`."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer

    some = train.reshape(len(train), -1)[:rows]
    return {
        "column mean or mode": by_column(train.reshape(len(train), -1), fields),
        "KNNImputer": by_peer(KNNImputer(), some, fields),
        "IterativeImputer": by_peer(IterativeImputer(max_iter=5, random_state=0), some, fields),
    }


def deviations(train: Tensor) -> Tensor:
    """(C,) standard deviations of the columns, missing cells left out; 1 for a constant one."""
    x = train.double()
    here = ~x.isnan()
    mean = x.nanmean(0)
    found = (torch.where(here, x - mean, 0.0).square().sum(0) / here.sum(0).clamp(min=1)).sqrt()
    return torch.where(found > 0, found, 1.0)


def imputation_error(
    fill: Filler, rows: Rows, train: Tensor, fields: Sequence[Field], *, rate: float = RATE, seed: int = 0,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Figure]:  # fmt: skip
    """The figures above of one way of filling, on held-out rows.

    Args:
        fill: see `by_model`, `by_column`, `by_peer`.
        rows: held out; cells that are missing already are neither hidden nor judged.
        train: rows whose deviations are the unit of `rmse`.
        rate: share of cells that is hidden.

    Raises:
        DataError: nothing to hide.
    """
    x = rows.x.reshape(len(rows), -1).double()
    observed = hide(x, rate, seed, rows.ids)
    hidden = ~observed & ~x.isnan()
    if not bool(hidden.any()):
        raise DataError(f"No cell of {len(rows)} rows could be hidden at rate {rate}.", "Give more rows.")
    got = fill(torch.where(observed, x, torch.nan), observed)
    scale = deviations(train.reshape(len(train), -1))
    facts = {**(protocol or {}), "hidden": f"{rate:.0%} of cells, completely at random", "rows": len(rows)}
    found: dict[str, Figure] = {}
    number = torch.tensor([f.kind != "category" for f in fields])
    error = ((got.x - x) / scale)[:, number][hidden[:, number]]
    if len(error):
        square = mean_figure(error.square(), facts, seed=seed)
        found["rmse"] = Figure(square.value**0.5, square.low**0.5, square.high**0.5, square.protocol)
    right, loss = [], []
    for j, p in got.probabilities.items():
        asked = hidden[:, j]
        truth = x[asked, j].long()
        right.append((p[asked].argmax(1) == truth).double())
        loss.append(-p[asked].gather(1, truth[:, None])[:, 0].clamp(min=1e-12).log())
    if right and sum(map(len, right)):
        found["accuracy"] = mean_figure(torch.cat(right), facts, seed=seed)
        found["log_loss"] = mean_figure(torch.cat(loss), facts, seed=seed)
    return found
