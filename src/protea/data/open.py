"""`open_data`: a path, a name or an object in memory to a split data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from protea.data.arrays import from_array, load_arrays
from protea.data.dataset import Dataset, Documents, Loaded, split_documents, split_rows
from protea.data.embedded import EMBEDDED, embedded_name
from protea.data.images import SUFFIXES, image_files, load_images
from protea.data.series import from_long
from protea.data.split import FRACTIONS
from protea.data.tables import TABLES, load_table, read_frame, read_jsonl
from protea.data.text import TEXTS, from_records, load_text, load_text_folder, text_field, text_space
from protea.errors import ConfigError, DataError, nearest
from protea.space import Space
from protea.spaces import Image, Series, Table, Tokens
from protea.spaces.tokenizers import parse as parse_tokenizer

BLOCK = 128  # tokens of a block of text
OPTIONS = {
    "n": "toys: number of points",
    "block": "text: tokens of a block (128)",
    "tokenizer": "text: bytes, chars, bpe:512, wordpiece:1000, unigram:1000, or a tokenizer.json (bytes)",
    "text": "JSONL: the field or fields that hold the text",
    "size": "folder of images: side, or (height, width), to resize to",
    "levels": "arrays of images: number of values of a pixel (256)",
    "drop": "tables: columns to leave out",
    "keep": "tables: columns to take although they look like identifiers",
    "ordinals": "tables: column to its levels from low to high",
    "categories": "tables: numeric columns that are names of categories",
    "sequence": "tables with a row a step: the column that names the series of a row",
    "fractions": "shares of train, validation and holdout (0.8, 0.1, 0.1)",
    "name": "what to call the data",
}
_FOR = {
    "table": ("drop", "keep", "ordinals", "categories"), "text": ("block", "text", "tokenizer"), "images": ("size",),
    "arrays": ("levels",), "toy": ("n",), "embedded": (), "series": ("sequence", "drop"),
}  # fmt: skip


def open_data(
    path_or_name: Any,
    *,
    target: Any = None,
    space: Space | None = None,
    seed: int = 0,
    constraints: Any = None,
    **options: Any,
) -> Dataset:
    """Open data and split them by content, 80/10/10.

    Args:
        path_or_name: an embedded set (digits, wine, breast-cancer, iris, diabetes, python, eight-gaussians,
            rings, checkerboard, two-moons, pinwheel); a CSV, TSV, Parquet, JSON or JSONL table; .npz or .npy
            arrays; a folder of images (sub-folders are classes) or of text; a .txt or JSONL text; or a
            DataFrame, an array, a tensor or a list of strings.
        target: the column of a table that is to be predicted (it stays a column).
        space: a known space to read the data in, such as that of a saved run.
        seed: another seed gives another split (and other points of a toy).
        constraints: what holds in every row of a table, see `protea.spaces.parse_constraints`.
        options: see `OPTIONS`; `n`, `block`, `tokenizer`, `text`, `size`, `levels`, `drop`, `keep`, `ordinals`,
            `categories`, `sequence`, `fractions`, `name`.

    Raises:
        DataError: what is wrong with the data, and what to do about it.
        ConstraintError: the rows break a constraint, or the constraints contradict each other.
        ConfigError: an unknown option, or one that does not apply.

    >>> open_data("iris")
    <Dataset iris: table (5,), 120 + 15 + 15 rows>
    """
    for option in options:
        if option not in OPTIONS:
            raise ConfigError(f"There is no option {option!r} for opening data.", nearest(option, OPTIONS))
    block = _block(options.get("block", BLOCK))
    if (asked := options.get("tokenizer")) and space is None:
        parse_tokenizer(asked)
    fractions = _fractions(options.pop("fractions", FRACTIONS))
    name = options.pop("name", None)
    known = {k: v for k, v in options.items() if v is not None}
    loaded = _load(path_or_name, known, target, space, seed, constraints)
    if name is not None:
        loaded = type(loaded)(**{**loaded.__dict__, "name": str(name)})
    if isinstance(loaded, Documents):
        _only(known, "text", target, constraints)
        if space is not None and not isinstance(space, Tokens):
            raise DataError(f"{loaded.source} is text, but a {space.kind} was expected.", "Give other data.")
        return split_documents(loaded, space or text_space(block, asked), seed, fractions)
    return split_rows(loaded, seed, fractions)


def _load(
    what: Any, options: dict[str, Any], target: Any, space: Space | None, seed: int, constraints: Any
) -> Loaded | Documents:
    def table(frame: pd.DataFrame, name: str, source: str, notes: Sequence[str] = ()) -> Loaded:
        if "sequence" in options:
            _only(options, "series", None, constraints)
            known = _expect(space, Series, source)
            return from_long(frame, name=name, source=source, target=target, space=known, **options)
        _only(options, "table")
        known = _expect(space, Table, source)
        return load_table(
            frame, name, source, target=target, space=known, constraints=constraints, notes=notes, **options
        )

    if isinstance(what, pd.DataFrame):
        return table(what, "table", "the DataFrame")
    if isinstance(what, (np.ndarray, Tensor)):
        _only(options, "arrays", target, constraints)
        return from_array(np.asarray(what), space=space, **options)
    if isinstance(what, (list, tuple)) and what and all(isinstance(item, (str, bytes)) for item in what):
        return Documents("text", "the strings", [s.encode() if isinstance(s, str) else s for s in what])
    if not isinstance(what, (str, os.PathLike)):
        raise DataError(f"A {type(what).__name__} cannot be opened.", "Give a path, a name, a DataFrame or an array.")
    path = Path(what).expanduser()
    if isinstance(what, str) and (known := embedded_name(what)) is not None and not path.exists():
        return _embedded(known, options, target, space, seed, constraints)
    if not path.exists():
        names = nearest(str(what), EMBEDDED) if "/" not in str(what) else ""
        raise DataError(f"There is no file, folder or embedded set {str(what)!r}.", names or "Check the path.")
    return _read(path, options, target, space, constraints, table)


def _embedded(
    name: str, options: dict[str, Any], target: Any, space: Space | None, seed: int, constraints: Any
) -> Loaded | Documents:
    toy = EMBEDDED[name].__name__ == "<lambda>"
    if toy:
        _only(options, "toy", target, constraints)
        return EMBEDDED[name](seed=seed, n=_count(options.get("n", 10_000)))
    loaded = EMBEDDED[name]()
    if isinstance(loaded, Documents):
        return loaded
    if not isinstance(loaded.space, Table):
        _only(options, "embedded", target, constraints)
        return loaded if space is None else Loaded(loaded.name, loaded.source, space, loaded.x, loaded.y)
    if not options and target is None and constraints is None and space is None:
        return loaded
    _only(options, "table")
    frame = loaded.space.decode(loaded.x)
    chosen = target if target is not None else None if loaded.target in (options.get("drop") or ()) else loaded.target
    return load_table(
        frame,
        loaded.name,
        loaded.source,
        target=chosen,
        constraints=constraints,
        space=_expect(space, Table, loaded.source),
        **options,
    )


def _read(
    path: Path, options: dict[str, Any], target: Any, space: Space | None, constraints: Any,
    table: Callable[..., Loaded],
) -> Loaded | Documents:  # fmt: skip
    suffix = "".join(path.suffixes[-2:]).lower()
    if path.is_dir():
        if image_files(path):
            _only(options, "images", target, constraints)
            return load_images(path, space=_expect(space, Image, str(path)), **options)
        texts = load_text_folder(path)
        if texts is None:
            raise DataError(
                f"The folder {path} has no pictures ({', '.join(SUFFIXES)}) and no text.", "Check the path."
            )
        return texts
    if suffix.endswith((".npz", ".npy")):
        _only(options, "arrays", target, constraints)
        return load_arrays(path, space=space, **options)
    if suffix.endswith((".pkl", ".pickle", ".pt", ".pth", ".joblib")):
        raise DataError(
            f"{path} is a pickle, which could run code and is refused.", "Save it as .npz, .csv or .parquet."
        )
    if suffix.endswith((".jsonl", ".jsonl.gz", ".ndjson")):
        rows = read_jsonl(path)
        asked = options.get("text")
        fields = None if isinstance(space, Table) or target is not None else text_field(rows, str(path), asked)
        return from_records(rows, fields, path.stem, str(path)) if fields else table(*_named(path, read_frame(path)))
    if suffix.endswith(TABLES):
        frame, notes = read_frame(path)
        if asked := options.get("text"):
            records = frame.to_dict("records")
            return from_records(records, text_field(records, str(path), asked) or [], path.stem, str(path))
        return table(*_named(path, (frame, notes)))
    if suffix.endswith(TEXTS):
        return load_text(path)
    known = ", ".join((*TABLES, ".jsonl", ".npz", ".npy", *TEXTS[:2]))
    raise DataError(
        f"{path} has an ending that says nothing: {path.suffix or '(none)'!r}.", f"Known: {known}, or a folder."
    )


def _named(path: Path, read: tuple[pd.DataFrame, list[str]]) -> tuple[pd.DataFrame, str, str, list[str]]:
    return read[0], path.name.split(".")[0], str(path), read[1]


def _expect(space: Space | None, kind: type, source: str) -> Any:
    if space is not None and not isinstance(space, kind):
        raise DataError(f"{source} is not a {space.kind}, which was expected.", "Give data like those of the run.")
    return space


def _only(options: dict[str, Any], kind: str, target: Any = None, constraints: Any = None) -> None:
    wrong = [option for option in options if option not in _FOR[kind]]
    wrong += [n for n, v in (("target", target), ("constraints", constraints)) if v is not None]
    if wrong:
        raise ConfigError(
            f"The option {wrong[0]!r} does not apply to these data.", f"It is for: {OPTIONS.get(wrong[0], 'tables')}."
        )


def _count(n: Any) -> int:
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"n={n!r} is not a number of points.", "Give a whole number of at least 10.")
    return n


def _block(block: Any) -> int:
    if not isinstance(block, int) or block < 2:
        raise ConfigError(f"block={block!r} is not a length.", "Give a whole number of at least 2.")
    return block


def _fractions(fractions: Any) -> tuple[float, float, float]:
    values = tuple(float(f) for f in fractions)
    if len(values) != 3 or min(values) <= 0:
        raise ConfigError(
            f"fractions={fractions!r} are not three positive shares.", "Give, for example, (0.8, 0.1, 0.1)."
        )
    return values  # type: ignore[return-value]
