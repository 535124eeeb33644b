"""The contract of a tokenizer: text to ids and back, and how many bytes of text the ids stand for.

Likelihoods of different tokenizers compare only per byte of text, so that a tokenizer must say exactly how many bytes
a row of ids stands for. A *lossless* tokenizer gives every string of bytes back: decode_bytes(encode(b)) == b. Of one
that is not (it folds case, say), bytes are those of the decoded text, and figures are marked so.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from protea.errors import DataError, nearest

Text = str | bytes


@dataclass(frozen=True)
class Specials:
    """Tokens that stand for no text, by role; `others` have no role of their own.

    >>> Specials(bos="<s>", eos="</s>").names
    ('<s>', '</s>')
    """

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "others", tuple(map(str, self.others)))

    @property
    def roles(self) -> dict[str, str]:
        """Role to token, of the roles that are filled."""
        return {role: name for role in ("bos", "eos", "pad", "unk") if (name := getattr(self, role)) is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """Every special token once."""
        return tuple(dict.fromkeys((*self.roles.values(), *self.others)))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "others": list(self.others)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Specials:
        return cls(**{**value, "others": tuple(value.get("others", ()))})


class Tokenizer(ABC):
    """Text to token ids and back. Immutable; plain JSON inside a run folder."""

    kind: ClassVar[str]
    specials: Specials = Specials()

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """How many ids there are: 0 .. vocabulary - 1."""

    @property
    @abstractmethod
    def lossless(self) -> bool:
        """Whether decode_bytes(encode(b)) == b, or the ids at least say what is lost (see `sizes`)."""

    @abstractmethod
    def encode(self, text: Text) -> list[int]:
        """Ids of a text. What looks like a special token is text; see `encode_marked`.

        Raises:
            DataError: bytes that are not UTF-8, where the tokenizer cannot express them.
        """

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The text of ids; special tokens stand for none.

        Raises:
            DataError: an id outside the vocabulary.
        """

    @abstractmethod
    def token(self, id: int) -> str:
        """The name of an id, for people."""

    @abstractmethod
    def id(self, token: str) -> int:
        """The id of a name.

        Raises:
            DataError: there is none, with the nearest names.
        """

    @abstractmethod
    def definition(self) -> dict[str, Any]:
        """The same tokenizer as the `tokenizer.json` of the `tokenizers` library."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything needed to rebuild it, with a "kind" entry."""

    @property
    def digest(self) -> str:
        """sha256 of its JSON: equal for equal tokenizers."""
        said = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which the names of special tokens stand for these tokens: a rendered chat."""
        return self.encode(text)

    def encode_batch(self, texts: Sequence[Text]) -> list[list[int]]:
        """`encode` of each."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, for reading: bytes that are not UTF-8 show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def sizes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows of ids (N, T): the bytes they stand for (N,) int64, and nats (N,) that ids leave unsaid.

        A tokenizer with an unknown token is charged for it: log of the number of characters it may stand for.
        """
        rows = [len(self.decode_bytes(row)) for row in x.tolist()]
        return torch.tensor(rows, dtype=torch.int64), torch.zeros(len(x), dtype=torch.float64)

    def special_ids(self) -> dict[str, int]:
        """Special token to id."""
        return {name: self.id(name) for name in self.specials.names}

    def role(self, role: str) -> int | None:
        """The id that is "bos", "eos", "pad" or "unk", or None."""
        name = self.specials.roles.get(role)
        return None if name is None else self.id(name)

    def _checked(self, ids: Sequence[int]) -> np.ndarray:
        found = np.asarray(ids, dtype=np.int64).reshape(-1)
        if len(found) and (found.min() < 0 or found.max() >= self.vocabulary):
            wrong = found[(found < 0) | (found >= self.vocabulary)][0]
            raise DataError(
                f"There is no token {wrong}: ids run from 0 to {self.vocabulary - 1}.",
                "Decode ids of the same tokenizer.",
            )
        return found


def no_token(token: str, known: Sequence[str]) -> DataError:
    return DataError(f"There is no token {token!r} in the vocabulary.", nearest(token, known))


def as_bytes(text: Text) -> bytes:
    """A text as its bytes; text that was decoded from broken UTF-8 with "surrogateescape" goes back to what it was."""
    try:
        return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise DataError(
            f"Character {text[error.start]!r} at {error.start} stands for nothing in UTF-8.", "Remove it."
        ) from None


def as_text(text: Text) -> str:
    """A text as characters; a byte b that is not UTF-8 becomes the character U+DC00 + b (PEP 383)."""
    return text if isinstance(text, str) else text.decode("utf-8", "surrogateescape")


def byte_alphabet() -> list[str]:
    """The printable character for each byte 0 .. 255 by which byte-level vocabularies are written (GPT-2).

    Bytes that are printable in Latin-1 stand for themselves, the others, in order, for U+0100 and on.

    >>> "".join(byte_alphabet()[b] for b in b"to be\\n")
    'toĠbeĊ'
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(shown)]
    of = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [of[b] for b in range(256)]
