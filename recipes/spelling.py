"""Token blindness: how many times does a letter occur in a word? Bytes against BPE at equal parameters and steps.

    python -m recipes.spelling --steps 800 --seeds 3

A model of BPE sees a word as one or a few tokens and has to learn the spelling of each by heart; a model of bytes sees
the letters. Words are those of Python's own source; a fifth of them is held out, and the BPE is learnt on that source.
A row reads "strawberry r3 b1 k0 e1": after each letter comes its count, which is what is learnt and asked. Half the
letters are the most frequent one of the word, a quarter any of its letters, a quarter one it has not.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import Counter
from typing import Any

import numpy as np
import torch

from protea.data.embedded import stdlib
from protea.data.split import assign, digests
from protea.spaces.tokenizers import Bytes, Tokenizer, make_tokenizer
from recipes.answers import Answers, correct, learn, size, tokenise, transformer


def questions(words: list[str], each: int, seed: int) -> list[list[str]]:
    """For every word `each` letters of different kinds, with how often they occur: word, count, letter, count ..."""
    rng = np.random.default_rng(seed)
    rows = []
    for word in words:
        count = Counter(word)
        top = max(count.values())
        most = [c for c in sorted(count) if count[c] == top]
        absent = [c for c in "abcdefghijklmnopqrstuvwxyz" if c not in count]
        row, before = [], word
        for kind in rng.random(each):
            letters = most if kind < 0.5 else sorted(count) if kind < 0.75 else absent
            letter = letters[rng.integers(len(letters))]
            row += [f"{before} {letter}", str(count[letter])]
            before = ""
        rows.append(row)
    return rows


def corpus_words(documents: list[bytes]) -> tuple[list[str], list[str]]:
    """Different words of 4 to 14 letters, those to learn from and those held out."""
    text = b"\n".join(documents).decode("utf-8", "ignore")
    found = sorted(set(re.findall(r"(?<![A-Za-z])[a-z]{4,14}(?![A-Za-z])", text)))
    part = assign(digests(w.encode() for w in found), 0, (0.8, 0.1, 0.1))
    return [w for w, p in zip(found, part) if p == 0], [w for w, p in zip(found, part) if p > 0]


def probe(
    *,
    steps: int = 800,
    seeds: int = 3,
    vocabulary: int = 1000,
    parameters: int = 60_000,
    each: int = 4,
    copies: int = 20,
) -> list[dict[str, Any]]:
    """One row a tokenizer: parameters, tokens of a word, and the accuracy on held-out words of each seed."""
    documents = stdlib().documents
    train, held = corpus_words(documents)
    prose = [" ".join(train), *documents]
    rows = []
    for name, tokenizer in (("bytes", Bytes()), (f"bpe:{vocabulary}", make_tokenizer(f"bpe:{vocabulary}", prose))):
        began = time.process_time()
        asked = [questions(train, each, s) for s in range(copies)]
        data = tokenise(tokenizer, [row for part in asked for row in part])
        test = tokenise(tokenizer, questions(held, each, copies), data.x.shape[1] + 4)  # rare words take more tokens
        scores = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = transformer(tokenizer, test.x.shape[1], parameters)
            learn(model, data, steps, seed=seed)
            scores.append(float(correct(model, test)[test.answer].double().mean()))
        rows.append({
            "tokenizer": name, "parameters": size(model), "tokens a word": tokens_of(tokenizer, held),
            "accuracy": scores, "guess": chance(test, data), "words": len(held),
            "seconds": time.process_time() - began,
        })  # fmt: skip
    return rows


def tokens_of(tokenizer: Tokenizer, words: list[str]) -> float:
    return statistics.fmean(len(ids) for ids in tokenizer.encode_batch(words))


def chance(test: Answers, data: Answers) -> float:
    """The accuracy of always giving the most frequent answer of the training questions."""
    return float((test.x[test.answer] == data.x[data.answer].mode().values).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("steps", 800), ("seeds", 3), ("vocabulary", 1000), ("parameters", 60_000), ("each", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    rows = probe(**vars(parser.parse_args()))
    print(f"{'tokenizer':>10} {'weights':>11} {'tokens a word':>14} {'right, by seed':>24} {'guess':>7} {'CPU s':>6}")
    for r in rows:
        right = " ".join(f"{100 * a:.1f}" for a in r["accuracy"])
        print(f"{r['tokenizer']:>10} {r['parameters']:>11,} {r['tokens a word']:>14.2f} {right:>24} "
              f"{100 * r['guess']:>7.1f} {r['seconds']:>6.0f}")  # fmt: skip
    print(f"held out: {rows[0]['words']:,} words")


if __name__ == "__main__":
    main()
