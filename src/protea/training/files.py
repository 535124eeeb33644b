"""Files are written whole or not at all: a temporary neighbour, fsync, then rename over the target."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from protea.errors import CheckpointError

PARTIAL = ".partial"  # suffix of files still being written


def write(path: Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill` write a temporary file, make it durable, and rename it to `path` (atomic on one volume).

    Raises:
        CheckpointError: the folder cannot be written or the volume is full; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except Exception as error:  # safetensors wraps the operating system's errors in its own
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(
                f"{path} cannot be written ({reason}).", "Free some space, or choose another folder with --out."
            ) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people (indented) atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CheckpointError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.", "Is this a run folder of Protea?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}).", "Restore it from a copy, or fit again."
        ) from None


def plain(value: Any) -> Any:
    """A value as it comes back from JSON (tuples as lists)."""
    return json.loads(json.dumps(value))


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
