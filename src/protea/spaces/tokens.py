r"""Text as blocks of T tokens.

The tokenizer is the one that cannot fail: a token is a byte. Likelihoods are given in bits per
byte, -log p(x_1 .. x_T) / (n ln 2) with n the number of bytes the block stands for, which compares
models of different tokenizers. Every model of tokens conditions x_1 on an implicit begin-of-text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from protea.errors import DataError
from protea.space import Field, Space

BUCKETS = 512  # features: hashed n-grams


@dataclass(frozen=True)
class Tokens(Space):
    """Blocks of T tokens: int64 (N, T) with values 0 .. vocabulary-1.

    Args:
        length: T.
        vocabulary: number of token ids; 256 for bytes, 128 is enough for ASCII.
        tokenizer: "bytes", or "ids" for plain integers that stand for no text (figures are per token then).
        classes: names of the labels.

    >>> space = Tokens(4)
    >>> space.decode(space.encode("to be or not to be"))
    ['to b', 'e or', ' not', ' to ']
    """

    length: int
    vocabulary: int = 256
    tokenizer: str = "bytes"
    classes: tuple[str, ...] = ()
    kind: ClassVar[str] = "tokens"
    dtype: ClassVar[torch.dtype] = torch.int64

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if self.tokenizer not in ("bytes", "ids"):
            raise DataError(f"There is no tokenizer {self.tokenizer!r}.", "Known: bytes, ids.")
        if self.length < 1 or self.vocabulary < 2 or (self.tokenizer == "bytes" and self.vocabulary > 256):
            raise DataError(
                f"Tokens of length {self.length} over {self.vocabulary} ids make no sense for {self.tokenizer!r}.",
                "The length is at least 1, the vocabulary at least 2, and bytes have at most 256 ids.",
            )

    @property
    def event(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def fields(self) -> list[Field]:
        return [Field(str(t), "category", levels=self.vocabulary) for t in range(self.length)]

    def encode(self, raw: Any) -> Tensor:
        """Text to blocks (N, T).

        Args:
            raw: a string, bytes, or a sequence of them, joined as they are and cut into blocks of T (a
                tail shorter than T is dropped); or integers (N, T), which are checked and kept.

        Raises:
            DataError: fewer than T tokens, or an id outside the vocabulary.
        """
        parts = [raw] if isinstance(raw, (str, bytes)) else raw
        if isinstance(parts, Sequence) and len(parts) and all(isinstance(p, (str, bytes)) for p in parts):
            # surrogateescape lets text that was decoded from broken UTF-8 in that way go back to its bytes
            data = b"".join(p.encode("utf-8", "surrogateescape") if isinstance(p, str) else p for p in parts)
            ids = np.frombuffer(data, dtype=np.uint8)
            n = len(ids) // self.length
            if n == 0:
                raise DataError(
                    f"The text has {len(ids)} bytes, too few for one block of {self.length} tokens.",
                    "Give more text or a smaller block length.",
                )
            x = torch.from_numpy(ids[: n * self.length].astype(np.int64)).reshape(n, self.length)
        else:
            x = torch.as_tensor(np.asarray(parts))
            if x.ndim != 2 or x.shape[1] != self.length or x.is_floating_point() or x.is_complex():
                raise DataError(
                    f"Token ids of shape (N, {self.length}) were expected, got {tuple(x.shape)} of {x.dtype}.",
                    "Give text, or integers in blocks of the right length.",
                )
            x = x.to(torch.int64)
        if len(x) and (int(x.min()) < 0 or int(x.max()) >= self.vocabulary):
            raise DataError(
                f"Token ids run from {int(x.min())} to {int(x.max())}, outside 0 .. {self.vocabulary - 1}.",
                "Use a larger vocabulary (256 holds every byte).",
            )
        return x

    def decode_bytes(self, x: Tensor) -> list[bytes]:
        """The blocks as bytes, exactly."""
        if self.tokenizer != "bytes":
            raise DataError("Plain token ids stand for no bytes.", 'Use the tokenizer "bytes" for text.')
        return [row.tobytes() for row in x.detach().cpu().numpy().astype(np.uint8)]

    def decode(self, x: Tensor) -> Any:
        """A list of strings, for reading: bytes that are not UTF-8 show as U+FFFD. For "ids", an int array."""
        if self.tokenizer == "ids":
            return x.detach().cpu().numpy()
        return [block.decode("utf-8", "replace") for block in self.decode_bytes(x)]

    def features(self, x: Tensor) -> Tensor:
        """(N, 512): shares of hashed 1-, 2- and 3-grams; rows sum to 1. The hash is fixed for all time."""
        x = x.to(torch.int64)
        out = torch.zeros(len(x), BUCKETS, dtype=torch.float64)
        gram = torch.zeros_like(x)
        for n in range(1, min(3, self.length) + 1):
            gram = gram[:, : self.length - n + 1] * 1_000_003 + x[:, n - 1 :] + 1  # a prefix code of the n-gram
            mixed = gram * 0x9E3779B97F4A7C1  # odd multiplier, wraps modulo 2^64
            bucket = ((mixed ^ (mixed >> 29)) * 0x2545F491 >> 20) % BUCKETS
            out.scatter_add_(1, bucket, torch.ones_like(bucket, dtype=torch.float64))
        return out / out.sum(1, keepdim=True)

    def likelihood(self, nats: Tensor) -> tuple[Tensor, str]:
        """-log p / (T ln 2), "bits per byte" (a token is a byte): lower is better."""
        unit = "bits per byte" if self.tokenizer == "bytes" else "bits per token"
        return -nats / (self.length * math.log(2)), unit

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "length": self.length, "vocabulary": self.vocabulary,
            "tokenizer": self.tokenizer, "classes": list(self.classes),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tokens:
        """Rebuild what `to_json` wrote."""
        return cls(int(value["length"]), int(value["vocabulary"]), value["tokenizer"], tuple(value["classes"]))
