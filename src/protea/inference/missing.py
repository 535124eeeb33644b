r"""Missing values: imputation, and likelihood of what is there, from the exact conditionals of a joint model.

    single      x_u = E[x_u | x_o], of a category its most probable level: least squared error, but too tidy as data
    multiple    x_u^(1) ... x_u^(m) ~ p(x_u | x_o): m complete tables whose spread is the uncertainty (Rubin 1987,
                "Multiple imputation for nonresponse in surveys")
    evidence    log p(x_o): the score of a row that is not complete

Right where values are missing at random: whether one is missing may depend on what is seen, not on itself. A column
that the schema says may be missing has a probability of being so in the model; imputation asks for its value, so draws
that come out as missing are drawn again, which conditions on being present.

For models whose `given` is an exact `Conditional`; others raise NotSupported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protea.core import Conditionable, Model
from protea.errors import DataError, NotSupported
from protea.models.conditional import Conditional
from protea.rng import Streams, fold
from protea.space import Space
from protea.spaces import Series, Table, Vector

ROWS = 512  # conditioned at once
ROUNDS = 50  # of drawing again what came out as missing


def encode_missing(space: Space, raw: Any) -> tuple[Tensor, Tensor]:
    """Rows with holes in canonical units (B, *event), NaN where missing, and which entries are observed.

    Args:
        space: a table, whose every column may then have holes or be absent, a vector, or series.
        raw: a DataFrame, an array (B, D) with NaN, or a sequence of arrays (L, D) with NaN before the last known value.

    Raises:
        NotSupported: another kind of space. DataError: a value does not fit its column.

    >>> x, observed = encode_missing(Vector(("a", "b")), [[1.0, float("nan")]])
    >>> observed.tolist()
    [[True, False]]
    """
    import pandas as pd

    if isinstance(space, Table):
        frame = raw if isinstance(raw, pd.DataFrame) else pd.DataFrame(raw)
        absent = [c.name for c in space.columns if c.name not in frame.columns]
        if len(absent) == len(space.columns):
            raise DataError(
                "None of the table's columns is there.", f"Expected: {[c.name for c in space.columns][:8]}."
            )
        frame = frame.assign(**{name: pd.Series([None] * len(frame), index=frame.index) for name in absent})
        x = replace(space, columns=tuple(replace(c, missing=True) for c in space.columns)).encode(frame)
        return x, ~x.isnan()
    if isinstance(space, Vector):
        x = torch.as_tensor(np.array(raw, dtype=np.float64))
        if x.ndim != 2 or tuple(x.shape[1:]) != space.event or bool(x.isinf().any()):
            raise DataError(
                f"Expected finite points or NaN, (N, {space.event[0]}), not {tuple(x.shape)}.", "Correct it."
            )
        return x, ~x.isnan()
    if isinstance(space, Series):
        from protea.inference.series import known

        x = space.encode(raw)
        return x, known(space, x)
    raise NotSupported(
        f"A file of {space.kind} data cannot say which entries are missing.",
        "From Python: protea.inference.missing.impute(model, x, observed).",
    )


def conditional(model: Model, x: Tensor, observed: Tensor) -> Conditional:
    """p(x_u | x_o) of rows x (B, *event), exactly.

    Raises:
        NotSupported: the model has no exact conditional.
    """
    found = model.given(x, observed) if isinstance(model, Conditionable) else None
    if not isinstance(found, Conditional):
        inner = getattr(model, "inner", model)
        raise NotSupported(
            f"{type(inner).__name__} of {model.space.kind} data has no exact p(missing | observed).",
            "Use one that has: gmm (vectors, tables of real numbers), mixture or naive-bayes (tables), hmm (series).",
        )
    return found


@torch.no_grad()
def impute(model: Model, x: Tensor, observed: Tensor, draws: int | None = None, seed: int = 0) -> Tensor:
    """x (B, *event) with its unobserved entries filled; observed ones come back unchanged.

    Args:
        model: `Conditionable`, exactly.
        x: canonical units; entries that are not observed are not read.
        observed: boolean, shaped as x.
        draws: None for the conditional mean (mode of categories); m for m draws, (m, B, *event).
        seed: of the draws.

    Raises:
        NotSupported: see `conditional`.

    >>> from protea.models.classical.gmm import GaussianMixture
    >>> model = GaussianMixture((2,), 1); model.space = Vector(("a", "b"))
    >>> x = torch.tensor([[3.0, torch.nan]]).double()
    >>> impute(model, x, ~x.isnan()), impute(model, x, ~x.isnan(), draws=5).shape
    (tensor([[3., 0.]], dtype=torch.float64), torch.Size([5, 1, 2]))
    """
    parts = []
    for start in range(0, len(x), ROWS):
        rows, seen = x[start : start + ROWS], observed[start : start + ROWS]
        given = conditional(model, rows, seen)
        here = fold(seed, start)
        if draws is None:
            filled = torch.where(seen, rows, given.mean.to(rows.dtype))
        else:
            filled = _drawn(given, draws, here)
        filled = _present(filled, seen, given, here)
        parts.append(filled)
    if not parts:
        return x if draws is None else x.expand(draws, *x.shape)
    return torch.cat(parts, 0 if draws is None else 1)


def _drawn(given: Conditional, draws: int, seed: int) -> Tensor:
    """(draws, B, *event)."""
    rows = len(given.evidence)
    out = given.sample(draws * rows, rng=Streams(seed, draws * rows))
    return out.reshape(draws, rows, *out.shape[1:])


def _present(filled: Tensor, seen: Tensor, given: Conditional, seed: int) -> Tensor:
    """Draw rows (..., B, *event) again while an unobserved entry of theirs is missing; one that always is stays so."""
    deep = seen.ndim - 1
    for turn in range(ROUNDS if filled.is_floating_point() else 0):
        gone = (filled.isnan() & ~seen).flatten(-deep).any(-1)
        if not bool(gone.any()):
            break
        again = _drawn(given, len(filled) if filled.ndim > seen.ndim else 1, fold(seed, "again", turn))
        again = again if filled.ndim > seen.ndim else again[0]
        filled = torch.where(gone.reshape(*gone.shape, *[1] * deep), again.to(filled.dtype), filled)
    return filled


@torch.no_grad()
def log_evidence(model: Model, x: Tensor, observed: Tensor) -> Tensor:
    """log p(x_o) in nats of rows x (B, *event), (B,): the score of rows with holes; 0 where nothing is observed.

    Raises:
        NotSupported: see `conditional`.
    """
    parts = [
        conditional(model, x[i : i + ROWS], observed[i : i + ROWS]).evidence.double() for i in range(0, len(x), ROWS)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


@torch.no_grad()
def level_probabilities(model: Model, x: Tensor, observed: Tensor, column: int) -> Tensor:
    """p(x_column = c | x_o) of every level c of an unobserved category of flat rows x (B, C), (B, levels), exactly.

    By p(x_j = c | x_o) = p(x_o, x_j = c) / sum_c' p(x_o, x_j = c'): a ratio of evidences, given that it is present.
    """
    levels = model.space.fields[column].levels
    seen = observed.clone()
    seen[:, column] = True
    scores = []
    for c in range(levels):
        row = x.clone()
        row[:, column] = c
        scores.append(log_evidence(model, row, seen))
    return torch.softmax(torch.stack(scores, 1), 1)
