"""What must hold in every row of a table, and how it is made to hold.

| constraint | held by |
|---|---|
| `Sum(total, parts)`: total = sum of parts | construction: the total is left out of canonical units and recomputed |
| `FixedCombinations(columns)`: only tuples that occur | construction: one composite category stands for the columns |
| `NotNull(columns)` | construction: the field admits no missing values |
| `Range(column, low, high)` | rejection (the bounds are also told to the models through `Field.low`, `Field.high`) |
| `Inequality(low, high)`: low <= high in every row | rejection |

Clipping a sample onto a bound would be a construction too, but a wrong one: it heaps the probability of
all impossible values on the bound itself. Rejection draws from the model's distribution conditioned on
the constraints, which is what the constraints mean; its rate is shown. Missing values satisfy a range and
an inequality; a sum is missing where one of its parts is.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from protea.errors import ConstraintError, nearest

Values = Mapping[Any, np.ndarray]  # column to canonical values (N,)


class Constraint(ABC):
    """Something that holds in every row."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def names(self) -> tuple[Any, ...]:
        """The columns it speaks of."""

    def to_json(self) -> dict[str, Any]:
        """{"kind": ..., arguments}."""
        return json.loads(json.dumps({"kind": self.kind, **asdict(self)}))  # type: ignore[call-overload]


@dataclass(frozen=True)
class Range(Constraint):
    """low <= column <= high; a bound may be None. Bounds of a datetime are dates: "2020-01-31"."""

    column: Any
    low: Any = None
    high: Any = None
    kind: ClassVar[str] = "range"

    @property
    def names(self) -> tuple[Any, ...]:
        return (self.column,)


@dataclass(frozen=True)
class Inequality(Constraint):
    """low <= high, or low < high where `strict`, between two columns."""

    low: Any
    high: Any
    strict: bool = False
    kind: ClassVar[str] = "inequality"

    @property
    def names(self) -> tuple[Any, ...]:
        return (self.low, self.high)


@dataclass(frozen=True)
class Sum(Constraint):
    """total = sum of parts."""

    total: Any
    parts: tuple[Any, ...]
    kind: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))

    @property
    def names(self) -> tuple[Any, ...]:
        return (self.total, *self.parts)


@dataclass(frozen=True)
class FixedCombinations(Constraint):
    """Only the `allowed` tuples of categories (None for missing); by default those of the data."""

    columns: tuple[Any, ...]
    allowed: tuple[tuple[Any, ...], ...] = ()
    kind: ClassVar[str] = "fixed_combinations"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "allowed", tuple(tuple(row) for row in self.allowed))

    @property
    def names(self) -> tuple[Any, ...]:
        return self.columns


@dataclass(frozen=True)
class NotNull(Constraint):
    """No missing values in these columns."""

    columns: tuple[Any, ...]
    kind: ClassVar[str] = "not_null"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", (self.columns,) if isinstance(self.columns, str) else tuple(self.columns))

    @property
    def names(self) -> tuple[Any, ...]:
        return self.columns


KINDS: dict[str, type[Constraint]] = {c.kind: c for c in (Range, Inequality, Sum, FixedCombinations, NotNull)}


def parse_constraints(value: Any) -> tuple[Constraint, ...]:
    """Constraints from themselves or from JSON objects such as {"kind": "range", "column": "age", "low": 0}.

    >>> parse_constraints([{"kind": "inequality", "low": "start", "high": "end"}])
    (Inequality(low='start', high='end', strict=False),)
    """
    out = []
    for item in value or ():
        if isinstance(item, Constraint):
            out.append(item)
            continue
        if not isinstance(item, Mapping) or item.get("kind") not in KINDS:
            kind = item.get("kind") if isinstance(item, Mapping) else item
            raise ConstraintError(f"{kind!r} is not a kind of constraint.", nearest(str(kind), KINDS))
        cls = KINDS[item["kind"]]
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        given = {k: v for k, v in item.items() if k != "kind"}
        try:
            out.append(cls(**given))
        except TypeError:
            raise ConstraintError(
                f"A {item['kind']} constraint cannot be made from {given}.",
                f"Its arguments are: {', '.join(sorted(known))}.",
            ) from None
    return tuple(out)


def violated(constraint: Constraint, values: Values, columns: Mapping[Any, Any]) -> np.ndarray:
    """(N,) booleans: the rows that break a constraint, given canonical values of the user's columns."""
    if isinstance(constraint, Range):
        low, high = bounds(constraint, columns)
        x = values[constraint.column]
        return (x < low) | (x > high)  # NaN compares false
    if isinstance(constraint, Inequality):
        a, b = values[constraint.low], values[constraint.high]
        return (a >= b) if constraint.strict else (a > b)
    if isinstance(constraint, Sum):
        total, sums = values[constraint.total], add(constraint, values)
        slack = 0.5 * min(columns[n].step if columns[n].kind != "real" else 0.0 for n in constraint.names)
        slack = np.maximum(slack, 1e-9 * np.maximum(1.0, np.abs(np.nan_to_num(sums))))
        return (np.isnan(total) != np.isnan(sums)) | (np.abs(total - sums) > slack)
    if isinstance(constraint, NotNull):
        return np.any([np.isnan(values[n]) for n in constraint.columns], axis=0)
    assert isinstance(constraint, FixedCombinations)
    return combination(constraint, values, columns) < 0


def add(constraint: Sum, values: Values) -> np.ndarray:
    """The sum of the parts."""
    return np.sum([values[n] for n in constraint.parts], axis=0)


def bounds(constraint: Range, columns: Mapping[Any, Any]) -> tuple[float, float]:
    """Both bounds in canonical units."""
    column = columns[constraint.column]
    low = -math.inf if constraint.low is None else column.number(constraint.low)
    high = math.inf if constraint.high is None else column.number(constraint.high)
    return low, high


def combination(constraint: FixedCombinations, values: Values, columns: Mapping[Any, Any]) -> np.ndarray:
    """(N,) place in `allowed` of each row's tuple, or -1."""
    sizes = [len(columns[n].levels) + 1 for n in constraint.columns]
    codes = [np.nan_to_num(values[n], nan=-1.0).astype(np.int64) + 1 for n in constraint.columns]
    key = np.ravel_multi_index(codes, sizes)
    known = np.ravel_multi_index(list(allowed_codes(constraint, columns).T + 1), sizes)
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known[order], key), len(order) - 1)
    return np.where(known[order][place] == key, order[place], -1)


def allowed_codes(constraint: FixedCombinations, columns: Mapping[Any, Any]) -> np.ndarray:
    """(K, C) codes of the allowed tuples; -1 is missing."""
    codes = []
    for name, entries in zip(constraint.columns, zip(*constraint.allowed)):
        place = {level: i for i, level in enumerate(columns[name].levels)} | {None: -1}
        unknown = [v for v in entries if v not in place]
        if unknown:
            raise ConstraintError(
                f"An allowed combination names {unknown[0]!r}, which column {name!r} never takes.",
                nearest(str(unknown[0]), place),
            )
        codes.append([place[v] for v in entries])
    return np.array(codes, dtype=np.int64).T


def check_consistent(constraints: Sequence[Constraint], columns: Mapping[Any, Any]) -> None:
    """Raise ConstraintError where constraints name unknown columns or columns of the wrong kind, overlap, or
    contradict each other (bounds are propagated through inequalities and sums until nothing changes)."""
    for c in constraints:
        for name in c.names:
            if name not in columns:
                raise ConstraintError(
                    f"The {c.kind} constraint names a column {name!r} that the table does not have.",
                    nearest(str(name), columns),
                )
            coded = columns[name].coded
            if isinstance(c, FixedCombinations) and not coded:
                raise ConstraintError(
                    f"Fixed combinations are of categories, but column {name!r} is {columns[name].kind}.",
                    f"Declare it: categories=[{name!r}].",
                )
            if isinstance(c, (Range, Inequality, Sum)) and coded:
                raise ConstraintError(
                    f"A {c.kind} is of numbers or dates, but column {name!r} is {columns[name].kind}.",
                    "Use fixed combinations for categories.",
                )
            if isinstance(c, Sum) and columns[name].kind == "datetime":
                raise ConstraintError(f"Dates such as column {name!r} cannot be summed.", "Use an inequality.")
    built = [n for c in constraints if isinstance(c, FixedCombinations) for n in c.columns]
    built += [c.total for c in constraints if isinstance(c, Sum)]
    twice = sorted({str(n) for n in built if built.count(n) > 1})
    if twice:
        raise ConstraintError(f"Column {twice[0]!r} is fixed by two constraints.", "Merge them into one.")
    _check_order(constraints)
    _check_bounds(constraints, columns)


def _check_order(constraints: Sequence[Constraint]) -> None:
    """No chain of sums or of strict inequalities may lead back to its start."""
    below = [(c.low, c.high, c.strict) for c in constraints if isinstance(c, Inequality)]
    names = sorted({n for a, b, _ in below for n in (a, b)}, key=str)
    place = {n: i for i, n in enumerate(names)}
    reach = np.zeros((len(names), len(names)), dtype=bool)
    for a, b, _ in below:
        reach[place[a], place[b]] = True
    for i in range(len(names)):  # Warshall's closure
        reach |= reach[:, i : i + 1] & reach[i : i + 1]
    for a, b, strict in below:
        if strict and (a == b or reach[place[b], place[a]]):
            raise ConstraintError(
                f"{a!r} < {b!r} contradicts the other inequalities, which say {b!r} <= {a!r}.", "Remove one of them."
            )
    parts = {c.total: set(c.parts) for c in constraints if isinstance(c, Sum)}
    for total in parts:
        seen: set[Any] = set()
        front = set(parts[total])
        while front - seen:
            seen |= front
            front = {p for n in front for p in parts.get(n, ())}
        if total in seen:
            raise ConstraintError(f"The sum for {total!r} contains {total!r} itself.", "Remove one of the sums.")


def _check_bounds(constraints: Sequence[Constraint], columns: Mapping[Any, Any]) -> None:
    low = dict.fromkeys(columns, -math.inf)
    high = dict.fromkeys(columns, math.inf)
    for c in constraints:
        if isinstance(c, Range):
            a, b = bounds(c, columns)
            low[c.column], high[c.column] = max(low[c.column], a), min(high[c.column], b)
    for _ in range(len(columns) + 1):
        for c in constraints:
            if isinstance(c, Inequality):
                low[c.high] = max(low[c.high], low[c.low])
                high[c.low] = min(high[c.low], high[c.high])
                if c.strict and low[c.low] >= high[c.high]:
                    raise ConstraintError(
                        f"{c.low!r} < {c.high!r} contradicts the ranges of these columns.", "Widen a range."
                    )
            elif isinstance(c, Sum):
                low[c.total] = max(low[c.total], sum(low[p] for p in c.parts))
                high[c.total] = min(high[c.total], sum(high[p] for p in c.parts))
    for name in columns:
        if low[name] > high[name]:
            raise ConstraintError(
                f"The constraints leave no value for column {name!r}: at least {low[name]:g} and at most "
                f"{high[name]:g}.",
                "Widen or remove one of its bounds.",
            )
