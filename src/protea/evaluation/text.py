r"""Text: cost under an independent n-gram, and repetition.

*Bits per byte under an n-gram.* Generated text is coded with a model that took no part in the race: byte n-grams
interpolated by Witten-Bell (1991), fitted on the training text,

    p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h)),

t(h) the number of different tokens seen after h, h' the context without its first token, and the uniform
distribution at the end. Neither low nor high is good: text as plain as real text costs what held-out text costs.

*Self-BLEU* (Zhu et al. 2018): the mean BLEU-4 (Papineni et al. 2002; smoothing 1 of Chen and Cherry 2014) of
each text with all others as references: 1 when all are alike. *Distinct-n* (Li et al. 2016): the share of
different word n-grams. Both are read beside the held-out text's own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protea.evaluation.figure import REPLICATES, Figure, describe, mean_figure, recentred_interval, resample_weights
from protea.space import Space
from protea.spaces import Tokens

ORDER = 5
TEXTS = 200  # texts compared with each other
Words = Sequence[Sequence[Any]]


class ReferenceNGram:
    """Witten-Bell n-grams of token rows (N, T) over `vocabulary` ids; counts are sorted arrays of packed n-grams.

    >>> model = ReferenceNGram(torch.tensor([[0, 1, 0, 1, 0, 1]]), vocabulary=2)
    >>> round(float(ReferenceNGram(torch.zeros(0, 6, dtype=torch.int64), 2).bits(torch.tensor([[0, 1]]))), 3)  # uniform
    1.0
    """

    def __init__(self, rows: Tensor, vocabulary: int, order: int = ORDER) -> None:
        self.vocabulary = vocabulary
        self.order = max(1, min(order, int(62 / math.log2(vocabulary + 1)), rows.shape[1]))
        self.tables = []
        for n in range(1, self.order + 1):
            grams, counts = np.unique(_pack(rows.numpy(), n, vocabulary), return_counts=True)
            contexts, first = np.unique(grams // (vocabulary + 1), return_index=True)
            ends = np.append(first[1:], len(grams))
            total = np.append(0, counts.cumsum())
            self.tables.append((grams, counts, contexts, total[ends] - total[first], ends - first))

    def log2_prob(self, rows: Tensor) -> np.ndarray:
        """log2 p of each token given those before it in its row, (N, T)."""
        x = rows.numpy()
        p = np.full(x.shape, 1.0 / self.vocabulary)
        for n, (grams, counts, contexts, totals, kinds) in enumerate(self.tables, start=1):
            if n > x.shape[1]:
                break
            code = _pack(x, n, self.vocabulary).reshape(len(x), -1)
            c_hw = _look_up(grams, counts, code)
            c_h, t_h = (_look_up(contexts, v, code // (self.vocabulary + 1)) for v in (totals, kinds))
            seen = c_h > 0
            lower = p[:, n - 1 :]
            p[:, n - 1 :] = np.where(seen, (c_hw + t_h * lower) / np.maximum(c_h + t_h, 1), lower)
        return np.log2(p)

    def bits(self, rows: Tensor) -> Tensor:
        """Bits per token of each row, (N,)."""
        return torch.from_numpy(-self.log2_prob(rows).mean(1))


def bits_per_byte_ngram(
    rows: Tensor, model: ReferenceNGram, protocol: Mapping[str, Any] | None = None,
    *, space: Space | None = None, seed: int = 0, replicates: int = REPLICATES,
) -> Figure:  # fmt: skip
    """Bits per byte of rows (N, T) under the reference; bits per token without a `space` that knows the bytes."""
    facts = {**(protocol or {}), "ngram": f"Witten-Bell, order {model.order}"}
    bits = model.bits(rows)
    if space is None or isinstance(getattr(space, "tokenizer", "ids"), str):
        return mean_figure(bits, facts, seed=seed, replicates=replicates)
    found = space.measure(-bits * rows.shape[1] * math.log(2), rows)
    return mean_figure(found.values, facts, seed=seed, replicates=replicates, weights=found.weights)


def bleu(references: Words, hypothesis: Sequence[Any], order: int = 4) -> float:
    """BLEU of one text against references, smoothed by 0.1 where an n-gram order has no match.

    >>> text = "the cat sat on the mat".split()
    >>> bleu([text], text)
    1.0
    """
    best = [_clip_counts([Counter(_grams(r, n)) for r in references]) for n in range(1, order + 1)]
    return _bleu(hypothesis, best, [len(r) for r in references])


def self_bleu(
    texts: Words, protocol: Mapping[str, Any] | None = None, *, seed: int = 0, replicates: int = REPLICATES
) -> Figure:
    """Mean BLEU-4 of each text against all others; at most 200 texts; lower is more varied."""
    texts = texts[:TEXTS]
    lengths = [len(t) for t in texts]
    counts = [[Counter(_grams(t, n)) for t in texts] for n in range(1, 5)]
    leading = [_two_largest(c) for c in counts]
    scores = []
    for i, text in enumerate(texts):
        best = [
            {g: (top[g][2] if top[g][1] == i else top[g][0]) for g in own[i]} for own, top in zip(counts, leading)
        ]  # the largest count among the others
        scores.append(_bleu(text, best, lengths[:i] + lengths[i + 1 :]))
    facts = {**(protocol or {}), "texts": len(texts), "order": 4}
    return mean_figure(torch.tensor(scores, dtype=torch.float64), facts, seed=seed, replicates=replicates)


def distinct_n(
    texts: Words, protocol: Mapping[str, Any] | None = None, *, n: int = 2, seed: int = 0, replicates: int = 100
) -> Figure:
    """Different word n-grams over all word n-grams, of at most 200 texts."""
    texts = texts[:TEXTS]
    number: dict[Any, int] = {}
    row, column = [], []
    for i, text in enumerate(texts):
        for gram in _grams(text, n):
            row.append(i)
            column.append(number.setdefault(gram, len(number)))
    count = torch.zeros(len(texts), max(len(number), 1))
    count.index_put_(
        (torch.tensor(row, dtype=torch.long), torch.tensor(column, dtype=torch.long)), torch.ones(len(row)), True
    )
    w = torch.cat((torch.ones(1, len(texts)), resample_weights(len(texts), replicates, seed, "texts").float()))
    drawn = w @ count
    share = ((drawn > 0).double().sum(1) / drawn.double().sum(1).clamp_min(1)).double()
    value = float(share[0])
    low, high = recentred_interval(value, share[1:], floor=0.0, ceiling=1.0)
    facts = {"texts": len(texts), "n": n}
    return Figure(value, low, high, describe(protocol, replicates, "recentred", **facts))


def words(rows: Tensor, space: Space) -> list[list[Any]]:
    """Rows of token ids to lists of words: text is split at white space, plain ids stand for themselves."""
    if getattr(space, "tokenizer", "ids") == "ids" or not isinstance(space, Tokens):
        return rows.tolist()
    return [text.split() for text in space.decode_bytes(rows)]


def _pack(x: np.ndarray, n: int, vocabulary: int) -> np.ndarray:
    """All n-grams of rows (N, T) as integers in base vocabulary + 1, flat."""
    code = np.zeros((len(x), x.shape[1] - n + 1), dtype=np.int64)
    for k in range(n):
        code = code * (vocabulary + 1) + x[:, k : x.shape[1] - n + 1 + k] + 1
    return code.reshape(-1)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if len(keys) == 0:
        return np.zeros(wanted.shape, dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _grams(text: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def _clip_counts(counts: Sequence[Counter]) -> dict[Any, int]:
    best: dict[Any, int] = {}
    for counter in counts:
        for gram, count in counter.items():
            best[gram] = max(best.get(gram, 0), count)
    return best


def _two_largest(counts: Sequence[Counter]) -> dict[Any, tuple[int, int, int]]:
    """For each n-gram: its largest count, the text that has it, and the largest count elsewhere."""
    best: dict[Any, tuple[int, int, int]] = {}
    for i, counter in enumerate(counts):
        for gram, count in counter.items():
            most, who, second = best.get(gram, (0, -1, 0))
            best[gram] = (count, i, most) if count > most else (most, who, max(second, count))
    return best


def _bleu(hypothesis: Sequence[Any], best: Sequence[Mapping[Any, int]], lengths: Sequence[int]) -> float:
    c = len(hypothesis)
    if c == 0:
        return 0.0
    log_p = 0.0
    for n, limit in enumerate(best, start=1):
        counts = Counter(_grams(hypothesis, n))
        match = sum(min(count, limit.get(gram, 0)) for gram, count in counts.items())
        if n == 1 and match == 0:
            return 0.0
        log_p += math.log((match or 0.1) / max(sum(counts.values()), 1)) / len(best)
    r = min(lengths, key=lambda length: (abs(length - c), length))
    return math.exp(log_p + min(0.0, 1 - r / c))
