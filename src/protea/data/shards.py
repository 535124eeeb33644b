"""Tokens on disk: plain files of unsigned integers, read through memory maps.

A folder holds `00000.bin`, `00001.bin`, ... (little-endian uint16, or uint32 for more than 65,536 ids), each with a
header `00000.json`:

    {"format": "protea-tokens", "version": 1, "dtype": "uint16", "tokens": n, "bytes": text bytes it stands for,
     "sha256": of the .bin, "vocabulary": V, "tokenizer": hash, "begin": id, "documents": [start of each document]}

Every document begins with the id `begin` and lies in one shard. Files are written whole or not at all, headers
after their tokens; a writer that was stopped continues behind the last shard that has a header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protea.errors import DataError
from protea.training import files

FORMAT, VERSION = "protea-tokens", 1
Document = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Header:
    """What a shard's JSON says; see the module."""

    dtype: str
    tokens: int
    bytes: int
    sha256: str
    vocabulary: int
    tokenizer: str
    begin: int
    documents: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **self.__dict__, "documents": list(self.documents)}


class TokenShards:
    """The shards of a folder as one sequence of tokens, in the order of their names; nothing is read until asked for.

    Args:
        folder: written by `write_shards`.
        tokenizer: the hash it must have been written with; None for any.

    Raises:
        DataError: no shards, a header that is not one, a file of another length than its header says, shards of
            different tokenizers, or of another than asked for.
    """

    def __init__(self, folder: Path | str, tokenizer: str | None = None) -> None:
        self.folder = Path(folder)
        paths = sorted(self.folder.glob("[0-9]*.json"))
        if not paths:
            raise DataError(f"There are no token shards in {self.folder}.", "Write them by write_shards.")
        self.headers = [_header(path) for path in paths]
        self.maps = [_map(path.with_suffix(".bin"), h) for path, h in zip(paths, self.headers)]
        first = self.headers[0]
        for path, h in zip(paths, self.headers):
            if (h.vocabulary, h.tokenizer, h.begin) != (first.vocabulary, first.tokenizer, first.begin):
                raise DataError(f"{path} was written with another tokenizer.", "Keep one folder for each tokenizer.")
        if tokenizer is not None and tokenizer != first.tokenizer:
            raise DataError(
                f"{self.folder} was written with the tokenizer {first.tokenizer!r}, not {tokenizer!r}.",
                "Write the shards again, or open the tokenizer they were written with.",
            )
        self.vocabulary, self.tokenizer, self.begin = first.vocabulary, first.tokenizer, first.begin
        self.starts = np.cumsum([0] + [h.tokens for h in self.headers])  # of the shards, and the end

    def __len__(self) -> int:
        """Tokens of all shards."""
        return int(self.starts[-1])

    @property
    def bytes(self) -> int:
        """Bytes of text that all tokens stand for."""
        return sum(h.bytes for h in self.headers)

    @property
    def documents(self) -> np.ndarray:
        """Where documents start, and the end: (documents + 1,) int64."""
        parts = [np.asarray(h.documents, np.int64) + start for h, start in zip(self.headers, self.starts)]
        return np.append(np.concatenate(parts), len(self))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop - 1, int64; across shards where need be.

        Raises:
            DataError: outside 0 .. len(self).
        """
        if not 0 <= start <= stop <= len(self):
            raise DataError(f"Tokens {start} to {stop} are asked for, of {len(self)}.", "Ask for tokens there are.")
        parts = []
        shard = int(np.searchsorted(self.starts, start, "right")) - 1
        while start < stop:
            end = min(stop, int(self.starts[shard + 1]))
            parts.append(self.maps[shard][start - self.starts[shard] : end - self.starts[shard]])
            start, shard = end, shard + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def verify(self) -> None:
        """Compare every file with the hash in its header.

        Raises:
            DataError: contents that changed since they were written.
        """
        for i, (held, h) in enumerate(zip(self.maps, self.headers)):
            if hashlib.sha256(held.tobytes()).hexdigest() != h.sha256:
                raise DataError(f"Shard {i} of {self.folder} is damaged: its hash is not its header's.",
                                "Write the shards again.")  # fmt: skip


def write_shards(
    folder: Path | str, documents: Iterable[Document], *,
    vocabulary: int,
    begin: int,
    tokenizer: str,
    lengths: Iterable[int] | None = None,
    shard_tokens: int = 1 << 27,
) -> TokenShards:  # fmt: skip
    """Write documents of token ids (without `begin`, which is set before each), and open the result.

    Args:
        folder: of the shards. Documents that whole shards there already hold are skipped, not written again: a
            writer that was stopped continues when it is given the same documents.
        documents: token ids of each.
        vocabulary: ids are 0 .. vocabulary - 1 (and `begin`, which may be the vocabulary itself).
        begin: id of begin-of-document.
        tokenizer: a hash that tells tokenizers apart.
        lengths: bytes of text of each document; None for one a token.
        shard_tokens: a shard ends with the document that reaches it.

    Raises:
        DataError: an empty document, an id outside the vocabulary, or no documents.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = write_shards(folder, [[1, 2], [3]], vocabulary=5, begin=0, tokenizer="none")
    ...     shards.read(0, 5).tolist(), shards.documents.tolist()
    ([0, 1, 2, 0, 3], [0, 3, 5])
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    kind = np.dtype("<u2" if max(vocabulary - 1, begin) < 1 << 16 else "<u4")
    done = [_header(path) for path in sorted(folder.glob("[0-9]*.json"))]
    for h in done:
        if (h.vocabulary, h.begin, h.tokenizer) != (vocabulary, begin, tokenizer):
            raise DataError(f"{folder} holds shards of another tokenizer.", "Choose an empty folder.")
    skip, shard = sum(len(h.documents) for h in done), len(done)
    held: list[np.ndarray] = []
    text = 0

    def flush() -> None:
        nonlocal shard, text
        ids = np.concatenate(held)
        starts = np.cumsum([0] + [len(d) for d in held])[:-1]
        path = folder / f"{shard:05d}.bin"
        files.write(path, lambda partial: partial.write_bytes(ids.tobytes()))
        header = Header(kind.name, len(ids), text, hashlib.sha256(ids.tobytes()).hexdigest(), vocabulary, tokenizer,
                        begin, tuple(map(int, starts)))  # fmt: skip
        files.write_json(path.with_suffix(".json"), header.to_json())
        held.clear()
        shard, text = shard + 1, 0

    for number, (document, size) in enumerate(_sized(documents, lengths)):
        if number < skip:
            continue
        ids = np.asarray(document)
        if ids.size == 0 or ids.ndim != 1:
            raise DataError(f"Document {number} has no tokens.", "Leave empty documents out.")
        if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
            raise DataError(
                f"Document {number} has ids from {ids.min()} to {ids.max()}, outside 0 .. {vocabulary - 1}.",
                "Give the vocabulary of the tokenizer.",
            )
        held.append(np.concatenate(([begin], ids)).astype(kind))
        text += len(ids) if size is None else size
        if sum(map(len, held)) >= shard_tokens:
            flush()
    if held:
        flush()
    return TokenShards(folder, tokenizer)


def tokenizer_hash(description: Any) -> str:
    """A short hash of whatever JSON describes a tokenizer.

    >>> tokenizer_hash({"kind": "bytes"}) == tokenizer_hash({"kind": "bytes"})
    True
    """
    text = json.dumps(description, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sized(documents: Iterable[Document], lengths: Iterable[int] | None) -> Iterator[tuple[Document, int | None]]:
    if lengths is None:
        yield from ((document, None) for document in documents)
    else:
        yield from zip(documents, lengths, strict=True)


def _header(path: Path) -> Header:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("format") != FORMAT or found.pop("version") > VERSION:
            raise ValueError("another format, or a later version")
        return Header(**{**found, "documents": tuple(found["documents"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no header of token shards ({error}).", "Write the shards again.") from None


def _map(path: Path, header: Header) -> np.ndarray:
    kind = np.dtype(header.dtype).newbyteorder("<")
    size = path.stat().st_size if path.exists() else -1
    if size != header.tokens * kind.itemsize:
        there = f"{size} bytes long" if size >= 0 else "missing"
        raise DataError(f"{path} is {there}; its header says {header.tokens} tokens of {header.dtype}.",
                        "Restore it from a copy, or write the shards again.")  # fmt: skip
    return np.memmap(path, kind, "r")
