"""Rows of a file in its order and without a split: what a trained model is asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from protea.data.arrays import load_arrays
from protea.data.open import open_data
from protea.data.series import from_long
from protea.data.tables import TABLES, read_frame
from protea.errors import DataError
from protea.space import Space
from protea.spaces import Series, Table, Vector


class FileRows(NamedTuple):
    """What a file holds: the user's objects as they are (a DataFrame, an array), or else canonical units and labels."""

    raw: Any
    x: Tensor | None
    y: Tensor | None


def read_rows(space: Space, data: str | Path) -> FileRows:
    """The rows of a file, a folder or an embedded set, in the order of the source.

    Tables and arrays of vectors come as they are, so that they may be incomplete, or lack columns; others encoded.
    Series in a table have a row a step and a column "sequence".

    Raises:
        DataError: the file cannot be read or does not fit the space.

    >>> from protea.spaces import Image
    >>> read_rows(Image(1, 8, 8, levels=17, classes=tuple("0123456789")), "digits").y[:4].tolist()
    [0, 1, 2, 3]
    """
    path = Path(data).expanduser()
    name = path.name.lower()
    if isinstance(space, Table) and path.is_file() and name.endswith((*TABLES, ".jsonl", ".jsonl.gz", ".ndjson")):
        return FileRows(read_frame(path)[0], None, None)
    if isinstance(space, Vector) and path.is_file() and name.endswith((".npy", ".npz")):
        try:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return FileRows(loaded, None, None)
            labels = torch.from_numpy(loaded["y"].astype(np.int64)) if "y" in loaded.files else None
            return FileRows(loaded["x" if "x" in loaded.files else loaded.files[0]], None, labels)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is not a plain numpy file ({error}).", "Write it again with np.save.") from None
    if isinstance(space, Table) and path.is_file() and name.endswith((".npy", ".npz")):
        loaded = load_arrays(path, space=space)  # numbers, or a table of them
        return FileRows(space.decode(loaded.x), None, None)
    if path.is_file() and name.endswith((".npy", ".npz")):
        loaded = load_arrays(path, space=space)
        return FileRows(None, loaded.x, loaded.y)
    if isinstance(space, Series) and path.is_file() and name.endswith(TABLES):
        frame = read_frame(path)[0]
        if all(column in frame.columns for column in space.names):
            frame = frame.drop(columns=[c for c in frame.columns if c not in ("sequence", *space.names)])
        loaded = from_long(frame, "sequence", path.stem, str(path), space=space)
        return FileRows(None, loaded.x, None)
    dataset = open_data(str(data), space=space)
    parts = (dataset.train, dataset.validation, dataset.holdout)
    order = torch.argsort(torch.cat([p.ids for p in parts]))
    y = None if dataset.train.y is None else torch.cat([p.y for p in parts if p.y is not None])[order]
    return FileRows(None, torch.cat([p.x for p in parts])[order], y)
