"""Where the labels of a data set are: beside the rows (images, vectors) or in a column of them (tables)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protea.errors import DataError, NotSupported
from protea.space import Rows, Space
from protea.spaces import Table


@dataclass(frozen=True)
class Labelling:
    """The classes of a space and where a row's label stands.

    Args:
        names: the classes, in the order of their codes.
        column: the entry of a table's row that holds the label; None where labels are `Rows.y`.

    >>> from protea.data import open_data
    >>> iris = open_data("iris")
    >>> where = labelling(iris.space)
    >>> where.names, where.column, where.of(iris.train)[:3].tolist()
    (('setosa', 'versicolor', 'virginica'), 4, [0, 0, 0])
    """

    names: tuple[str, ...]
    column: int | None

    def of(self, rows: Rows) -> Tensor:
        """Labels (N,) int64; -1 where unknown."""
        if self.column is None:
            return rows.y.long() if rows.y is not None else torch.full((len(rows),), -1)
        return rows.x[:, self.column].nan_to_num(nan=-1.0).long()

    def hide(self, rows: Rows) -> Rows:
        """The same rows with their labels unknown: -1 beside them, NaN in the column."""
        unknown = None if self.column is not None else torch.full((len(rows),), -1)
        return Rows(self.put(rows.x, None), unknown, rows.ids)

    def put(self, x: Tensor, label: int | None) -> Tensor:
        """x with every row's label set in its column, where labels are one; x itself otherwise."""
        if self.column is None:
            return x
        x = x.clone()
        x[:, self.column] = torch.nan if label is None else float(label)
        return x


def labelling(space: Space) -> Labelling:
    """Where the labels of a space are.

    Raises:
        NotSupported: the space has no labels. DataError: the target is not a category, or has a single level.
    """
    if not isinstance(space, Table):
        if not space.classes:
            raise NotSupported(
                f"These {space.kind} data have no labels to predict.",
                "Give labelled data: an .npz with y, a folder with one sub-folder a class, or a table with --target.",
            )
        names, column = space.classes, None
    else:
        if space.target is None:
            raise NotSupported("The table names no column to predict.", "Name it: --target COLUMN (target=...).")
        column, target = space.target_index, space.by_name[space.target]
        if column is None:
            raise DataError(
                f"The target {space.target!r} is merged into other columns by a constraint.",
                "Leave the constraint out.",
            )
        if not target.coded:
            raise DataError(
                f"The target {space.target!r} holds {target.kind} numbers, not classes.",
                f"""If they are codes of classes, say so: --option 'categories=["{space.target}"]'.""",
            )
        names = tuple(map(str, target.levels))
    if len(names) < 2:
        raise DataError(f"The labels have one class only ({', '.join(names)}).", "A classifier needs two or more.")
    return Labelling(names, column)


def require_classes(labels: Tensor, where: Labelling, what: str) -> None:
    """Raise DataError unless the known labels (N,) show at least two classes."""
    seen = labels[labels >= 0].unique()
    if len(seen) < 2:
        found = "no labels at all" if len(seen) == 0 else f"only the class {where.names[int(seen[0])]!r}"
        raise DataError(f"{what} hold {found}.", "Give rows of two classes or more.")


def encode_unlabelled(space: Space, raw: Any) -> Tensor:
    """Canonical units of rows whose label may be absent: a table may lack the target column (it becomes NaN)."""
    import pandas as pd

    if not isinstance(space, Table) or space.target_index is None:
        return space.encode(raw)
    frame = raw if isinstance(raw, pd.DataFrame) else pd.DataFrame(raw)
    label, frame = space.by_name[space.target], frame.copy()
    known = torch.zeros(len(frame), dtype=torch.bool)
    if space.target in frame.columns:
        known = torch.from_numpy(frame[space.target].notna().to_numpy(dtype=bool).copy())
        frame[space.target] = frame[space.target].astype(object).where(known.numpy(), label.levels[0])
    else:
        frame[space.target] = pd.Series([label.levels[0]] * len(frame), index=frame.index, dtype=object)
    x = space.encode(frame)
    x[~known, space.target_index] = torch.nan
    return x
