"""What kind of column a pandas Series is, from its dtype and its values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from protea.errors import DataError
from protea.spaces.columns import MAX_EXACT, Column, microseconds

MAX_LEVELS = 100_000  # more distinct values are names, not categories
_TICKS = (86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000, 1_000, 1)  # day .. microsecond, in microseconds
_DATES = {
    r"\d{4}-\d{2}-\d{2}": "%Y-%m-%d",
    r"\d{4}/\d{2}/\d{2}": "%Y/%m/%d",
    r"\d{4}-\d{2}": "%Y-%m",
    r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}": "%Y-%m-%d %H:%M",
    r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}": "%Y-%m-%d %H:%M:%S",
    r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}": "%Y-%m-%dT%H:%M:%S",
}


def decimals(x: np.ndarray, eps: float = np.finfo(np.float64).eps) -> int | None:
    """The smallest k <= 6 for which all finite x are multiples of 10^-k, to rounding; else None.

    >>> decimals(np.array([0.25, 3.5])), decimals(np.array([1.0, 880.0])), decimals(np.array([np.pi]))
    (2, 0, None)
    """
    for k in range(7):
        with np.errstate(over="ignore"):
            scaled = x * 10.0**k
        if (np.abs(scaled) < MAX_EXACT).all() and (np.abs(scaled - np.rint(scaled)) <= 4 * eps * np.abs(scaled)).all():
            return k
    return None


def infer_column(
    series: pd.Series, *, ordinal: Sequence[Any] | None = None, category: bool = False, missing: bool | None = None
) -> Column:
    """The kind of a column, from its dtype and its values.

    Args:
        series: the column.
        ordinal: its levels from low to high, where the user declares an order.
        category: treat numbers as names of categories.
        missing: overrules what is found (False for a not-null column that is complete).

    Raises:
        DataError: all values missing, infinities, too many categories, or values that are no scalars.
    """
    name, dtype = series.name, str(series.dtype)
    gone = pd.isna(series)
    missing = bool(gone.any()) if missing is None else missing
    if not isinstance(name, (str, int)):
        raise DataError(f"The column label {name!r} is not text.", "Name the columns by strings.")
    if len(series) == 0 or bool(gone.all()):
        raise DataError(f"Column {name!r} has no values at all.", f"Leave it out: drop=[{name!r}].")
    seen: Any = series[~gone]
    if ordinal is not None:
        return _coded(seen, "ordinal", missing, tuple(ordinal))
    if isinstance(series.dtype, pd.CategoricalDtype):
        levels = tuple(_plain(v, name) for v in series.cat.categories.tolist())
        kind = "ordinal" if series.cat.ordered else "category"
        return Column(
            name,
            kind,
            "category",
            levels,
            missing=missing,
            inner=str(series.cat.categories.dtype),
            ordered=bool(series.cat.ordered),
        )
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return _datetime(seen, dtype, missing)
    content = pd.api.types.infer_dtype(seen, skipna=True)
    if content == "boolean":
        return Column(name, "boolean", dtype, (False, True), missing=missing)
    if content in ("date", "datetime") and dtype == "object":
        return _datetime(pd.Series(pd.to_datetime(seen)), dtype, missing, "date" if content == "date" else "")
    numeric = pd.api.types.is_numeric_dtype(series.dtype) or content in ("integer", "floating", "mixed-integer-float")
    if numeric and not category:
        found = _numeric(seen, dtype, missing)
        if found is not None:
            return found
    if content == "string" and not category:
        found = _dates(seen, dtype, missing)
        if found is not None:
            return found
    if not numeric and content not in ("string", "mixed-integer", "mixed", "integer", "floating", "decimal"):
        raise DataError(
            f"Column {name!r} holds {content} values, which a table cannot model.",
            f"Convert it to numbers, text or dates, or leave it out: drop=[{name!r}].",
        )
    return _coded(seen, "category", missing)


def _numeric(seen: pd.Series, dtype: str, missing: bool) -> Column | None:
    if pd.api.types.is_complex_dtype(seen.dtype):
        raise DataError(f"Column {seen.name!r} holds complex numbers.", "Split it into real and imaginary parts.")
    if pd.api.types.is_integer_dtype(seen.dtype) and bool(((seen > MAX_EXACT) | (seen < -MAX_EXACT)).any()):
        return None  # not exact in float64: these are codes
    x = seen.to_numpy(dtype=np.float64)
    if np.isinf(x).any():
        raise DataError(
            f"Column {seen.name!r} holds {int(np.isinf(x).sum())} infinite values; the first is in row "
            f"{seen.index[int(np.isinf(x).argmax())]}.",
            "Replace them by a number or by a missing value.",
        )
    distinct = np.unique(x)
    if len(distinct) == 1 or (pd.api.types.is_integer_dtype(seen.dtype) and np.isin(distinct, (0, 1)).all()):
        return None  # a constant or a flag: categories
    if pd.api.types.is_integer_dtype(seen.dtype) or pd.api.types.infer_dtype(seen) == "integer":
        return Column(seen.name, "integer", dtype, missing=missing)
    eps = np.finfo(np.float32 if "32" in dtype or dtype == "float[pyarrow]" else np.float64).eps
    k = decimals(distinct, float(eps))
    if k is not None and (k == 0 or len(distinct) <= 0.95 * len(x)):
        return Column(seen.name, "decimal", dtype, step=10.0**-k, missing=missing)
    return Column(seen.name, "real", dtype, missing=missing)


def _datetime(seen: Any, dtype: str, missing: bool, text: str = "") -> Column:
    micro = microseconds(seen)
    tick = next(t for t in _TICKS if (micro % t == 0).all())
    return Column(seen.name, "datetime", dtype, step=tick / 1e6, missing=missing, text=text)


def _dates(seen: pd.Series, dtype: str, missing: bool) -> Column | None:
    """Text that is all dates of one ISO form and comes back letter by letter."""
    for pattern, form in _DATES.items():
        if re.fullmatch(pattern, str(seen.iloc[0])) and seen.str.fullmatch(pattern).all():
            times = pd.to_datetime(seen, format=form, errors="coerce")
            if not times.isna().any() and (times.dt.strftime(form) == seen).all():
                return _datetime(times, dtype, missing, form)
    return None


def _plain(value: Any, name: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (str, bool, int, float)):
        raise DataError(
            f"Column {name!r} holds {type(value).__name__} values, which a table cannot model.",
            f"Convert it to numbers, text or dates, or leave it out: drop=[{name!r}].",
        )
    return value


def _coded(seen: pd.Series, kind: str, missing: bool, order: tuple[Any, ...] | None = None) -> Column:
    name = seen.name
    try:
        values = {_plain(v, name) for v in seen.unique().tolist()}
    except TypeError:  # lists, dicts
        raise DataError(
            f"Column {name!r} holds nested values, which a table cannot model.",
            f"Flatten it, or leave it out: drop=[{name!r}].",
        ) from None
    if len(values) > MAX_LEVELS:
        raise DataError(
            f"Column {name!r} has {len(values):,} distinct values: too many for categories (at most {MAX_LEVELS:,}).",
            f"It looks like a name or free text: drop=[{name!r}].",
        )
    if order is not None:
        order = tuple(_plain(v, name) for v in order)
        if values - set(order) or len(set(order)) < len(order):
            raise DataError(
                f"The declared order of column {name!r} lacks {sorted(map(str, values - set(order)))[:5]} "
                "or repeats a level.",
                "Name every level once, from low to high.",
            )
    levels = order or tuple(sorted(values, key=lambda v: (type(v).__name__, v)))
    if isinstance(seen.dtype, pd.CategoricalDtype):
        return Column(
            name,
            kind,
            "category",
            levels,
            missing=missing,
            inner=str(seen.cat.categories.dtype),
            ordered=bool(seen.cat.ordered),
        )
    return Column(name, kind, str(seen.dtype), levels, missing=missing)
