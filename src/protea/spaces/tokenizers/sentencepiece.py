r"""SentencePiece's `tokenizer.model` (Kudo and Richardson 2018) as a definition of the `tokenizers` library.

The file is a protocol buffer: a sequence of (field << 3 | kind, value) with kind 0 a varint, 1 and 5 eight and four
bytes, 2 a length and as many bytes. Of it we read

    ModelProto       1 pieces, 2 trainer, 3 normaliser
    piece            1 text, 2 score, 3 type: 1 normal, 2 unknown, 3 control, 4 defined by the user, 5 unused, 6 byte
    trainer          3 kind: 1 unigram, 2 BPE;  35 byte fallback;  40 .. 43 ids of unknown, begin, end, padding
    normaliser       2 table of characters, 3 begin with a space, 4 take out extra spaces, 5 write spaces as U+2581

A BPE model keeps no merges: a merge of two pieces comes as early as the score of what they make is high.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protea.errors import DataError
from protea.spaces.tokenizers.definitions import added, bpe, empty

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
ROLES = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float = 0.0
    type: int = NORMAL


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message: integers, or bytes of everything else.

    Raises:
        ValueError: it is no protocol buffer.

    >>> list(fields(bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x68, 0x69])))
    [(1, 150), (2, b'hi')]
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError(f"no number at byte {at}")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            if kind != 2:
                raise ValueError(f"a value of kind {kind} at byte {at}")
            size = varint()
        if at + size > len(data):
            raise ValueError(f"{size} bytes are wanted at byte {at} of {len(data)}")
        yield number, data[at : at + size]
        at += size


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A definition as in `tokenizer.json`, and the special tokens by role.

    Raises:
        DataError: the file is damaged, or of a kind (words, characters) that is not read.
    """
    try:
        whole = list(fields(path.read_bytes()))
        pieces = [_piece(v) for n, v in whole if n == 1 and isinstance(v, bytes)]
        trainer, normaliser = ({k: w for n, v in whole if n == m and isinstance(v, bytes) for k, w in fields(v)}
                               for m in (2, 3))  # fmt: skip
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no SentencePiece model ({error}).", "Copy the file again.") from None
    kind = trainer.get(3, UNIGRAM)
    remedy = "Save it with transformers as a fast tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(...)."
    if not pieces or kind not in (UNIGRAM, BPE):
        raise DataError(f"{path} is no SentencePiece model of BPE or unigrams (kind {kind}).", remedy)
    if any(p.type == UNUSED for p in pieces) or trainer.get(24):
        raise DataError(f"{path} has unused pieces or spaces after words, which are not read.", remedy)
    unknown = next((i for i, p in enumerate(pieces) if p.type == UNKNOWN), None)
    if unknown is None or len({p.text for p in pieces}) != len(pieces):
        raise DataError(f"{path} has no unknown piece, or a piece twice.", "Copy the file again.")
    bytes_too = bool(trainer.get(35, 0))
    model = _unigram(pieces, unknown, bytes_too) if kind == UNIGRAM else _merged(pieces, unknown, bytes_too)
    prefix = bool(normaliser.get(3, 1))
    extra = [{**added(i, p.text), "special": p.type != USER}
             for i, p in enumerate(pieces) if p.type in (UNKNOWN, CONTROL, USER)]  # fmt: skip
    users = any(p.type == USER for p in pieces)
    pre = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    definition = empty(model, pre if prefix and users else None, _decoder(prefix, bytes_too), extra)
    steps = _normaliser(normaliser, prefix and not users)
    definition["normalizer"] = {"type": "Sequence", "normalizers": steps} if steps else None
    roles = {}
    for field, role in ROLES.items():
        number = trainer.get(field, {40: 0, 41: 1, 42: 2}.get(field, -1))
        if isinstance(number, int) and number < len(pieces) and pieces[number].type in (UNKNOWN, CONTROL):
            roles[role] = pieces[number].text
    return definition, roles


def _piece(data: int | bytes) -> Piece:
    assert isinstance(data, bytes)
    found = dict(fields(data))
    text, score, kind = found.get(1, b""), found.get(2, bytes(4)), found.get(3, NORMAL)
    if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
        raise ValueError("a piece is not of text, score and type")
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], kind)


def _unigram(pieces: list[Piece], unknown: int, bytes_too: bool) -> dict[str, Any]:
    return {
        "type": "Unigram", "unk_id": unknown, "vocab": [[p.text, p.score] for p in pieces], "byte_fallback": bytes_too
    }  # fmt: skip


def _merged(pieces: list[Piece], unknown: int, bytes_too: bool) -> dict[str, Any]:
    of = {p.text: i for i, p in enumerate(pieces) if p.type == NORMAL}
    order = sorted(of, key=lambda text: (-pieces[of[text]].score, of[text]))
    merges = []
    for text in order:
        halves = [(text[:k], text[k:]) for k in range(1, len(text))]
        known = [(a, b) for a, b in halves if a in of and b in of]
        merges += sorted(known, key=lambda pair: (of[pair[0]], of[pair[1]]))
    made = bpe({p.text: i for i, p in enumerate(pieces)}, merges)
    return {**made, "unk_token": pieces[unknown].text, "fuse_unk": True, "byte_fallback": bytes_too}


def _normaliser(spec: dict[int, Any], prefix: bool) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if table := spec.get(2):
        steps.append({"type": "Precompiled", "precompiled_charsmap": b64encode(table).decode()})
    if spec.get(4, 1):
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    if spec.get(5, 1):
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return steps


def _decoder(prefix: bool, bytes_too: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}] if bytes_too else []
    steps += [{"type": "Fuse"}]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {"type": "Sequence", "decoders": steps}
