"""Arrays from .npy and .npz files, or from memory. Pickled objects are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from protea.data.dataset import Loaded
from protea.data.series import from_steps
from protea.errors import DataError
from protea.space import Space
from protea.spaces import Image, Table, Vector

DATA_KEYS = ("x", "X", "images", "data", "arr_0")
LABEL_KEYS = ("y", "labels", "label", "target", "targets")
LENGTH_KEYS = ("length", "lengths")  # of series


def load_arrays(path: Path, *, space: Space | None = None, levels: int = 256) -> Loaded:
    """An .npy file, or an .npz file with the keys x (or images, data) and perhaps y (or labels) and class_names."""
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.", "Give a file that numpy wrote.")
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise DataError(
                f"{path} holds pickled objects, which could run code and are refused.",
                "Save plain numbers: np.savez(path, x=array.astype('uint8')).",
            ) from None
        raise DataError(f"{path} is damaged ({error}).", "Write it again.") from None
    except (OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(
            f"{path} is not a numpy file, or it is truncated ({error}).", "Write it again with np.savez."
        ) from None
    key = next((k for k in DATA_KEYS if k in arrays), None)
    if key is None:
        shapes = ", ".join(f"{k} {v.shape}" for k, v in arrays.items())
        raise DataError(
            f"{path} has none of the keys {', '.join(DATA_KEYS[:4])}; it has {shapes or 'nothing'}.",
            "Save it as np.savez(path, x=examples, y=labels).",
        )
    label = next((arrays[k] for k in LABEL_KEYS if k in arrays), None)
    if arrays[key].dtype.kind == "f" and arrays[key].ndim == 3:
        lengths = next((arrays[k] for k in LENGTH_KEYS if k in arrays), None)
        found, classes = _labels(label, arrays.get("class_names"), len(arrays[key]), str(path))
        return from_steps(arrays[key], lengths, found, classes, path.stem, str(path), space)
    return from_array(
        arrays[key], label, path.stem, str(path), class_names=arrays.get("class_names"), space=space, levels=levels
    )


def from_array(
    x: np.ndarray,
    y: np.ndarray | None = None,
    name: str = "array",
    source: str = "an array",
    *,
    class_names: Any = None,
    space: Space | None = None,
    levels: int = 256,
) -> Loaded:
    """Examples from an array, by its type and shape.

    | array | space |
    |---|---|
    | uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) | Image |
    | float (N, D) or (N,) | Vector; with NaN, a Table of numbers that may be missing |
    | float (N, T, D) | Series, NaN where a value is missing or the series has ended |
    | other integers, booleans (N, D) or (N,) | Table of grid columns: a density of whole numbers means nothing |
    """
    if x.dtype.kind not in "buif":
        raise DataError(f"The array of {source} has type {x.dtype}, not numbers.", "Convert it to float or uint8.")
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"The array of {source} is empty: shape {x.shape}.", "Give at least ten examples.")
    if x.dtype.kind == "f" and x.ndim == 3:
        labels, classes = _labels(y, class_names, len(x), source)
        return from_steps(x, None, labels, classes, name, source, space)
    holes = x.dtype.kind == "f" and x.ndim <= 2 and bool(np.isnan(x).any()) and not isinstance(space, Vector)
    if x.dtype.kind == "f" and not (np.isfinite(x) | (np.isnan(x) & holes)).all():
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
        raise DataError(
            f"{int(bad.sum())} rows of {source} hold NaN or infinity, first row {int(bad.argmax())}.",
            "Replace infinities; mark what is missing as NaN in rows of numbers (N, D) or in a table.",
        )
    labels, classes = _labels(y, class_names, len(x), source)
    if space is not None and not (isinstance(space, Table) and x.ndim <= 2):
        return Loaded(name, source, space, space.encode(x), labels)
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        if x.ndim == 4 and x.shape[-1] not in (1, 2, 3, 4) and x.shape[1] in (1, 2, 3, 4):
            x = x.transpose(0, 2, 3, 1)
        if x.ndim == 4 and x.shape[-1] not in (1, 2, 3, 4):
            raise DataError(
                f"The array of {source} has shape {x.shape}: no axis is a number of channels (1 to 4).",
                "Images are (N, H, W) or (N, H, W, C).",
            )
        channels = x.shape[3] if x.ndim == 4 else 1
        images = Image(channels, x.shape[1], x.shape[2], levels=levels, classes=classes)
        return Loaded(name, source, images, images.encode(x), labels)
    if x.ndim > 2:
        raise DataError(
            f"The array of {source} has shape {x.shape} and type {x.dtype}: neither images nor points.",
            "Images are uint8 (N, H, W[, C]) with values 0..255; points are float (N, D).",
        )
    x = x[:, None] if x.ndim == 1 else x
    names = tuple(f"x{i}" for i in range(x.shape[1]))
    if x.dtype.kind == "f" and not holes and space is None:
        points = Vector(names, classes)
        return Loaded(name, source, points, points.encode(x), labels)
    frame = pd.DataFrame(x, columns=list(names))
    if labels is not None:
        frame["label"] = np.asarray(classes, dtype=object)[labels.numpy()]
    table = space if isinstance(space, Table) else Table.infer(frame, None if labels is None else "label")
    return Loaded(
        name,
        source,
        table,
        table.encode(frame),
        target=None if labels is None else "label",
        notes=("numbers with holes: read as a table" if holes else "whole numbers: read as a table",),
    )


def _labels(y: np.ndarray | None, names: Any, n: int, source: str) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    if y is None:
        return None, ()
    if y.shape != (n,):
        raise DataError(
            f"{source} has {n} examples, but labels of shape {y.shape}.", "Give one label for each example."
        )
    if y.dtype.kind == "f" and (y == np.rint(y)).all():
        y = y.astype(np.int64)
    if y.dtype.kind not in "biuU":
        raise DataError(f"The labels of {source} have type {y.dtype}.", "Labels are whole numbers or strings.")
    if names is not None and y.dtype.kind in "iu" and y.min() >= 0 and y.max() < len(names):
        return torch.from_numpy(y.astype(np.int64)), tuple(map(str, names))
    levels, codes = np.unique(y, return_inverse=True)
    if len(levels) > max(1000, n // 2):
        raise DataError(f"The labels of {source} have {len(levels)} distinct values in {n} rows.", "Leave them out.")
    return torch.from_numpy(codes.astype(np.int64)), tuple(map(str, levels.tolist()))
