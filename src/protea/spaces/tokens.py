r"""Text as blocks of T tokens.

The tokenizer is part of the space, and is saved with it. The default cannot fail: a token is a byte. Likelihoods are
given in bits per byte,

    sum over blocks of -log p(x_1 .. x_T)  /  (ln 2 sum over blocks of n),    n the bytes a block stands for,

which compares models of different tokenizers. Where the tokenizer loses text (it folds case, say) the unit says so.
Every model of tokens conditions x_1 on an implicit begin-of-text.
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
from protea.space import Field, Measured, Space
from protea.spaces.chat import Chat
from protea.spaces.tokenizers import Bytes, Ids, Tokenizer, as_bytes, tokenizer_from_json

BUCKETS = 512  # features: hashed n-grams


@dataclass(frozen=True)
class Tokens(Space):
    """Blocks of T tokens: int64 (N, T) with values 0 .. vocabulary-1.

    Args:
        length: T.
        vocabulary: number of token ids; 0: as many as the tokenizer has. For bytes, 128 is enough for ASCII. More
            than the tokenizer's are padding that stands for no text, as in models whose tables are rounded up.
        tokenizer: "bytes", or "ids" for plain integers that stand for no text (figures are per token then), or a
            `protea.spaces.tokenizers.Tokenizer`.
        classes: names of the labels.
        chat: how messages become text, and at which tokens an answer stops; for models that chat.
        begin: id of begin-of-text, where it is one of the vocabulary; None: an id of its own, that cannot follow.

    >>> space = Tokens(4)
    >>> space.decode(space.encode("to be or not to be"))
    ['to b', 'e or', ' not', ' to ']
    """

    length: int
    vocabulary: int = 0
    tokenizer: str | Tokenizer = "bytes"
    classes: tuple[str, ...] = ()
    chat: Chat | None = None
    begin: int | None = None
    kind: ClassVar[str] = "tokens"
    dtype: ClassVar[torch.dtype] = torch.int64

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if isinstance(self.tokenizer, (Bytes, Ids)):
            object.__setattr__(self, "tokenizer", self.tokenizer.kind)
        named = isinstance(self.tokenizer, str)
        if named and self.tokenizer not in ("bytes", "ids"):
            raise DataError(
                f"There is no tokenizer {self.tokenizer!r}.", "Known: bytes, ids; others are learnt by make_tokenizer."
            )
        if self.vocabulary == 0 and self.tokenizer != "ids":
            object.__setattr__(self, "vocabulary", self.codec.vocabulary)
        if not named and self.vocabulary < self.codec.vocabulary:
            raise DataError(
                f"A vocabulary of {self.vocabulary} does not hold the {self.codec.vocabulary} ids of the tokenizer.",
                "Leave it out.",
            )
        if self.length < 1 or self.vocabulary < 2 or (self.tokenizer == "bytes" and self.vocabulary > 256):
            raise DataError(
                f"Tokens of length {self.length} over {self.vocabulary} ids make no sense for {self.tokenizer!r}.",
                "The length is at least 1, the vocabulary at least 2, and bytes have at most 256 ids.",
            )
        if self.begin is not None and not (0 <= self.begin < self.vocabulary and not self.classes):
            raise DataError(
                f"Begin-of-text cannot be token {self.begin} of {self.vocabulary} in a space of "
                f"{len(self.classes)} classes.",
                "Leave it out: it is then an id of its own for each class.",
            )

    @property
    def codec(self) -> Tokenizer:
        """The tokenizer as an object, whatever it was given as."""
        if isinstance(self.tokenizer, str):
            return Bytes() if self.tokenizer == "bytes" else Ids(max(self.vocabulary, 1))
        return self.tokenizer

    @property
    def event(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def fields(self) -> list[Field]:
        return [Field(str(t), "category", levels=self.vocabulary) for t in range(self.length)]

    def encode(self, raw: Any) -> Tensor:
        """Text to blocks (N, T).

        Args:
            raw: a string, bytes, or a sequence of them, whose tokens are joined and cut into blocks of T (a
                tail shorter than T is dropped); or integers (N, T), which are checked and kept.

        Raises:
            DataError: fewer than T tokens, or an id outside the vocabulary.
        """
        parts = [raw] if isinstance(raw, (str, bytes)) else raw
        if isinstance(parts, Sequence) and len(parts) and all(isinstance(p, (str, bytes)) for p in parts):
            x = self.blocks(self.tokenise(parts))
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

    def tokenise(self, parts: Sequence[str | bytes]) -> np.ndarray:
        """The ids of texts, one after the other (M,): no token crosses from one to the next."""
        if self.tokenizer == "bytes":
            return np.frombuffer(b"".join(map(as_bytes, parts)), dtype=np.uint8).astype(np.int64)
        found = self.codec.encode_batch(parts)
        return np.concatenate([np.asarray(ids, dtype=np.int64) for ids in found] or [np.zeros(0, np.int64)])

    def blocks(self, ids: np.ndarray) -> Tensor:
        """Ids (M,) cut into blocks (M // T, T)."""
        n = len(ids) // self.length
        if n == 0:
            raise DataError(
                f"The text has {len(ids)} {self.unit}s, too few for one block of {self.length} tokens.",
                "Give more text or a smaller block length.",
            )
        return torch.from_numpy(ids[: n * self.length]).reshape(n, self.length)

    @property
    def unit(self) -> str:
        """What a token is, in a word."""
        return "byte" if self.tokenizer == "bytes" else "token"

    def decode_bytes(self, x: Tensor) -> list[bytes]:
        """The blocks as bytes."""
        if self.tokenizer == "bytes":
            return [row.tobytes() for row in x.detach().cpu().numpy().astype(np.uint8)]
        return [self.codec.decode_bytes(row) for row in self._rows(x)]

    def decode(self, x: Tensor) -> Any:
        """A list of strings, for reading: bytes that are not UTF-8 show as U+FFFD. For "ids", an int array."""
        if self.tokenizer == "ids":
            return x.detach().cpu().numpy()
        if self.tokenizer == "bytes":
            return [block.decode("utf-8", "replace") for block in self.decode_bytes(x)]
        return [self.codec.decode(row) for row in self._rows(x)]

    def _rows(self, x: Tensor) -> list[list[int]]:
        """Ids of each block, without those that only pad the vocabulary."""
        known = self.codec.vocabulary
        rows = x.detach().cpu().tolist()
        return rows if self.vocabulary == known else [[i for i in row if i < known] for row in rows]

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
        """-log p / (T ln 2), "bits per byte" where a token is a byte, else "bits per token": lower is better."""
        return -nats / (self.length * math.log(2)), f"bits per {self.unit}"

    def measure(self, nats: Tensor, x: Tensor) -> Measured:
        """-log p / (n ln 2) of each block, "bits per byte", n being the bytes it stands for and its weight."""
        if isinstance(self.tokenizer, str):
            return super().measure(nats, x)
        known = self.codec.vocabulary
        if self.vocabulary == known:
            size, unsaid = self.codec.sizes(x.cpu())
        else:
            size = torch.tensor([len(b) for b in self.decode_bytes(x)])
            unsaid = torch.zeros(len(x), dtype=torch.float64)
        size = size.clamp(min=1).double()
        unit = "bits per byte" if self.codec.lossless else "bits per byte of the text as decoded"
        return Measured((unsaid - nats.cpu().double()) / (size * math.log(2)), size, unit)

    def to_json(self) -> dict[str, Any]:
        value = {
            "kind": self.kind, "length": self.length, "vocabulary": self.vocabulary,
            "tokenizer": self.tokenizer if isinstance(self.tokenizer, str) else self.tokenizer.to_json(),
            "classes": list(self.classes),
        }  # fmt: skip
        value |= {} if self.chat is None else {"chat": self.chat.to_json()}
        return value if self.begin is None else value | {"begin": self.begin}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tokens:
        """Rebuild what `to_json` wrote."""
        saved, chat = value["tokenizer"], value.get("chat")
        return cls(
            int(value["length"]),
            int(value["vocabulary"]),
            saved if isinstance(saved, str) else tokenizer_from_json(saved),
            tuple(value["classes"]),
            None if chat is None else Chat.from_json(chat),
            value.get("begin"),
        )
