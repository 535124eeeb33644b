"""Tokenizers: text to ids and back. `make_tokenizer` learns one from text, `tokenizer_from_json` rebuilds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from protea.errors import CheckpointError, ConfigError, nearest
from protea.spaces.tokenizers.base import Specials, Text, Tokenizer, as_bytes
from protea.spaces.tokenizers.characters import Characters
from protea.spaces.tokenizers.plain import Bytes, Ids
from protea.spaces.tokenizers.presplit import PRESPLITS
from protea.spaces.tokenizers.subword import Subword
from protea.spaces.tokenizers.train import KINDS, train

TOKENIZERS: dict[str, Callable[[Mapping[str, Any]], Tokenizer]] = {
    "bytes": lambda value: Bytes(),
    "ids": lambda value: Ids(int(value["count"])),
    "chars": Characters.from_json,
    "subword": Subword.from_json,
}
KNOWN = ("bytes", "chars", *KINDS)
GRAMMAR = "For instance: bytes, chars, bpe:512, bpe:512:llama3, wordpiece:1000, unigram:1000, or a tokenizer.json."


def make_tokenizer(what: str | Tokenizer, texts: Sequence[Text]) -> Tokenizer:
    """The tokenizer that a user asked for in a few words, learnt from texts where there is something to learn.

    Args:
        what: "bytes"; "chars", or "chars:100" for the 100 most frequent ones; KIND:SIZE or KIND:SIZE:RULE with kind
            bpe, wordpiece or unigram, and a rule of `presplit`; a `tokenizer.json`, or a folder that holds one.
        texts: documents of the training part.

    Raises:
        ConfigError: the words make no sense. DataError: no text, a vocabulary too small, or a damaged file.

    >>> make_tokenizer("chars", ["to be"]).charset
    (' ', 'b', 'e', 'o', 't')
    """
    if isinstance(what, Tokenizer):
        return what
    parse(what)
    name, *rest = what.split(":")
    if name == "bytes":
        return Bytes()
    if name == "chars":
        return Characters.train(texts, int(rest[0]) if rest else None)
    if name in KINDS:
        return train(name, texts, int(rest[0]), rule=rest[1] if len(rest) > 1 else "gpt2")
    from protea.spaces.tokenizers.folder import read_tokenizer

    return read_tokenizer(what)


def parse(what: str) -> None:
    """Check the words of `make_tokenizer` before any data are read.

    Raises:
        ConfigError: the words make no sense.
    """
    name, *rest = str(what).split(":")
    sized = bool(rest) and rest[0].isdecimal() and int(rest[0]) > 0
    if name == "bytes" and not rest:
        return
    if name == "chars" and (not rest or (len(rest) == 1 and sized)):
        return
    if name in KINDS and sized and len(rest) < 3:
        if len(rest) == 2 and rest[1] not in PRESPLITS:
            raise ConfigError(f"--tokenizer {what}: there is no rule {rest[1]!r}.", nearest(rest[1], PRESPLITS))
        return
    if name in KNOWN:
        raise ConfigError(f"--tokenizer {what!r} cannot be read.", GRAMMAR)
    if not Path(what).expanduser().exists():
        raise ConfigError(f"There is no tokenizer {what!r}, and no such file.", f"{nearest(name, KNOWN)} {GRAMMAR}")


def tokenizer_from_json(value: Mapping[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer from what its `to_json` wrote.

    >>> tokenizer_from_json(Bytes().to_json())
    Bytes()
    """
    kind = value.get("kind")
    if kind not in TOKENIZERS:
        raise CheckpointError(f"There is no tokenizer of kind {kind!r}.", f"Known: {', '.join(TOKENIZERS)}.")
    return TOKENIZERS[str(kind)](value)


__all__ = [
    "Bytes", "Characters", "Ids", "PRESPLITS", "Specials", "Subword", "Tokenizer", "as_bytes", "make_tokenizer",
    "parse", "tokenizer_from_json", "train",
]  # fmt: skip
