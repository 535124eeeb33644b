"""Folders of safetensors, one file or several with an index, as Hugging Face lays them out.

    model.safetensors                                  all in one, or
    model-00001-of-00003.safetensors ...               in parts, with
    model.safetensors.index.json                       {"weight_map": {name: file}, "metadata": {"total_size": bytes}}

Reading maps the files into memory: a tensor's bytes are read from disk when they are used. Writing is
atomic file by file. A pickle is never opened, for opening one runs what its author put into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protea.errors import CheckpointError, ConfigError, DataError
from protea.training import files

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


class Tensors(Mapping[str, Tensor]):
    """The tensors of a folder by name, mapped into memory when they are asked for.

    Raises:
        DataError: no weights, or pickles alone; missing or damaged parts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / INDEX
        if (folder / WHOLE).is_file():
            parts = {WHOLE}
        elif index.is_file():
            parts = set(self._index(index).values())
        else:
            raise DataError(*self._nothing())
        missing = sorted(part for part in parts if not (folder / part).is_file())
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise DataError(
                f"{folder} lacks {len(missing)} of the {len(parts)} parts that its index names: {shown}.",
                "Copy or download the whole folder again.",
            )
        self.files = {part: self._open(folder / part) for part in sorted(parts)}
        self.where = {name: part for part, file in self.files.items() for name in file.keys()}  # noqa: SIM118
        if index.is_file() and WHOLE not in parts:
            lost = sorted(name for name, part in self._index(index).items() if self.where.get(name) != part)
            if lost:
                raise DataError(
                    f"{folder}: the index places {lost[0]!r} in a part that does not hold it ({len(lost)} in all).",
                    "Copy or download the whole folder again.",
                )

    def _nothing(self) -> tuple[str, str]:
        pickles = sorted(p.name for pattern in PICKLES for p in self.folder.glob(pattern))
        if pickles:
            return (
                f"{self.folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is opened.",
                "Ask for the safetensors of the model, or convert it where you trust its author.",
            )
        return f"{self.folder} holds no {WHOLE} and no {INDEX}.", "Is this the folder of a model?"

    def _index(self, path: Path) -> dict[str, str]:
        try:
            table = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            pairs = {str(name): str(part) for name, part in table.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no index of weights ({error!r}).", "Copy the folder again.") from None
        for part in pairs.values():
            if Path(part).name != part or not part.endswith(".safetensors"):
                raise DataError(f"{path} points to {part!r}.", "Parts are safetensors files of the same folder.")
        return pairs

    def _open(self, path: Path) -> Any:
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{path} is truncated or no safetensors file ({error}).", "Copy it again.") from None

    def __getitem__(self, name: str) -> Tensor:
        return self.files[self.where[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


def size_of(text: int | str) -> int:
    """Bytes, given as a number or as "200MB", "5GB".

    >>> size_of("5GB"), size_of(300)
    (5000000000, 300)
    """
    if isinstance(text, int):
        size = text
    else:
        number, unit = text.strip()[:-2], text.strip()[-2:].upper()
        try:
            size = int(float(number) * UNITS[unit])
        except (KeyError, ValueError):
            raise ConfigError(f"{text!r} is no size of a file.", "Write for instance 200MB or 5GB.") from None
    if size <= 0:
        raise ConfigError(f"A part of a model cannot be {text!r} large.", "Write for instance 200MB or 5GB.")
    return size


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], part_size: int | str = "5GB") -> list[str]:
    """Write tensors as one file, or in parts of at most `part_size` with an index; returns the files' names.

    Weights of an earlier save that are not part of this one are removed at the end.

    Raises:
        ConfigError: a size that makes no sense. CheckpointError: the folder cannot be written.
    """
    parts: list[dict[str, Tensor]] = [{}]
    limit, filled = size_of(part_size), 0
    for name, tensor in tensors.items():
        if parts[-1] and filled + tensor.nbytes > limit:
            parts.append({})
            filled = 0
        parts[-1][name] = tensor
        filled += tensor.nbytes
    n = len(parts)
    names = [WHOLE] if n == 1 else [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    for file, part in zip(names, parts, strict=True):
        whole = {name: t.detach().cpu().contiguous() for name, t in part.items()}
        files.write(folder / file, lambda partial, whole=whole: save_file(whole, partial, metadata={"format": "pt"}))
    if n > 1:
        table = {name: file for file, part in zip(names, parts, strict=True) for name in part}
        total = sum(t.nbytes for t in tensors.values())
        files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": table})
        names.append(INDEX)
    try:
        for old in (folder / INDEX, *folder.glob("model*.safetensors")):
            if old.name not in names:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be tidied ({error.strerror}).", "Write to an empty folder.") from None
    return names
