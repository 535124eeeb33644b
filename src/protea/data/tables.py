"""Tables from CSV, Parquet, JSON and JSONL files, and from DataFrames."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from protea.data.dataset import Loaded
from protea.errors import DataError, MissingExtra, nearest
from protea.spaces import Table
from protea.spaces.constraints import parse_constraints

MISSING = ("?", "", "NA", "N/A", "NaN", "nan", "null", "NULL")  # words read as missing values ("None" is a word)
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".json")
MANY = 100  # rows from which a column of all-distinct values counts as an identifier


def read_frame(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """A file as a DataFrame, and notes on what was done."""
    suffixes = "".join(path.suffixes).lower()
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.", "Give a file with a header and rows.")
    if suffixes.endswith(".parquet"):
        return _parquet(path), []
    if suffixes.endswith((".jsonl", ".jsonl.gz", ".ndjson")):
        return _records(read_jsonl(path), path), []
    if suffixes.endswith(".json"):
        return _json(path), []
    return read_csv(path, "\t" if ".tsv" in suffixes else None)


def read_text(path: Path) -> str:
    """A UTF-8 file, gzip or not."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} in line {line}.",
            f"Convert it, for example: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}",
        ) from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Check the file.") from None


def read_csv(path: Path, delimiter: str | None = None) -> tuple[pd.DataFrame, list[str]]:
    """A CSV file with a header line. Numbers are parsed to the nearest double; codes with leading zeros stay text."""
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} is empty.", "Give a file with a header and rows.")
    if delimiter is None:
        head = text[: text.find("\n") if "\n" in text else len(text)]
        delimiter = max(",;\t|", key=head.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file ({error}).", "Check its quotes.") from None
    header, body = [name.strip() for name in rows[0]], rows[1:]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"The column name {twice[0]!r} occurs more than once in {path}.", "Give every column its own name."
        )
    if not body:
        raise DataError(f"{path} has a header but no rows.", "Give a file with rows.")
    widths = np.fromiter(map(len, body), dtype=np.int64, count=len(body))
    if (ragged := (widths != len(header)).nonzero()[0]).size:
        i = int(ragged[0])
        raise DataError(
            f"Row {i} of {path} (line {_line(text, delimiter, i)}) has {widths[i]} fields, but the header has "
            f"{len(header)}; {len(ragged)} rows are like that.",
            "Quote fields that hold the delimiter.",
        )
    cells: Any = pd.DataFrame(body, columns=header, dtype=object)
    notes: dict[str, int] = {}
    frame = pd.DataFrame({name: _column(cells[name], notes) for name in header})
    said = [f"read as missing: {', '.join(f'{word!r} ({count})' for word, count in notes.items())}"] if notes else []
    return frame, said


def _line(text: str, delimiter: str, row: int) -> int:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    filled = -1
    for fields in reader:
        filled += bool(fields)
        if filled > row:
            break
    return reader.line_num


def _column(cells: pd.Series, notes: dict[str, int]) -> pd.Series:
    """Text to numbers, booleans or text, with missing values."""
    text = cells.str.strip()
    gone = text.isin(MISSING)
    for word, count in text[gone].value_counts().items():
        notes[str(word)] = notes.get(str(word), 0) + int(count)
    seen = text[~gone]
    if len(seen) == 0:
        return pd.Series(np.full(len(text), np.nan), name=cells.name)
    distinct = set(seen.unique())
    if distinct <= {"True", "False", "true", "false", "TRUE", "FALSE"}:
        flags = text.where(~gone).str.lower().map({"true": True, "false": False})
        return flags.astype("boolean") if gone.any() else flags.astype(bool)
    if not any(
        len(v) > 1 and v.lstrip("+-").startswith("0") and v.lstrip("+-").isdigit() and v.strip("+-0") for v in distinct
    ):
        try:
            numbers = seen.to_numpy(dtype=object).astype(np.float64)  # Python's float: correctly rounded everywhere
            if all("_" not in v for v in distinct):
                whole = not gone.any() and all(v.lstrip("+-").isdigit() for v in distinct)
                if whole:
                    return pd.Series(seen.to_numpy(dtype=object).astype(np.int64), name=cells.name)
                out = np.full(len(text), np.nan)
                out[(~gone).to_numpy()] = numbers
                return pd.Series(out, name=cells.name)
        except (ValueError, OverflowError):
            pass
    return text.where(~gone, None).astype("str")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line."""
    out = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"Line {number} of {path} is not JSON ({error.msg} at column {error.colno}).", "Correct the line."
            ) from None
        if not isinstance(value, dict):
            raise DataError(
                f"Line {number} of {path} is {type(value).__name__}, not an object.", "Write one object a line."
            )
        out.append(value)
    if not out:
        raise DataError(f"{path} is empty.", "Give a file with one JSON object a line.")
    return out


def _json(path: Path) -> pd.DataFrame:
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON (line {error.lineno}: {error.msg}).", "Correct it.") from None
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        lengths = {k: len(v) for k, v in value.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"The columns of {path} differ in length: {lengths}.", "Give every column the same length.")
        return pd.DataFrame(value)
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        raise DataError(f"{path} is not a table.", "Write a list of objects, or an object of equally long lists.")
    return _records(value, path)


def _records(rows: list[dict[str, Any]], path: Path) -> pd.DataFrame:
    frame: Any = pd.DataFrame.from_records(rows)
    nested = [name for name in frame.columns if frame[name].map(lambda v: isinstance(v, (list, dict))).any()]
    if nested:
        raise DataError(
            f"The field {nested[0]!r} of {path} holds nested values.",
            f"Flatten it or leave it out: drop=[{nested[0]!r}].",
        )
    return frame


def _parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow.parquet
    except Exception as error:
        raise MissingExtra("pyarrow", "parquet", error) from None
    try:
        return pyarrow.parquet.read_table(path).to_pandas()
    except Exception as error:
        raise DataError(f"{path} is not a Parquet file ({error}).", "Write it again.") from None


def load_table(
    frame: Any,
    name: str,
    source: str,
    *,
    target: Any = None,
    space: Table | None = None,
    constraints: Any = None,
    drop: Sequence[Any] = (),
    keep: Sequence[Any] = (),
    ordinals: Mapping[Any, Sequence[Any]] | None = None,
    categories: Sequence[Any] = (),
    notes: Sequence[str] = (),
) -> Loaded:
    """A DataFrame in its space.

    Args:
        frame: the rows, a DataFrame.
        name, source: for people.
        target: the column to predict.
        space: a known schema to read the rows in, instead of an inferred one.
        constraints, ordinals, categories: see `Table.infer`.
        drop: columns to leave out.
        keep: columns to take although they look like identifiers (text or whole numbers, no value twice).
        notes: what the reader did.
    """
    drop, keep = ([drop] if isinstance(drop, str) else drop), ([keep] if isinstance(keep, str) else keep)
    twice = frame.columns[frame.columns.duplicated()].tolist()
    if twice:
        raise DataError(f"The column name {twice[0]!r} occurs more than once.", "Give every column its own name.")
    for asked in (*drop, *keep, *(() if target is None else (target,))):
        if asked not in frame.columns:
            raise DataError(f"{source} has no column {asked!r}.", nearest(str(asked), frame.columns))
    if len(frame) == 0:
        raise DataError(f"{source} holds no rows.", "Give a table with rows.")
    frame = frame.drop(columns=list(drop)).reset_index(drop=True)
    if space is not None:
        space = space if target is None else replace(space, target=target)
        target = space.target
        return Loaded(name, source, space, space.encode(frame), target=target, notes=tuple(notes))
    empty = [column for column in frame.columns if frame[column].isna().all()]
    if empty:
        raise DataError(
            f"The columns {empty[:5]} of {source} have no values at all.", f"Leave them out: drop={empty[:5]!r}."
        )
    constraints = parse_constraints(constraints)
    spoken = {str(n) for c in constraints for n in c.names}
    safe = {*map(str, keep), *map(str, categories), *map(str, ordinals or ()), str(target), *spoken}
    left_out = {c: why for c in frame.columns if str(c) not in safe and (why := _identifier(frame[c]))}
    if len(left_out) == len(frame.columns):
        long = max(frame.columns, key=lambda c: frame[c].astype(str).str.len().mean())
        raise DataError(
            f"Every column of {source} looks like an identifier or free text.",
            f"Keep some (keep=[{frame.columns[0]!r}]), or open it as text: text={long!r}.",
        )
    frame = frame.drop(columns=list(left_out))
    space = Table.infer(frame, target, ordinals=ordinals, categories=categories, constraints=constraints)
    return Loaded(
        name,
        source,
        space,
        space.encode(frame),
        target=target,
        notes=tuple(notes),
        left_out={str(c): why for c, why in left_out.items()},
    )


def _identifier(series: pd.Series) -> str:
    """Why a column is a name of its row rather than a property of it; "" if it is none."""
    if len(series) < MANY or isinstance(series.dtype, pd.CategoricalDtype) or series.isna().any():
        return ""
    if pd.api.types.is_integer_dtype(series.dtype):
        steps = series.to_numpy(dtype=np.int64)
        return "it counts the rows" if (np.diff(steps) == 1).all() else ""
    if pd.api.types.infer_dtype(series) != "string" or not series.is_unique:
        return ""
    if series.str.fullmatch(r"\d{4}[-/]\d{2}([-/]\d{2}.*)?").all():
        return ""
    return f"no value occurs twice, so it names the row; keep=[{str(series.name)!r}] takes it all the same"
