"""Columns of a table: what kind each is, and exact ways from pandas to float64 and back.

| kind | canonical value | likelihood |
|---|---|---|
| real | the value | density |
| integer, decimal | the value, a multiple of `step` | mass of the grid cell |
| datetime | seconds since 1970 (UTC where there is a time zone), a multiple of `step` | mass of the grid cell |
| category, ordinal, boolean | the code: place in `levels` | mass |

Missing is NaN for all of them. A float column is a *decimal* grid rather than *real* where every value
is a multiple of 10^-k (k <= 6) and values repeat: a density of such data can be made as large as one
likes by spikes on the grid, and its likelihood would mean nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from protea.errors import DataError
from protea.space import Field

MAX_EXACT = 2**53  # integers beyond are not exact in float64


@dataclass(frozen=True)
class Column:
    """One column of the user's table.

    Args:
        name: its label.
        kind: real, integer, decimal, datetime, category, ordinal or boolean.
        dtype: pandas' name of the dtype that `decode` restores.
        levels: categories in order (category, ordinal, boolean).
        step: resolution (integer 1, decimal 10^-k, datetime in seconds).
        missing: whether values may be missing.
        text: datetimes kept as text: the format; "date" for datetime.date objects.
        inner: dtype of the categories of a pandas categorical.
        ordered: whether that categorical is ordered.
        low, high: declared bounds, in canonical units.
    """

    name: Any
    kind: str
    dtype: str
    levels: tuple[Any, ...] = ()
    step: float = 1.0
    missing: bool = False
    text: str = ""
    inner: str = ""
    ordered: bool = False
    low: float = -math.inf
    high: float = math.inf

    @property
    def coded(self) -> bool:
        """Values are codes of levels."""
        return self.kind in ("category", "ordinal", "boolean")

    @property
    def field(self) -> Field:
        if self.coded:
            return Field(str(self.name), "category", levels=len(self.levels), missing=self.missing)
        kind = "real" if self.kind == "real" else "grid"
        bounded = kind == "grid" and math.isfinite(self.low) and math.isfinite(self.high)
        levels = round((self.high - self.low) / self.step) + 1 if bounded else 0
        return Field(str(self.name), kind, levels, self.step, self.missing, self.low, self.high)

    def index(self, x: np.ndarray) -> np.ndarray:
        """k of the nearest value k * step of the grid.

        Below one, whole part and fraction are multiplied by 1 / step, a whole number, apart: the fraction is exact and
        the product of the whole float would not be, so that microseconds survive up to 2^33 s from 1970.
        """
        if self.step >= 1:
            return np.rint(x / self.step)
        whole, parts = np.floor(x), round(1 / self.step)
        return whole * parts + np.rint((x - whole) * parts)

    def snap(self, x: np.ndarray) -> np.ndarray:
        """The nearest values of the grid; reals as they are."""
        if self.kind == "real" or self.coded:
            return x
        k = self.index(x)  # a time needs k / 10^d: k * 10^-d may be off by more than half a microsecond
        return k / round(1 / self.step) if self.kind == "datetime" and self.step < 1 else k * self.step

    def number(self, value: Any) -> float:
        """A bound given by the user, in canonical units (a date for datetimes, a number otherwise)."""
        if self.kind == "datetime" and not isinstance(value, (int, float)):
            return float(microseconds(pd.Series([pd.Timestamp(value)]))[0]) / 1e6
        return float(value)

    # -- to canonical units ------------------------------------------------------------------------------------

    def encode(self, series: pd.Series) -> np.ndarray:
        """(N,) float64. Raises DataError that names the column and the first row that does not fit."""
        gone = pd.isna(series).to_numpy(dtype=bool)
        if not self.missing and gone.any():
            raise self._bad(gone, "is missing", "Fill it, or fit on data where this column has missing values.")
        out = np.full(len(series), np.nan)
        if self.coded:
            codes = pd.Categorical(series.astype(object), categories=pd.Index(self.levels, dtype=object)).codes
            unknown = (codes < 0) & ~gone
            if unknown.any():
                value = series.to_numpy(dtype=object)[unknown.argmax()]
                raise self._bad(
                    unknown,
                    f"holds {value!r}, which is not one of its {len(self.levels)} categories",
                    "Map it to a known category, or fit again on data that hold it.",
                )
            out[~gone] = codes[~gone]
            return out
        seen: Any = series[~gone]
        if self.kind == "datetime":
            out[~gone] = self._seconds(seen)
            return self.snap(out)
        try:
            out[~gone] = np.asarray(pd.to_numeric(seen), dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"Column {self.name!r} holds a value that is not a number ({error}).", "Correct it."
            ) from None
        wild = np.isinf(out)
        if wild.any():
            raise self._bad(wild, "is infinite", "Replace infinities by a number or by a missing value.")
        snapped = self.snap(out)
        off = ~gone & (np.abs(snapped - out) > 1e-3 * self.step)
        if off.any():
            raise self._bad(
                off,
                f"is {out[off.argmax()]!r}, not a multiple of {self.step:g}",
                "Round the column, or fit again on data with that resolution.",
            )
        return snapped

    def _seconds(self, series: pd.Series) -> np.ndarray:
        try:
            if self.text and self.text != "date" and not pd.api.types.is_datetime64_any_dtype(series.dtype):
                series = pd.to_datetime(series, format=self.text)
            return microseconds(series) / 1e6
        except (ValueError, TypeError) as error:
            raise DataError(
                f"Column {self.name!r} holds a value that is not a date ({error}).", "Correct it."
            ) from None

    def _bad(self, rows: np.ndarray, what: str, remedy: str) -> DataError:
        return DataError(
            f"Column {self.name!r} {what} in row {int(rows.argmax())} ({int(rows.sum())} rows in all).", remedy
        )

    # -- and back ----------------------------------------------------------------------------------------------

    def decode(self, x: np.ndarray) -> pd.Series:
        """The column with its dtype. Grid values are rounded to the grid; whole numbers are kept inside the dtype."""
        gone = np.isnan(x)
        if gone.any() and not self.missing:
            raise self._bad(gone, "came out as NaN", "It has no missing values: the model is at fault.")
        if self.coded:
            return self._decode_codes(x, gone)
        if self.kind == "datetime":
            return self._decode_times(x, gone)
        values = x
        if self.kind != "real":  # k / 10^d rather than k * 10^-d: the double nearest to the written decimal
            values = self.index(x)
            values = values / round(1 / self.step) if self.step < 1 else values * self.step
        whole = re.fullmatch(r"(u?)int(\d+)(?:\[pyarrow\])?", self.dtype.lower())
        if whole:
            unsigned, bits = bool(whole[1]), int(whole[2])
            low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            values = np.clip(values, max(low, -MAX_EXACT), min(high, MAX_EXACT))
        if self.dtype == "object":
            items = values[~gone].astype(np.int64 if self.kind == "integer" else np.float64).tolist()
            return self._objects(items, gone)
        if gone.any() and whole:  # nullable integers: through their own array, since NaN is no integer
            return (
                pd.Series(pd.array(np.where(gone, 0, values).astype(np.int64), dtype="Int64"))
                .mask(gone)
                .astype(self.dtype)
            )
        if gone.any() and self.dtype.startswith(("Float", "double[", "float[")):
            return pd.Series(pd.array(values, dtype="Float64")).mask(gone).astype(self.dtype)
        return pd.Series(values).astype(self.dtype)

    def _objects(self, items: Sequence[Any], gone: np.ndarray) -> pd.Series:
        out = np.full(len(gone), np.nan, dtype=object)
        filled = np.empty(len(items), dtype=object)
        filled[:] = items
        out[~gone] = filled
        return pd.Series(out, dtype=object)

    def _decode_codes(self, x: np.ndarray, gone: np.ndarray) -> pd.Series:
        codes = np.where(gone, -1, np.rint(np.nan_to_num(x))).astype(np.int64)
        wrong = (codes >= len(self.levels)) | (codes < 0) & ~gone
        if wrong.any():
            raise self._bad(
                wrong, f"came out as a code beyond its {len(self.levels)} categories", "The model is at fault."
            )
        if self.dtype == "category":
            index = pd.Index(self.levels, dtype=self.inner or None)
            return pd.Series(pd.Categorical.from_codes(codes, categories=index, ordered=self.ordered))
        levels = np.empty(len(self.levels), dtype=object)
        levels[:] = self.levels
        out = self._objects(levels[codes[~gone]].tolist(), gone)
        if gone.any() and self.dtype.startswith(("float", "Float")):
            return pd.Series(pd.to_numeric(out), dtype=self.dtype)
        return out if self.dtype == "object" else pd.Series(pd.array(out.where(~gone, pd.NA), dtype=self.dtype))

    def _decode_times(self, x: np.ndarray, gone: np.ndarray) -> pd.Series:
        tick = round(self.step * 1e6)
        micro = self.index(np.where(gone, 0, x)).astype(np.int64) * tick
        times = pd.Series(micro.astype("datetime64[us]")).mask(gone)
        if self.text:
            shown = times.dt.date if self.text == "date" else times.dt.strftime(self.text)
            out = self._objects(shown[~gone].tolist(), gone)
            return out if self.dtype == "object" else pd.Series(out.where(~gone, None), dtype=self.dtype)
        zone = re.search(r", (.+)\]", self.dtype)
        if zone:
            times = times.dt.tz_localize("UTC").dt.tz_convert(zone[1])
        return times.astype(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """JSON values; what is at its default is left out."""
        out: dict[str, Any] = {"name": self.name, "kind": self.kind, "dtype": self.dtype}
        if self.levels:
            out["levels"] = list(self.levels)
        for key, default in (("step", 1.0), ("missing", False), ("text", ""), ("inner", ""), ("ordered", False),
                             ("low", -math.inf), ("high", math.inf)):  # fmt: skip
            if getattr(self, key) != default:
                out[key] = getattr(self, key)
        return out

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Column:
        """Rebuild what `to_json` wrote."""
        return cls(**{**value, "levels": tuple(value.get("levels", ()))})


def microseconds(series: pd.Series) -> np.ndarray:
    times = pd.to_datetime(series)
    if getattr(times.dt, "tz", None) is not None:
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    return times.to_numpy(dtype="datetime64[us]").astype(np.int64)
