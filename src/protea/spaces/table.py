r"""Tables of mixed columns: a DataFrame to float64 and back, dtypes, categories and missing values included.

Canonical units (N, C) are one entry a column, in order, except where a constraint holds by construction:
the total of a `Sum` is left out (its parts say it), and the columns of `FixedCombinations` are one composite
category in the place of the first of them. Both are bijections of the rows allowed, so the nats per row
are those of the whole row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from protea.errors import ConstraintError, DataError, nearest
from protea.space import Field, Space
from protea.spaces.columns import Column
from protea.spaces.constraints import (
    Constraint,
    FixedCombinations,
    Inequality,
    NotNull,
    Range,
    Sum,
    add,
    allowed_codes,
    bounds,
    check_consistent,
    combination,
    parse_constraints,
    violated,
)
from protea.spaces.inference import infer_column

MAX_ONE_HOT = 64  # features: categories of more levels share this many hashed places
MAX_FLAG_LEVELS = 20  # an integer target of at most so many values is a class label


@dataclass(frozen=True)
class Table(Space):
    """Rows of mixed columns: float64 (N, C), missing as NaN. Usually made by `Table.infer`.

    Args:
        columns: the user's columns, in order.
        constraints: what holds in every row.
        target: the column of labels, which stays an entry like any other; None where no column is one.

    >>> frame = pd.DataFrame({"age": [31, 45, 27], "city": ["Bonn", None, "Ulm"], "paid": [True, False, True]})
    >>> space = Table.infer(frame)
    >>> [column.kind for column in space.columns]
    ['integer', 'category', 'boolean']
    >>> space.decode(space.encode(frame)).equals(frame)
    True
    """

    columns: tuple[Column, ...]
    constraints: tuple[Constraint, ...] = ()
    target: Any = None
    kind: ClassVar[str] = "table"
    dtype: ClassVar[torch.dtype] = torch.float64
    classes: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]  # labels are columns of the table

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "constraints", tuple(self.constraints))
        if not self.columns:
            raise DataError("A table needs at least one column.")
        check_consistent(self.constraints, self.by_name)
        if self.target is not None and self.target not in self.by_name:
            raise DataError(f"There is no column {self.target!r}.", nearest(str(self.target), self.by_name))

    @classmethod
    def infer(
        cls,
        frame: Any,
        target: Any = None,
        *,
        ordinals: Mapping[Any, Sequence[Any]] | None = None,
        categories: Sequence[Any] = (),
        constraints: Any = (),
    ) -> Table:
        """The schema of a DataFrame.

        Args:
            frame: the rows, a DataFrame.
            target: the column to predict; integers of at most 20 values become categories.
            ordinals: column to levels from low to high.
            categories: numeric columns that are names of categories.
            constraints: `Constraint` objects, or JSON objects (see `parse_constraints`).

        Raises:
            DataError: a column that cannot be modelled, by name.
            ConstraintError: constraints that contradict each other or the rows, by row.
        """
        _check_labels(frame)
        ordinals, wanted = dict(ordinals or {}), parse_constraints(constraints)
        for name in (*ordinals, *categories, *(() if target is None else (target,))):
            if name not in frame.columns:
                raise DataError(f"There is no column {name!r}.", nearest(str(name), frame.columns))
        names = set(categories)
        if target is not None and pd.api.types.is_integer_dtype(frame[target].dtype):
            names |= {target} if frame[target].nunique() <= MAX_FLAG_LEVELS else set()
        found = {n: infer_column(frame[n], ordinal=ordinals.get(n), category=n in names) for n in frame.columns}
        check_consistent(wanted, found)
        for i, c in enumerate(wanted):
            if isinstance(c, FixedCombinations) and not c.allowed:
                seen = frame[list(c.columns)].drop_duplicates()
                rows = [tuple(None if pd.isna(v) else getattr(v, "item", lambda v=v: v)() for v in row)
                        for row in seen.astype(object).itertuples(index=False)]  # fmt: skip
                rows.sort(key=lambda row: tuple((v is None, str(v)) for v in row))
                wanted = (*wanted[:i], replace(c, allowed=tuple(rows)), *wanted[i + 1 :])
            elif isinstance(c, Range):
                low, high = bounds(c, found)
                column = found[c.column]
                found[c.column] = replace(column, low=max(column.low, low), high=min(column.high, high))
        values = {n: found[n].encode(frame[n]) for n in frame.columns}
        for c in wanted:
            _refuse(c, violated(c, values, found), "the data")
        return cls(tuple(found.values()), wanted, target)

    @cached_property
    def by_name(self) -> dict[Any, Column]:
        """The user's columns by label."""
        return {column.name: column for column in self.columns}

    @cached_property
    def entries(self) -> tuple[Column | FixedCombinations, ...]:
        """What canonical units hold: a column, or a composite of several."""
        totals = {c.total for c in self.constraints if isinstance(c, Sum)}
        composite = {n: c for c in self.constraints if isinstance(c, FixedCombinations) for n in c.columns}
        out: list[Column | FixedCombinations] = []
        for column in self.columns:
            joint = composite.get(column.name)
            if joint is None and column.name not in totals:
                out.append(column)
            elif joint is not None and column.name == joint.columns[0]:
                out.append(joint)
        return tuple(out)

    @property
    def event(self) -> tuple[int, ...]:
        return (len(self.entries),)

    @cached_property
    def target_index(self) -> int | None:
        """The entry of canonical units that is the target; None without one, or where a constraint has merged it."""
        names = [entry.name if isinstance(entry, Column) else None for entry in self.entries]
        return names.index(self.target) if self.target is not None and self.target in names else None

    @cached_property
    def fields(self) -> list[Field]:  # type: ignore[override]
        return [
            Field("+".join(map(str, e.columns)), "category", levels=len(e.allowed))
            if isinstance(e, FixedCombinations)
            else e.field
            for e in self.entries
        ]

    def encode(self, raw: Any) -> Tensor:
        """A DataFrame with these columns, in any order, to float64 (N, C).

        Raises:
            DataError: a column is absent, or a value does not fit its column (named, with its row).
            ConstraintError: a row breaks a sum or a combination, which canonical units cannot say.
        """
        raw = raw if isinstance(raw, pd.DataFrame) else pd.DataFrame(raw)
        _check_labels(raw)
        absent = [column.name for column in self.columns if column.name not in raw.columns]
        if absent:
            raise DataError(f"The table lacks the columns {absent[:5]}.", nearest(str(absent[0]), raw.columns))
        values = {column.name: column.encode(raw[column.name]) for column in self.columns}
        for c in self.constraints:
            if isinstance(c, (Sum, FixedCombinations)):
                _refuse(c, violated(c, values, self.by_name), "the rows")
        out = [
            combination(e, values, self.by_name).astype(np.float64)
            if isinstance(e, FixedCombinations)
            else values[e.name]
            for e in self.entries
        ]
        return torch.from_numpy(np.stack(out, 1)) if len(raw) else torch.empty((0, *self.event), dtype=torch.float64)

    def values(self, x: Tensor) -> dict[Any, np.ndarray]:
        """Canonical values of each of the user's columns, totals and members of composites included."""
        array = x.detach().cpu().double().numpy()
        out: dict[Any, np.ndarray] = {}
        for i, entry in enumerate(self.entries):
            if isinstance(entry, FixedCombinations):
                codes = allowed_codes(entry, self.by_name).astype(np.float64)
                codes[codes < 0] = np.nan
                members = codes[np.rint(array[:, i]).astype(np.int64)]
                out |= {name: members[:, j] for j, name in enumerate(entry.columns)}
            else:
                out[entry.name] = entry.snap(array[:, i])
        sums = [c for c in self.constraints if isinstance(c, Sum)]
        while sums:  # a total may be a part of another sum
            ready = next(c for c in sums if all(p in out for p in c.parts))
            out[ready.total] = self.by_name[ready.total].snap(add(ready, out))
            sums.remove(ready)
        return out

    def decode(self, x: Tensor) -> pd.DataFrame:
        """A DataFrame with the dtypes, categories and column order of the data."""
        values = self.values(x)
        data = {i: column.decode(values[column.name]) for i, column in enumerate(self.columns)}
        frame = pd.DataFrame(data, index=pd.RangeIndex(len(x)))
        frame.columns = pd.Index([column.name for column in self.columns])
        return frame

    def satisfied(self, x: Tensor) -> Tensor:
        """(N,) booleans: rows that satisfy the constraints which do not hold by construction."""
        ok = np.ones(len(x), dtype=bool)
        rejected = [c for c in self.constraints if isinstance(c, (Range, Inequality, NotNull))]
        if rejected:
            values = self.values(x)
            for c in rejected:
                ok &= ~violated(c, values, self.by_name)
        return torch.from_numpy(ok)

    @cached_property
    def feature_names(self) -> list[str]:
        """Names of the columns of `features`."""
        out = []
        for field, entry in zip(self.fields, self.entries):
            if field.kind != "category":
                out.append(field.name)
                continue
            if field.levels > MAX_ONE_HOT:
                names = [f"hash {i}" for i in range(MAX_ONE_HOT)]
            elif isinstance(entry, FixedCombinations):
                names = [", ".join(map(str, row)) for row in entry.allowed]
            else:
                names = [str(level) for level in entry.levels]
            out += [f"{field.name} = {name}" for name in names]
            out += [f"{field.name} missing"] if field.missing else []
        return out

    def features(self, x: Tensor) -> Tensor:
        """(N, F): numbers raw, with NaN where missing; categories one-hot, missing being a level of its own.

        A category of more than 64 levels shares 64 places by a fixed hash of its code. Scales and the
        filling of NaN belong to the tools that compare, which know the training rows.
        """
        x, parts = x.detach().cpu().double(), []
        for i, field in enumerate(self.fields):
            if field.kind != "category":
                parts.append(x[:, i : i + 1])
                continue
            gone = x[:, i].isnan()
            code = x[:, i].nan_to_num(0).long()
            wide = min(field.levels, MAX_ONE_HOT)
            code = (code * 2654435761 >> 16) % MAX_ONE_HOT if field.levels > MAX_ONE_HOT else code
            hot = torch.zeros(len(x), wide + field.missing, dtype=torch.float64)
            hot.scatter_(1, torch.where(gone, wide, code)[:, None] if field.missing else code[:, None], 1.0)
            parts.append(hot)
        return torch.cat(parts, 1)

    def likelihood(self, nats: Tensor) -> tuple[Tensor, str]:
        """-log p of the row, "nats per row" (mass of grids and categories, density of reals): lower is better."""
        return -nats, "nats per row"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "columns": [c.to_json() for c in self.columns],
            "constraints": [c.to_json() for c in self.constraints],
            "target": self.target,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Table:
        """Rebuild what `to_json` wrote."""
        columns = tuple(map(Column.from_json, value["columns"]))
        return cls(columns, parse_constraints(value["constraints"]), value.get("target"))


def _check_labels(frame: pd.DataFrame) -> None:
    twice = frame.columns[frame.columns.duplicated()].tolist()
    if twice:
        raise DataError(f"The column name {twice[0]!r} occurs more than once.", "Give every column its own name.")


def _refuse(constraint: Constraint, rows: np.ndarray, where: str) -> None:
    if rows.any():
        said = str(constraint.to_json()) if len(str(constraint)) < 200 else f"the {constraint.kind} constraint"
        which = ", ".join(map(str, rows.nonzero()[0][:5].tolist()))
        raise ConstraintError(
            f"{int(rows.sum())} rows of {where} break {said}; the first are rows {which}.",
            "Correct these rows or drop the constraint.",
        )
