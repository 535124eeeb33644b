"""Text as documents: .txt files, JSONL, folders of text, strings.

Text is read as bytes, so that no file is refused for its encoding. Documents, not blocks, are split: the
paragraphs of a .txt file (separated by blank lines), the objects of a JSONL file, the files of a folder.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protea.data.dataset import Documents
from protea.data.split import FEWEST
from protea.errors import DataError, nearest
from protea.spaces import Tokens

TEXTS = (".txt", ".md", ".txt.gz", ".text")
PIECE = 1024  # bytes of a document where the text has no structure of its own


def load_text(path: Path) -> Documents:
    """A text file: its paragraphs; its lines where there are too few paragraphs; else pieces of 1,024 bytes."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Check the file.") from None
    if not data.strip():
        raise DataError(f"{path} is empty.", "Give a file with text in it.")
    if b"\0" in data[:100_000]:
        raise DataError(f"{path} holds zero bytes: it is not text.", "Give a .txt or .jsonl file.")
    data = data.replace(b"\r\n", b"\n")
    notes = encoding_notes(data, str(path))
    for what, pattern, separator in (("paragraphs", rb"\n\s*\n", b"\n\n"), ("lines", rb"\n", b"\n")):
        documents = [d for d in re.split(pattern, data) if d.strip()]
        if len(set(documents)) >= 2 * FEWEST:
            return Documents(path.stem, str(path), documents, separator, (*notes, f"documents are {what}"))
    pieces = [data[i : i + PIECE] for i in range(0, len(data), PIECE)]
    return Documents(
        path.stem, str(path), pieces, b"", (*notes, f"no paragraphs: documents are pieces of {PIECE} bytes")
    )


def text_space(length: int, tokenizer: str | None = None) -> Callable[[Sequence[bytes]], Tokens]:
    """What makes the space of blocks of `length` tokens from the training documents, by learning the tokenizer.

    >>> text_space(8, "chars")([b"to be or not to be"]).tokenizer
    Characters(8)
    """
    from protea.spaces.tokenizers import make_tokenizer

    def make(documents: Sequence[bytes]) -> Tokens:
        return Tokens(length, tokenizer=make_tokenizer(tokenizer or "bytes", documents))

    return make


def encoding_notes(data: bytes, source: str) -> tuple[str, ...]:
    """A note where the bytes are not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return (
            f"{source} is not UTF-8 from line {line} on (byte {data[error.start]:#04x}): it is modelled as bytes, and "
            "shown with U+FFFD in place of what cannot be read",
        )
    return ()


def text_field(
    rows: Sequence[dict[str, Any]], source: str, field: str | Sequence[str] | None = None
) -> list[str] | None:
    """The fields that hold the text of JSONL objects: those asked for, else "text", else the only field.

    Returns None where the objects are rows of a table.
    """
    if field is not None:
        fields = [field] if isinstance(field, str) else list(field)
        for name in fields:
            if name not in rows[0]:
                raise DataError(f"{source} has no field {name!r}.", nearest(name, rows[0]))
        return fields
    if all(isinstance(row.get("text"), str) for row in rows):
        return ["text"]
    only = set(rows[0])
    if len(only) == 1 and all(set(row) == only and isinstance(next(iter(row.values())), str) for row in rows):
        return list(only)
    return None


def from_records(rows: Sequence[dict[str, Any]], fields: Sequence[str], name: str, source: str) -> Documents:
    """One document for each object; several fields are joined by a line break."""
    for number, row in enumerate(rows, start=1):
        wrong = [f for f in fields if not isinstance(row.get(f), str)]
        if wrong:
            raise DataError(
                f"Object {number} of {source} has no text in the field {wrong[0]!r}.", "Correct or remove it."
            )
    documents = ["\n".join(row[f] for f in fields).encode("utf-8", "surrogatepass") for row in rows]
    return Documents(name, source, documents, b"\n\n", (f"text is {' + '.join(fields)}",))


def load_text_folder(folder: Path) -> Documents | None:
    """The text files of a folder as documents, or None if it has none."""
    files = sorted(
        (p for p in folder.rglob("*") if p.is_file() and "".join(p.suffixes[-2:]).lower().endswith(TEXTS)),
        key=lambda p: p.relative_to(folder).as_posix(),
    )
    if not files:
        return None
    documents = [gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in files]
    notes = tuple(note for file, d in zip(files, documents) for note in encoding_notes(d, file.name))
    return Documents(folder.name, str(folder), documents, b"\n\n", (*notes[:5], f"documents are {len(files)} files"))
