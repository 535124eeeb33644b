r"""Learning sub-words from text with the trainers of the `tokenizers` library; all are byte-level, hence lossless.

    bpe        merge the most frequent pair of neighbouring tokens, again and again (Sennrich et al. 2016); among equals
               the pair of smallest ids                                             AR-40
    wordpiece  pieces learnt the same way; a word is cut greedily into the longest pieces, "##" marking those that
               continue it (Schuster and Nakajima 2012; Devlin et al. 2019)
    unigram    pieces of a unigram language model, fitted by EM and pruned; the most probable cut wins (Kudo 2018)

The vocabulary always holds the 256 bytes. The same text gives the same tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from protea.errors import ConfigError, DataError, nearest
from protea.spaces.tokenizers.base import Specials, Text, as_bytes, as_text, byte_alphabet
from protea.spaces.tokenizers.definitions import BYTE_LEVEL, added, bpe, empty
from protea.spaces.tokenizers.presplit import pattern
from protea.spaces.tokenizers.subword import BROKEN, Subword, canonical

PREFIX = "##"  # of a piece that continues a word
UNKNOWN = "[UNK]"
KINDS = ("bpe", "wordpiece", "unigram")


def train(
    kind: str, texts: Sequence[Text], vocabulary: int, *, rule: str = "gpt2", specials: Specials | None = None
) -> Subword:
    """Learn a sub-word tokenizer.

    Args:
        kind: "bpe", "wordpiece" or "unigram".
        texts: documents; no token crosses from one to the next.
        vocabulary: how many ids, special tokens and the 256 bytes among them.
        rule: how text is cut into words, see `presplit`.
        specials: tokens that stand for no text; they get the first ids.

    Raises:
        DataError: no text, or a vocabulary too small.
        ConfigError: unknown kind or rule.

    >>> t = train("bpe", ["low lower lowest " * 9], 260)
    >>> [t.token(i) for i in t.encode("slow lows")]
    ['s', 'low', 'Ġlow', 's']
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no kind of sub-words {kind!r}.", nearest(kind, KINDS))
    specials = specials or Specials()
    whole = [part for text in texts for part in BROKEN.split(as_text(as_bytes(text))) if part]
    whole = [part for part in whole if not BROKEN.match(part)]
    if not whole:
        raise DataError("There is no text to learn sub-words from.", "Give text that is not empty.")
    names = list(specials.names)
    if kind == "wordpiece":
        names = [name for name in names if name != UNKNOWN]
        continued = [PREFIX + byte_alphabet()[b] for b in sorted(set("".join(whole).encode()))]
        reserved = [UNKNOWN, *names, *continued]
    else:
        continued, reserved = [], names
    least = len(reserved) + 256
    if vocabulary < least:
        raise DataError(
            f"A vocabulary of {vocabulary} is too small for {kind}: the 256 bytes"
            f"{f', {len(continued)} bytes that continue a word' if continued else ''} and special tokens take {least}.",
            f"Use at least {least}, or --tokenizer bytes.",
        )
    split = _split(pattern(rule))
    pre: dict[str, Any] = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    if kind == "wordpiece":  # a "#" is a word, so that no word but "#" itself can look like a continuation
        pre["pretokenizers"] = [_split("#"), *pre["pretokenizers"]]
    learn = {"bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram}[kind]
    return Subword(canonical(learn(whole, vocabulary, pre, reserved)), specials)


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _run(model: Any, trainer: Any, texts: list[str], pre: dict[str, Any]) -> dict[str, Any]:
    """What the library learns: the "model" part of its definition."""
    from tokenizers import Tokenizer as Backend

    made = Backend(model)
    shell = json.loads(made.to_str())
    made = Backend.from_str(json.dumps({**shell, "pre_tokenizer": pre}))
    made.train_from_iterator(texts, trainer, length=len(texts))
    return json.loads(made.to_str())["model"]


def _bpe(texts: list[str], vocabulary: int, pre: dict[str, Any], reserved: list[str]) -> dict[str, Any]:
    from tokenizers import models, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=byte_alphabet(), special_tokens=reserved, show_progress=False
    )
    found = _run(models.BPE(), trainer, texts, pre)
    extra = [added(found["vocab"][name], name) for name in reserved]
    return empty(bpe(found["vocab"], found["merges"]), pre, BYTE_LEVEL, extra)


def _wordpiece(texts: list[str], vocabulary: int, pre: dict[str, Any], reserved: list[str]) -> dict[str, Any]:
    from tokenizers import models, trainers

    # continuing bytes are reserved, in order: else the library numbers them by a random hash, and breaks ties by it
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, initial_alphabet=byte_alphabet(), special_tokens=reserved, show_progress=False,
        continuing_subword_prefix=PREFIX,
    )  # fmt: skip
    found = _run(models.WordPiece(unk_token=UNKNOWN), trainer, texts, pre)
    model = {**found, "max_input_chars_per_word": 100, "continuing_subword_prefix": PREFIX, "unk_token": UNKNOWN}
    strip = {"type": "Replace", "pattern": {"Regex": f"^{PREFIX}(?=.)"}, "content": ""}
    decoder = {"type": "Sequence", "decoders": [strip, BYTE_LEVEL]}
    extra = [added(found["vocab"][name], name) for name in reserved if not name.startswith(PREFIX)]
    return empty(model, pre, decoder, extra)


def _unigram(texts: list[str], vocabulary: int, pre: dict[str, Any], reserved: list[str]) -> dict[str, Any]:
    from tokenizers import models, trainers

    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, initial_alphabet=byte_alphabet(), special_tokens=reserved, show_progress=False
    )
    found = _run(models.Unigram(), trainer, texts, pre)
    # EM adds in an order that differs between runs: scores are rounded, and ordered by score and name. Bytes that the
    # model pruned come back with scores numbered in a random order, from the least on: they all get the least.
    scores = {piece: round(score, 6) for piece, score in found["vocab"] if piece not in reserved}
    least = min(scores.values())
    scores = {p: least if len(p) == 1 and s < least + 256e-4 else s for p, s in scores.items()}
    ordered = sorted(scores, key=lambda piece: (-scores[piece], piece))
    vocab = [[name, 0.0] for name in reserved] + [[piece, scores[piece]] for piece in ordered]
    model = {"type": "Unigram", "unk_id": None, "vocab": vocab, "byte_fallback": False}
    return empty(model, pre, BYTE_LEVEL, [added(i, name) for i, name in enumerate(reserved)])
