"""Definitions in the format of `tokenizer.json` of tokenizers that are not sub-words, and the parts they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protea.errors import DataError
from protea.spaces.tokenizers.base import byte_alphabet

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def empty(model: dict[str, Any], pre: Any, decoder: Any, added: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A definition without normaliser and without post-processing."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added), "normalizer": None,
        "pre_tokenizer": pre, "post_processor": None, "decoder": decoder, "model": model,
    }  # fmt: skip


def added(id: int, content: str) -> dict[str, Any]:
    """A special token."""
    return {
        "id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip


def bpe(vocab: dict[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A BPE model."""
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": vocab, "merges": [list(pair) for pair in merges],
    }  # fmt: skip


def byte_definition() -> dict[str, Any]:
    """Bytes: byte-level BPE without merges, the id of a byte being the byte."""
    return empty(bpe({c: b for b, c in enumerate(byte_alphabet())}, ()), BYTE_LEVEL, BYTE_LEVEL)


def character_definition(charset: Sequence[str], unknown: str) -> dict[str, Any]:
    """Characters: a word is a character."""
    if any(0xD800 <= ord(c) < 0xE000 for c in charset):
        raise DataError("Bytes that are not UTF-8 are among the characters.", "Train on UTF-8 text to export.")
    model = {
        "type": "WordLevel", "vocab": {c: i for i, c in enumerate(charset)} | {unknown: len(charset)},
        "unk_token": unknown,
    }  # fmt: skip
    pre = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return empty(model, pre, {"type": "Fuse"}, [added(len(charset), unknown)])
