r"""A token is a character of the training text; any other character is the unknown token.

What the unknown token leaves unsaid is charged to the likelihood, so that bits per byte stay honest: an unknown
character is one of the M - K that are not in the set of K, equally likely, with M the 1,112,064 characters of Unicode
and 128 bytes that are not UTF-8. It costs log(M - K) nats more than its token, and counts as one byte (the least it
can be), so that the figure is never better than that of the lossless code which spells unknown characters so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from protea.errors import DataError
from protea.spaces.tokenizers.base import Specials, Text, Tokenizer, as_bytes, as_text, no_token

CHARACTERS = 0x110000 - 0x800 + 128  # scalar values of Unicode, and bytes that are not UTF-8
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Characters(Tokenizer):
    """Ids 0 .. K - 1 are the characters, K is the unknown token.

    Args:
        charset: the K characters, each once.

    >>> t = Characters.train(["to be or not to be"])
    >>> "".join(t.charset), t.encode("rob it"), t.decode(t.encode("rob it"))
    (' benort', [5, 4, 1, 0, 7, 6], 'rob �t')
    """

    charset: tuple[str, ...]
    specials: ClassVar[Specials] = Specials(unk=UNKNOWN)
    kind: ClassVar[str] = "chars"

    def __post_init__(self) -> None:
        object.__setattr__(self, "charset", tuple(self.charset))
        if not self.charset or len(set(self.charset)) != len(self.charset) or any(len(c) != 1 for c in self.charset):
            raise DataError("A set of characters holds at least one, each once.", "Train it on text.")

    @classmethod
    def train(cls, texts: Iterable[Text], most: int | None = None) -> Characters:
        """The characters of texts in the order of Unicode.

        Args:
            most: keep only so many, the most frequent ones.

        Raises:
            DataError: no text.
        """
        count = Counter[str]()
        for text in texts:
            count.update(as_text(text))
        if not count:
            raise DataError("There is no text to learn characters from.", "Give text that is not empty.")
        kept = sorted(count, key=lambda c: (-count[c], c))[:most]
        return cls(tuple(sorted(kept)))

    def __repr__(self) -> str:
        return f"Characters({self.vocabulary})"

    @property
    def vocabulary(self) -> int:
        return len(self.charset) + 1

    @property
    def lossless(self) -> bool:
        return True

    def encode(self, text: Text) -> list[int]:
        index, unknown = _index(self), len(self.charset)
        return [index.get(c, unknown) for c in as_text(as_bytes(text))]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        shown = (*self.charset, "\ufffd")
        return "".join(shown[i] for i in self._checked(ids).tolist()).encode("utf-8", "surrogateescape")

    def token(self, id: int) -> str:
        return (*self.charset, UNKNOWN)[int(self._checked([id])[0])]

    def id(self, token: str) -> int:
        if token == UNKNOWN:
            return len(self.charset)
        if token not in _index(self):
            raise no_token(token, self.charset)
        return _index(self)[token]

    def sizes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        unknown = (x == len(self.charset)).sum(1).cpu()
        return _lengths(self)[x.cpu()].sum(1), unknown.double() * math.log(CHARACTERS - len(self.charset))

    def definition(self) -> dict[str, Any]:
        from protea.spaces.tokenizers.definitions import character_definition

        return character_definition(self.charset, UNKNOWN)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "charset": [ord(c) for c in self.charset]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Characters:
        return cls(tuple(chr(int(c)) for c in value["charset"]))


@lru_cache(maxsize=32)
def _index(tokenizer: Characters) -> dict[str, int]:
    return {c: i for i, c in enumerate(tokenizer.charset)}


@lru_cache(maxsize=32)
def _lengths(tokenizer: Characters) -> Tensor:
    return torch.tensor([*(len(c.encode("utf-8", "surrogateescape")) for c in tokenizer.charset), 1])
