"""Series: arrays (N, T, D) with their lengths, and long tables in which a column names the series of each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from protea.data.dataset import Loaded
from protea.errors import DataError, nearest
from protea.space import Space
from protea.spaces import Series


def from_steps(
    x: np.ndarray, lengths: np.ndarray | None, labels: torch.Tensor | None, classes: tuple[str, ...], name: str,
    source: str, space: Space | None = None,
) -> Loaded:  # fmt: skip
    """Series from floats (N, T, D); entries from the length on do not count, and become NaN."""
    x = x.astype(np.float64)
    notes = ("series of equal length",)
    if lengths is not None:
        lengths = np.asarray(lengths)
        right = lengths.shape == (len(x),) and lengths.dtype.kind in "iu"
        if not right or (len(x) and (lengths.min() < 0 or lengths.max() > x.shape[1])):
            raise DataError(f"{source} has lengths of shape {lengths.shape} and type {lengths.dtype}.",
                            f"Give whole numbers from 0 to {x.shape[1]}, one for each of {len(x)} series.")  # fmt: skip
        x = np.where(np.arange(x.shape[1])[None, :, None] < lengths[:, None, None], x, np.nan)
        notes = (f"series of {lengths.min()} to {lengths.max()} steps",)
    names = tuple(f"x{i}" for i in range(x.shape[2]))
    space = Series(names, x.shape[1], classes) if space is None else space
    return Loaded(name, source, space, space.encode(x), labels, notes=notes)


def from_long(
    frame: pd.DataFrame, sequence: str, name: str, source: str, *, target: Any = None, drop: Sequence[str] = (),
    space: Space | None = None,
) -> Loaded:  # fmt: skip
    """Series from a table with a row a step, in the order of the file; the column `sequence` names each row's series.

    Numeric columns are channels, and others are left out; a target, which must be the same in all rows of a series,
    becomes its label.
    """
    for column in (sequence, *([target] if target is not None else []), *drop):
        if column not in frame.columns:
            raise DataError(f"{source} has no column {column!r}.", nearest(str(column), frame.columns))
    groups = [part for _, part in frame.groupby(sequence, sort=False)]
    others = frame.drop(columns=[sequence, *drop, *([target] if target is not None else [])])
    channels = [str(c) for c in others.columns if pd.api.types.is_numeric_dtype(others[c])]
    left_out = {str(c): "is not a number" for c in others.columns if str(c) not in channels}
    if not channels:
        raise DataError(f"{source} has no numeric column beside {sequence!r}.", "A channel is a column of numbers.")
    labels, classes = None, ()
    if target is not None:
        found = [part[target].unique() for part in groups]
        mixed = next((i for i, values in enumerate(found) if len(values) != 1), None)
        if mixed is not None:
            raise DataError(f"Series {groups[mixed][sequence].iloc[0]!r} has {len(found[mixed])} values of {target!r}.",
                            "A label is the same in all rows of a series.")  # fmt: skip
        levels, codes = np.unique([str(values[0]) for values in found], return_inverse=True)
        labels, classes = torch.from_numpy(codes.astype(np.int64)), tuple(levels.tolist())
    steps = max(len(part) for part in groups)
    space = Series(tuple(channels), steps, classes) if space is None else space
    x = space.encode([part[channels].to_numpy(dtype=np.float64, na_value=np.nan) for part in groups])
    notes = (f"{len(groups)} series of {min(map(len, groups))} to {steps} steps",)
    return Loaded(name, source, space, x, labels, left_out=left_out, notes=notes)
