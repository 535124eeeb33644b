"""Tokenizers with nothing to learn: bytes, and ids that stand for no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from protea.errors import DataError
from protea.spaces.tokenizers.base import Text, Tokenizer, as_bytes, byte_alphabet, no_token


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """A token is a byte: it cannot fail, and every text can be written.

    >>> Bytes().encode("Öl"), Bytes().decode([195, 150])
    ([195, 150, 108], 'Ö')
    """

    kind: ClassVar[str] = "bytes"

    @property
    def vocabulary(self) -> int:
        return 256

    @property
    def lossless(self) -> bool:
        return True

    def encode(self, text: Text) -> list[int]:
        return list(as_bytes(text))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._checked(ids).astype(np.uint8).tobytes()

    def token(self, id: int) -> str:
        return byte_alphabet()[int(self._checked([id])[0])]

    def id(self, token: str) -> int:
        if token not in byte_alphabet():
            raise no_token(token, byte_alphabet())
        return byte_alphabet().index(token)

    def sizes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(x),), x.shape[1]), torch.zeros(len(x), dtype=torch.float64)

    def definition(self) -> dict[str, Any]:
        from protea.spaces.tokenizers.definitions import byte_definition

        return byte_definition()

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True)
class Ids(Tokenizer):
    """Integers that stand for no text.

    Args:
        count: how many there are.
    """

    count: int
    kind: ClassVar[str] = "ids"

    @property
    def vocabulary(self) -> int:
        return self.count

    @property
    def lossless(self) -> bool:
        return False

    def encode(self, text: Text) -> list[int]:
        raise _no_text()

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        raise _no_text()

    def token(self, id: int) -> str:
        return str(int(self._checked([id])[0]))

    def id(self, token: str) -> int:
        if not (token.isdecimal() and int(token) < self.count):
            raise DataError(f"There is no id {token!r}.", f"Ids run from 0 to {self.count - 1}.")
        return int(token)

    def definition(self) -> dict[str, Any]:
        raise _no_text()

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "count": self.count}


def _no_text() -> DataError:
    return DataError("Plain token ids stand for no text.", 'Give ids, or use a tokenizer of text, such as "bytes".')
