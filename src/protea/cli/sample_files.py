"""Samples to files, each written whole or not at all."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protea.errors import ConfigError, MissingExtra

SUFFIXES = {
    "image": (".png",),
    "table": (".csv", ".parquet", ".json", ".jsonl"),
    "tokens": (".txt", ".jsonl", ".json"),
    "vector": (".npy", ".csv", ".json"),
    "series": (".csv", ".parquet", ".json", ".jsonl"),  # a row a step
}
DEFAULT = {"table": "samples.csv", "series": "samples.csv", "tokens": "samples.txt", "vector": "samples.npy"}


def write(samples: Any, kind: str, out: Path, *, start: int = 0) -> list[Path]:
    """Write samples in the form the file's name asks for; a name without a suffix is a folder.

    Args:
        samples: what `Run.sample` returned.
        kind: the space's kind.
        out: a file or a folder.
        start: number of the first sample, for the files of single images.

    Returns:
        The files written, the most useful first.
    """
    suffix = out.suffix.lower()
    known = SUFFIXES[kind]
    if suffix and suffix not in known:
        raise ConfigError(
            f"Samples of a {kind} space cannot be written as {suffix!r} ({out}).", f"Known: {', '.join(known)}."
        )
    try:
        if kind == "image":
            return _write_images(list(samples), out, start)
        samples = _steps(samples) if kind == "series" else samples
        path = out if suffix else out / DEFAULT[kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        _atomic(path, _encode(samples, path.suffix.lower()))
        return [path]
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error.strerror or error}.", "Choose another place with --out."
        ) from error


def _steps(series: Sequence[Any]) -> Any:
    """Series as one long table, a row a step, which opens again with `--option sequence=sequence`."""
    import numpy as np
    import pandas as pd

    values = np.concatenate(series) if len(series) else np.zeros((0, 1))
    frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])
    frame.insert(0, "sequence", np.repeat(np.arange(len(series)), [len(s) for s in series]))
    return frame


def grid(images: Sequence[Any], columns: int | None = None, pad: int = 2, scale: int | None = None) -> Any:
    """One PIL picture of many, on a neutral ground; small pictures are enlarged by a whole factor."""
    from PIL import Image

    columns = columns or min(len(images), max(1, math.ceil(math.sqrt(len(images) * 1.6))))
    width, height = images[0].size
    scale = scale or max(1, 48 // max(width, height))
    rows = -(-len(images) // columns)
    mode = "L" if images[0].mode == "L" else "RGB"
    ground = 128 if mode == "L" else (128, 128, 128)
    sheet = Image.new(mode, (columns * (width * scale + pad) + pad, rows * (height * scale + pad) + pad), ground)
    for i, image in enumerate(images):
        cell = image.convert(mode).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(cell, (pad + (i % columns) * (width * scale + pad), pad + (i // columns) * (height * scale + pad)))
    return sheet


def preview(samples: Any, space: Any) -> list[Any]:
    """Samples as plain JSON values: strings, or a mapping of columns for a row."""
    if hasattr(samples, "to_json"):
        return json.loads(samples.to_json(orient="records", date_format="iso"))
    if space.kind == "vector":
        import numpy as np

        names = list(getattr(space, "names", ()))
        return [dict(zip(names, row)) for row in np.asarray(samples).tolist()]
    if space.kind == "image":
        return [f"{image.mode} {image.size[0]}x{image.size[1]}" for image in samples]
    return [str(s) for s in samples]


def _encode(samples: Any, suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".npy":
        import numpy as np

        np.save(buffer, np.asarray(samples), allow_pickle=False)
    elif suffix == ".parquet":
        try:
            samples.to_parquet(buffer, index=False)
        except ImportError as error:
            raise MissingExtra("pyarrow", "parquet", error) from None
    elif suffix == ".csv":
        _frame(samples).to_csv(buffer, index=False)
    elif suffix in (".json", ".jsonl"):
        rows = (
            samples
            if isinstance(samples, list)
            else json.loads(_frame(samples).to_json(orient="records", date_format="iso"))
        )
        lines = [json.dumps({"text": row} if isinstance(row, str) else row, ensure_ascii=False) for row in rows]
        buffer.write(("\n".join(lines) + "\n" if suffix == ".jsonl" else "[" + ",\n".join(lines) + "]\n").encode())
    else:  # .txt
        rule = "\n" + "-" * 40 + "\n"
        buffer.write((rule.join(str(s) for s in samples) + "\n").encode("utf-8", "surrogateescape"))
    return buffer.getvalue()


def _frame(samples: Any) -> Any:
    import pandas as pd

    return samples if isinstance(samples, pd.DataFrame) else pd.DataFrame(samples)


def _write_images(images: list[Any], out: Path, start: int) -> list[Path]:
    if out.suffix:
        out.parent.mkdir(parents=True, exist_ok=True)
        return [_save(grid(images), out)]
    out.mkdir(parents=True, exist_ok=True)
    sheet = _save(grid(images), out / "grid.png")
    return [sheet, *(_save(image, out / f"{start + i:05d}.png") for i, image in enumerate(images))]


def _save(image: Any, path: Path) -> Path:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    _atomic(path, buffer.getvalue())
    return path


def _atomic(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
