"""What a look at the data says before anything is trained: in seconds, in plain words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protea.data.near_duplicates import NearDuplicates, near_duplicates
from protea.data.split import distinct
from protea.space import Space
from protea.spaces import Image, Table, Tokens, Vector


@dataclass(frozen=True)
class Preflight:
    """Facts and warnings about a data set.

    Args:
        rows: how many examples (rows, images, blocks of text).
        kind: of the space.
        columns: for each column (or coordinate): name, kind, missing, distinct, low, high, most common.
        exact_duplicates: rows that repeat an earlier row.
        near_duplicates: see `near_duplicates`.
        classes: name of each label (or level of the target) to its count.
        value_range: smallest and largest value of pixels or coordinates.
        left_out: columns that were not taken, with the reason.
        notes: what was done on reading (which words were read as missing, how text was cut ...).
        warnings: what the user should know, in plain words.
    """

    rows: int
    kind: str
    columns: tuple[dict[str, Any], ...] = ()
    exact_duplicates: int = 0
    near_duplicates: NearDuplicates | None = None
    classes: dict[str, int] | None = None
    value_range: tuple[float, float] | None = None
    left_out: dict[str, str] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        near = None if self.near_duplicates is None else self.near_duplicates.to_json()
        return json.loads(json.dumps({**self.__dict__, "near_duplicates": near}))


def preflight(
    space: Space,
    x: Tensor,
    y: Tensor | None,
    *,
    keys: np.ndarray,
    part: np.ndarray,
    target: Any = None,
    left_out: dict[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> Preflight:
    """Look at rows (N, *event) in canonical units.

    Args:
        space, x, y: the examples.
        keys: (N, 4) content hashes.
        part: (N,) part of the split.
        target: name of a table's target column.
        left_out: columns not taken, with reasons.
        notes: what the reader did.
    """
    first, _ = distinct(keys)
    repeated = len(keys) - len(first)
    near = near_duplicates(space, x, torch.from_numpy(first), torch.from_numpy(part))
    columns = tuple(_columns(space, x))
    classes = _classes(space, x, y, target)
    value_range = None
    if isinstance(space, (Image, Vector)):
        value_range = (float(x.min()), float(x.max()))
    warnings = [f"column {name!r} is left out: {why}" for name, why in (left_out or {}).items()]
    warnings += _about_columns(space, columns, len(x))
    if repeated:
        warnings.append(
            f"{repeated} of {len(x)} rows repeat an earlier row exactly; copies stay in one part of the split"
        )
    if repeated > 0.5 * len(x) and not isinstance(space, Tokens):
        warnings.append(
            f"only {len(first)} of {len(x)} rows are distinct: as copies stay together, validation and holdout "
            "hold rows that training never saw, and likelihoods say how a model generalises to those"
        )
    if near.found > 0.01 * near.searched:
        share = 100 * near.found / near.searched
        warnings.append(
            f"{share:.1f} % of the rows have a near duplicate ({near.straddling} of {near.found} of them "
            "across the split): likelihoods and the copy audit will look better than they are"
        )
    warnings += _about_classes(classes, target)
    if isinstance(space, Image) and value_range is not None and value_range[1] <= (space.levels - 1) / 2:
        warnings.append(
            f"pixels reach only {value_range[1]:g} of {space.levels - 1}: "
            f"open with levels={int(value_range[1]) + 1} if that is their true range"
        )
    if len(x) < 200:
        warnings.append(f"only {len(x)} rows: intervals will be wide")
    return Preflight(
        len(x), space.kind, columns, repeated, near, classes, value_range, left_out, notes, tuple(warnings)
    )


def _columns(space: Space, x: Tensor) -> list[dict[str, Any]]:
    if isinstance(space, Vector):
        values = {name: x[:, i].numpy() for i, name in enumerate(space.names)}
        kinds: dict[Any, Any] = dict.fromkeys(space.names)
    elif isinstance(space, Table):
        values, kinds = space.values(x), space.by_name
    else:
        return []
    out = []
    for name, column in kinds.items():
        v = values[name]
        v = v[~np.isnan(v)]
        facts: dict[str, Any] = {"name": name, "kind": column.kind if column else "real", "missing": len(x) - len(v)}
        unique, counts = np.unique(v, return_counts=True)
        facts["distinct"] = len(unique)
        if len(unique) and column is not None and column.coded:
            facts["most_common"] = str(column.levels[int(unique[counts.argmax()])])
            facts["most_common_share"] = float(counts.max() / len(v))
        elif len(unique):
            low, high = float(unique[0]), float(unique[-1])
            date = column is not None and column.kind == "datetime"
            facts["low"], facts["high"] = (_date(low), _date(high)) if date else (low, high)
            facts["most_common_share"] = float(counts.max() / len(v))
        out.append(facts)
    return out


def _date(seconds: float) -> str:
    return str(np.datetime64(round(seconds * 1e6), "us"))[:19]


def _classes(space: Space, x: Tensor, y: Tensor | None, target: Any) -> dict[str, int] | None:
    if y is not None:
        counts = torch.bincount(y, minlength=len(space.classes)).tolist()
        return dict(zip(space.classes, counts))
    if isinstance(space, Table) and target is not None and space.by_name[target].coded:
        codes = space.values(x)[target]
        counts = np.bincount(codes[~np.isnan(codes)].astype(np.int64), minlength=len(space.by_name[target].levels))
        return {str(level): int(n) for level, n in zip(space.by_name[target].levels, counts)}
    return None


def _about_columns(space: Space, columns: tuple[dict[str, Any], ...], n: int) -> list[str]:
    out = []
    for c in columns:
        name, full = c["name"], n - c["missing"]
        if c["missing"]:
            out.append(f"column {name!r}: {c['missing']} values ({100 * c['missing'] / n:.1f} %) are missing")
        if c["distinct"] == 1:
            out.append(f"column {name!r} is constant")
        elif c["kind"] == "category" and c["distinct"] > 0.5 * full and full >= 20:
            out.append(
                f"column {name!r} has {c['distinct']} categories in {full} rows: it looks like a name; "
                f"drop=[{name!r}] leaves it out"
            )
        elif c["kind"] == "category" and c["distinct"] > 1000:
            out.append(f"column {name!r} has {c['distinct']} categories; rare ones cannot be learnt")
        elif c["kind"] == "real" and c["distinct"] < 0.5 * full and full >= 20:
            out.append(
                f"column {name!r} repeats its values ({c['distinct']} distinct of {full}): a density can spike there"
            )
    return out


def _about_classes(classes: dict[str, int] | None, target: Any) -> list[str]:
    if not classes or not sum(classes.values()):
        return []
    what = f"target {target!r}" if target is not None else "labels"
    total = sum(classes.values())
    rare = [name for name, count in classes.items() if 0 < count < max(10, 0.01 * total)]
    top, most = max(classes.items(), key=lambda item: item[1])
    out = [f"{what}: {', '.join(rare[:5])} {'has' if len(rare) == 1 else 'have'} very few rows"] if rare else []
    if most > 0.9 * total and len(classes) > 1:
        out.append(f"{what}: {100 * most / total:.0f} % of the rows are {top!r}")
    return out
