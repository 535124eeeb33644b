"""Tokenizers in the form a GGUF file keeps them: a list of pieces, their kinds, and how they merge.

Byte-level tokenizers (model "gpt2") write each byte as one printable character (Radford et al. 2019):
printable bytes stand for themselves, the others for the characters from U+0100 on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protea.errors import NotSupported

# Names llama.cpp gives to patterns by which text is split before it is merged.
PRE = {"gpt2": "gpt-2", "llama3": "llama-bpe"}


def byte_characters() -> list[str]:
    """The character that stands for each byte.

    >>> table = byte_characters()
    >>> table[ord("A")], table[ord(" ")], len(set(table))
    ('A', 'Ġ', 256)
    """
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of the tokens.

    Args:
        tokens: the piece of each id.
        kinds: NORMAL, CONTROL or USER_DEFINED, for each id.
        model: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
        pre: llama.cpp's name of the pattern that splits text before merging.
        merges: "left right", in order.
        scores: of SentencePiece pieces.
        bos, eos: ids of the begin and end of a text.
        add_bos: whether a prompt is to begin with `bos`.
        template: Jinja template of a chat.
    """

    tokens: list[str]
    kinds: list[str]
    model: str = "gpt2"
    pre: str | None = "gpt-2"
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    template: str | None = None


def of_bytes(begin: int | None) -> Vocabulary:
    """256 bytes, and a begin-of-text of its own where the model has one."""
    tokens, kinds = byte_characters(), ["NORMAL"] * 256
    if begin is not None:
        tokens, kinds = [*tokens, "<|begin|>"], [*kinds, "CONTROL"]
    # Without an end llama.cpp would take some id of its own for it: begin ends a text, too.
    return Vocabulary(tokens, kinds, bos=begin, eos=begin, add_bos=begin is not None)


def of_tokenizer_json(
    path: Path, *, bos: int | None, eos: int | None, add_bos: bool, size: int, pre: str | None = None,
    template: str | None = None,
) -> Vocabulary:  # fmt: skip
    """A byte-level BPE of a tokenizer.json.

    Args:
        path: of tokenizer.json.
        bos, eos, add_bos: see `Vocabulary`.
        size: rows of the embedding; ids the tokenizer does not use get placeholders.
        pre: name of the split pattern, "gpt2" or "llama3"; None guesses from the file.
        template: of a chat.

    Raises:
        NotSupported: another kind of tokenizer.
    """
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    model = facts["model"]
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(facts.get("decoder")):
        raise NotSupported(
            f"A {model.get('type')} tokenizer cannot be written into a GGUF file (byte-level BPE and bytes can).",
            "Export with --to hf instead.",
        )
    tokens, kinds = [f"<|unused{i}|>" for i in range(size)], ["USER_DEFINED"] * size
    for piece, number in model["vocab"].items():
        tokens[number], kinds[number] = piece, "NORMAL"
    for added in facts.get("added_tokens", []):
        tokens[added["id"]], kinds[added["id"]] = added["content"], "CONTROL" if added["special"] else "USER_DEFINED"
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    guess = "llama3" if "{1,3}" in json.dumps(facts.get("pre_tokenizer")) else "gpt2"
    return Vocabulary(
        tokens, kinds, pre=PRE[pre or guess], merges=merges, bos=bos, eos=eos, add_bos=add_bos, template=template
    )
