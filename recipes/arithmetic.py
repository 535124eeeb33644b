"""Splits of numbers: addition with single digits, and with groups of 3 digits from the left or from the right.

    python -m recipes.arithmetic --steps 1000 --seeds 3

Operands have 1 to 3 digits, every pair of lengths as often as any other. Llama 3 cuts numbers into groups of 3 digits
from the left, so that a token of the sum 1234 = 123|4 stands for other places of value than one of 234; cut from the
right, 1|234, places line up. Held-out accuracy is told for all sums, for those in which left and right cut every number
alike, and for the others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from protea.spaces.tokenizers import make_tokenizer
from protea.training.muon import muon
from recipes.answers import correct, learn, size, tokenise, transformer

RULES = {"1 digit": "digits", "3 from the left": "llama3", "3 from the right": "r2l"}


def sums(n: int, digits: int, seed: int) -> np.ndarray:
    """(n, 2) operands; their numbers of digits are uniform."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, digits + 1, (n, 2))
    low = np.where(lengths == 1, 0, 10 ** (lengths - 1))
    return rng.integers(low, 10**lengths)


def written(pairs: np.ndarray) -> list[list[str]]:
    """Question and answer of each sum."""
    return [[f"{a}+{b}=", f"{a + b}\n"] for a, b in pairs.tolist()]


def aligned(pairs: np.ndarray) -> torch.Tensor:
    """(N,) whether groups of 3 from the left and from the right are the same, in both operands and the sum."""
    numbers = np.concatenate((pairs, pairs.sum(1, keepdims=True)), 1)
    length = np.char.str_len(numbers.astype(str))
    return torch.from_numpy(((length <= 3) | (length % 3 == 0)).all(1))


def probe(
    *, steps: int = 1000, seeds: int = 3, digits: int = 3, examples: int = 100_000, parameters: int = 150_000
) -> list[dict[str, Any]]:
    """One row a rule: vocabulary, tokens of an addition, and held-out accuracies by seed."""
    known, new = sums(examples, digits, 0), sums(2000, digits, 1)
    seen = {tuple(p) for p in known.tolist()}
    new = np.array([p for p in new.tolist() if tuple(p) not in seen])
    corpus = [f"{i:03d}\n" for i in range(1000) for _ in range(2)] + [f"{i}\n" for i in range(100)]
    rows = []
    for name, rule in RULES.items():
        began = time.process_time()
        tokenizer = make_tokenizer(f"bpe:1500:{rule}", corpus)
        data = tokenise(tokenizer, written(known))
        length = data.x.shape[1]
        test = tokenise(tokenizer, written(new), length)
        found: dict[str, list[float]] = {"all": [], "aligned": [], "others": []}
        level = aligned(new)
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = transformer(tokenizer, length, parameters, width=64)
            learn(model, data, steps, batch=256, optimizer=muon(0.02), seed=seed)  # AdamW takes many times the steps
            right = correct(model, test).all(1).double()
            for key, which in (("all", torch.ones_like(level)), ("aligned", level), ("others", ~level)):
                found[key].append(float(right[which].mean()))
        tokens = statistics.fmean(map(len, tokenizer.encode_batch([q + a for q, a in written(new)])))
        rows.append({
            "split": name, "vocabulary": tokenizer.vocabulary, "parameters": size(model), "tokens": tokens, **found,
            "seconds": time.process_time() - began,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"steps": 1000, "seeds": 3, "digits": 3, "examples": 100_000, "parameters": 150_000}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    rows = probe(**vars(parser.parse_args()))
    print(f"{'split':>16} {'ids':>5} {'parameters':>11} {'tokens':>7} {'right, by seed':>18} {'aligned':>8} "
          f"{'others':>7} {'CPU s':>6}")  # fmt: skip
    for r in rows:
        right = " ".join(f"{100 * a:.1f}" for a in r["all"])
        mean = {k: 100 * sum(r[k]) / len(r[k]) for k in ("aligned", "others")}
        print(f"{r['split']:>16} {r['vocabulary']:>5} {r['parameters']:>11,} {r['tokens']:>7.1f} {right:>18} "
              f"{mean['aligned']:>8.1f} {mean['others']:>7.1f} {r['seconds']:>6.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
