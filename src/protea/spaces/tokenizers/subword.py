"""Sub-word tokenizers: a `tokenizer.json` run by the `tokenizers` library, which does BPE, WordPiece and Unigram.

A byte-level one is lossless: its tokens are strings over an alphabet of 256 characters that stand for the bytes. The
library takes only valid Unicode; a byte that is not UTF-8 is therefore written as its own token, between the tokens of
the text around it. A word for which a WordPiece model has no pieces is written byte by byte too, not as unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from protea.errors import DataError
from protea.spaces.tokenizers.base import Specials, Text, Tokenizer, as_bytes, as_text, byte_alphabet, no_token

NONE = Specials()
BROKEN = re.compile("([\udc80-\udcff]+)")  # bytes that are not UTF-8, as `as_text` shows them


@dataclass(frozen=True)
class Subword(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    Args:
        source: its `tokenizer.json`, as text.
        specials: its special tokens by role; every one must be in the vocabulary.

    Raises:
        DataError: the definition cannot be read, or a special token is not in it.
    """

    source: str
    specials: Specials = NONE  # type: ignore[misc]
    kind: ClassVar[str] = "subword"

    def __post_init__(self) -> None:
        backend(self.source)
        for name in self.specials.names:
            self.id(name)

    @property
    def vocabulary(self) -> int:
        return _size(self.source)

    @property
    def model(self) -> str:
        """ "BPE", "WordPiece", "Unigram" ..."""
        return str(self.definition()["model"]["type"])

    @property
    def lossless(self) -> bool:
        return _pieces(self.source) is not None

    def encode(self, text: Text) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_marked(self, text: str) -> list[int]:
        return self._spelt(backend(self.source, marked=True).encode(text, add_special_tokens=False), text)

    def encode_batch(self, texts: Sequence[Text]) -> list[list[int]]:
        parts, owner = [], []
        for n, text in enumerate(texts):
            for part in BROKEN.split(as_text(as_bytes(text))):
                if part:
                    parts.append(part)
                    owner.append(n)
        whole = [p for p in parts if not BROKEN.match(p)]
        if len(whole) < len(parts) and not self.lossless:
            wrong = next(p for p in parts if BROKEN.match(p))
            raise DataError(
                f"The text has the byte {ord(wrong[0]) - 0xDC00:#04x}, which is not UTF-8.",
                "This tokenizer knows only characters: convert the text to UTF-8.",
            )
        found = iter(_of_text(self.source).encode_batch(whole, add_special_tokens=False))
        out: list[list[int]] = [[] for _ in texts]
        for n, part in zip(owner, parts):
            out[n] += self._spell(part) if BROKEN.match(part) else self._spelt(next(found), part)
        return out

    def _spell(self, text: str) -> list[int]:
        """A token for each byte."""
        alphabet = _byte_ids(self.source)
        return [alphabet[b] for b in as_bytes(text)]

    def _spelt(self, encoding: Any, text: str) -> list[int]:
        """The ids, with words that have no pieces spelt where every byte has a token."""
        if (of_byte := _bytes_of_unknown(self.source)) is not None:
            no_piece = _unknown_piece(self.source)
            whole = zip(encoding.ids, encoding.tokens)
            return [
                i for id, piece in whole for i in ([of_byte[b] for b in piece.encode()] if id == no_piece else [id])
            ]
        unknown = _unknown(self.source)
        if unknown is None or unknown not in encoding.ids or not self.lossless:
            return encoding.ids
        ids = []
        for id, (start, end) in zip(encoding.ids, encoding.offsets):
            ids += self._spell(text[start:end]) if id == unknown else [id]
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        checked, pieces = self._checked(ids).tolist(), _pieces(self.source)
        if pieces is None:
            return backend(self.source).decode(checked, skip_special_tokens=True).encode()
        return b"".join([pieces[i] for i in checked])

    def token(self, id: int) -> str:
        return str(backend(self.source).id_to_token(int(self._checked([id])[0])))

    def id(self, token: str) -> int:
        found = backend(self.source).token_to_id(token)
        if found is None:
            raise no_token(token, sorted(backend(self.source).get_vocab())[:5000])
        return int(found)

    def sizes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pieces = _pieces(self.source)
        if pieces is None:
            return super().sizes(x)
        return _piece_lengths(self.source)[x.cpu()].sum(1), torch.zeros(len(x), dtype=torch.float64)

    def definition(self) -> dict[str, Any]:
        return json.loads(self.source)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "specials": self.specials.to_json(), "definition": self.definition()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Subword:
        """Rebuild what `to_json` wrote."""
        return cls(canonical(value["definition"]), Specials.from_json(value["specials"]))

    def __deepcopy__(self, memo: Any) -> Subword:
        return self

    def __repr__(self) -> str:
        return f"Subword({self.model}, {self.vocabulary} tokens)"


def canonical(definition: Mapping[str, Any]) -> str:
    """A definition as text: one text for one definition. The order of entries is kept, for it can carry meaning."""
    return json.dumps(definition, ensure_ascii=True, separators=(",", ":"))


@lru_cache(maxsize=32)
def backend(source: str, marked: bool = False) -> Any:
    """The library's tokenizer; `marked`: special tokens are looked for in the text."""
    from tokenizers import Tokenizer as Backend

    try:
        made = Backend.from_str(source)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"The definition of the tokenizer cannot be read ({error}).", "Save it again.") from None
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = not marked
    return made


@lru_cache(maxsize=32)
def _of_text(source: str) -> Any:
    """`backend` for text. A unigram model would find names of special pieces and of bytes in it: they get others."""
    value = json.loads(source)
    if value["model"].get("type") != "Unigram":
        return backend(source)
    special = {t["id"] for t in value["added_tokens"] if t["special"]} | {value["model"].get("unk_id")}
    hidden = special | set(_bytes_of_unknown(source) or ())
    vocab = [[f"\U0010ffff{i}" if i in hidden else p, s] for i, (p, s) in enumerate(value["model"]["vocab"])]
    tokens = [t for t in value["added_tokens"] if t["id"] not in special]
    model = {**value["model"], "vocab": vocab, "byte_fallback": False}
    return backend(canonical({**value, "added_tokens": tokens, "model": model}))


@lru_cache(maxsize=32)
def _bytes_of_unknown(source: str) -> tuple[int, ...] | None:
    """Ids of the bytes 0 .. 255 by which a unigram model writes what it has no piece for, or None."""
    model = json.loads(source)["model"]
    if model.get("type") != "Unigram" or not model.get("byte_fallback"):
        return None
    ids = {piece: i for i, (piece, _) in enumerate(model["vocab"])}
    return tuple(ids[f"<0x{b:02X}>"] for b in range(256)) if f"<0x{255:02X}>" in ids else None


@lru_cache(maxsize=32)
def _size(source: str) -> int:
    return 1 + max(backend(source).get_vocab().values(), default=-1)


@lru_cache(maxsize=32)
def _pieces(source: str) -> tuple[bytes, ...] | None:
    """The bytes of every id, or None where they are not fixed by the id alone or text is lost."""
    value = json.loads(source)
    model, alphabet = value["model"], {c: b for b, c in enumerate(byte_alphabet())}
    parts = [p for name in ("pre_tokenizer", "decoder") for p in _parts(value.get(name))]
    levels = [p for p in parts if p["type"] == "ByteLevel"]
    prefixed = any(p.get("add_prefix_space") for p in _parts(value.get("pre_tokenizer")) if p["type"] == "ByteLevel")
    lost = [p for p in _parts(value.get("pre_tokenizer")) if p.get("behavior") == "Removed"]
    folded = value.get("normalizer") is not None or model.get("end_of_word_suffix") or model.get("byte_fallback")
    if len(levels) < 2 or prefixed or lost or folded:
        return None
    special = {t["id"] for t in value["added_tokens"] if t["special"]}
    plain = {t["id"]: t["content"].encode() for t in value["added_tokens"] if not t["special"]}
    vocab = backend(source).get_vocab()
    prefix = (model.get("continuing_subword_prefix") or "") if model["type"] == "WordPiece" else ""
    out = [b""] * _size(source)
    for token, id in vocab.items():
        if id in special:
            continue
        body = token[len(prefix) :] if prefix and token.startswith(prefix) and len(token) > len(prefix) else token
        if id in plain:
            out[id] = plain[id]
        elif all(c in alphabet for c in body):
            out[id] = bytes(alphabet[c] for c in body)
        else:
            return None
    return tuple(out) if all(c in vocab for c in alphabet) else None


def _parts(value: Any) -> list[dict[str, Any]]:
    """A part of a definition as a flat list."""
    if value is None:
        return []
    for key in ("pretokenizers", "decoders", "normalizers", "processors"):
        if key in value:
            return [p for part in value[key] for p in _parts(part)]
    return [value]


@lru_cache(maxsize=32)
def _piece_lengths(source: str) -> Tensor:
    return torch.tensor([len(p) for p in _pieces(source) or ()], dtype=torch.int64)


@lru_cache(maxsize=32)
def _byte_ids(source: str) -> list[int]:
    vocab = backend(source).get_vocab()
    return [vocab[c] for c in byte_alphabet()]


@lru_cache(maxsize=32)
def _unknown(source: str) -> int | None:
    name = json.loads(source)["model"].get("unk_token")
    return None if name is None else backend(source).token_to_id(name)


@lru_cache(maxsize=32)
def _unknown_piece(source: str) -> int | None:
    """Of a unigram model, which tells the id alone."""
    return json.loads(source)["model"].get("unk_id")
