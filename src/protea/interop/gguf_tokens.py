"""Tokenizers in the form a GGUF file keeps them: a list of pieces, their kinds, and how they merge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protea.errors import NotSupported

# Names llama.cpp gives to patterns by which text is split before it is merged.
PRE = {"gpt2": "gpt-2", "llama3": "llama-bpe"}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of the tokens.

    Args:
        tokens: the piece of each id.
        kinds: NORMAL, CONTROL or USER_DEFINED, for each id.
        pre: llama.cpp's name of the pattern that splits text before merging.
        merges: "left right", in order.
        bos, eos: ids of the begin and end of a text.
        add_bos: whether a prompt is to begin with `bos`.
        template: Jinja template of a chat.
    """

    tokens: list[str]
    kinds: list[str]
    pre: str = "gpt-2"
    merges: list[str] = field(default_factory=list)
    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    template: str | None = None


def vocabulary_of(
    definition: Mapping[str, Any], size: int, *, bos: int | None = None, eos: int | None = None,
    template: str | None = None,
) -> Vocabulary:  # fmt: skip
    """A byte-level BPE, of which plain bytes are the case without merges.

    Args:
        definition: the tokenizer as the contents of a tokenizer.json.
        size: rows of the embedding; ids the tokenizer does not use get placeholders.
        bos: begin-of-text, with which every prompt begins; it may be an id the tokenizer does not have.
        eos: end of a text; without one llama.cpp would take some id of its own, so `bos` ends a text, too.
        template: of a chat.

    Raises:
        NotSupported: another kind of tokenizer.
    """
    model = definition["model"]
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(definition.get("decoder")):
        raise NotSupported(
            f"A {model.get('type')} tokenizer cannot be written into a GGUF file (byte-level BPE and bytes can).",
            "Export with --to hf instead.",
        )
    tokens, kinds = [f"<|unused{i}|>" for i in range(size)], ["USER_DEFINED"] * size
    for piece, number in model["vocab"].items():
        tokens[number], kinds[number] = piece, "NORMAL"
    for added in definition.get("added_tokens") or []:
        tokens[added["id"]], kinds[added["id"]] = added["content"], "CONTROL" if added["special"] else "USER_DEFINED"
    if bos is not None and kinds[bos] == "USER_DEFINED":
        tokens[bos], kinds[bos] = "<|begin|>", "CONTROL"
    # llama.cpp wants one merge at least; where the merged piece is no token it falls back to the two.
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]] or ["Ā Ā"]
    split = "llama3" if "{1,3}" in json.dumps(definition.get("pre_tokenizer")) else "gpt2"
    return Vocabulary(
        tokens, kinds, PRE[split], merges, bos=bos, eos=bos if eos is None else eos, add_bos=bos is not None,
        template=template,
    )  # fmt: skip
