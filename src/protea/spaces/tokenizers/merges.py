"""`vocab.json` with `merges.txt`, as GPT-2 keeps its tokenizer, as a definition of the `tokenizers` library.

vocab.json is {piece: id} over the alphabet of 256 characters that stand for bytes; merges.txt has a pair a line, the
first to merge first, perhaps after a line "#version". How text is cut into words before stands in neither: it goes by
the class that `tokenizer_config.json` names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protea.errors import DataError, nearest
from protea.spaces.tokenizers.definitions import added, bpe, empty
from protea.spaces.tokenizers.presplit import pattern

# class (less "Fast") to the rule by which it cuts text, and whether it composes characters (NFC) before
RULES = {
    "GPT2Tokenizer": ("gpt2", False), "CodeGenTokenizer": ("gpt2", False), "PreTrainedTokenizer": ("gpt2", False),
    "TokenizersBackend": ("gpt2", False), "Qwen2Tokenizer": ("digits", True),
}  # fmt: skip
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
END = "<|endoftext|>"


def read_merges(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A definition as in `tokenizer.json`.

    Args:
        folder: with vocab.json and merges.txt.
        config: of tokenizer_config.json; {} for none.

    Raises:
        DataError: damaged files, or a class whose rule is not known.
    """
    name = str(config.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if name not in RULES:
        raise DataError(
            f"{folder} is of a tokenizer {name!r}; how that cuts text into words is not known here.",
            f"{nearest(name, RULES)} Or save it with transformers as a fast tokenizer (tokenizer.json).",
        )
    try:
        vocab = {str(piece): int(id) for piece, id in json.loads((folder / "vocab.json").read_text("utf-8")).items()}
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: vocab.json or merges.txt cannot be read ({error}).", "Copy them again.") from None
    lines = lines[1:] if lines[0].startswith("#version") else lines
    merges = [line.split(" ") for line in lines if line]
    bad = next((m for m in merges if len(m) != 2 or not all(p in vocab for p in (*m, "".join(m)))), None)
    if bad is not None:
        raise DataError(f"{folder}: merges.txt has {' '.join(bad)!r}, which vocab.json does not.", "Copy both again.")
    rule, composed = RULES[name]
    split = {"type": "Split", "pattern": {"Regex": pattern(rule)}, "behavior": "Isolated", "invert": False}
    level = {**LEVEL, "add_prefix_space": bool(config.get("add_prefix_space", False))}
    # with a space to begin with, the library's own pattern cuts, after the space is there
    pre = {**level, "use_regex": True} if level["add_prefix_space"] and rule == "gpt2" else None
    pre = pre or {"type": "Sequence", "pretokenizers": [split, level]}
    extra = [added(vocab[END], END)] if END in vocab else []
    made = empty(bpe(vocab, merges), pre, LEVEL, extra)
    return {**made, "normalizer": {"type": "NFC"} if composed else None}
