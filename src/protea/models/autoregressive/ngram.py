r"""Interpolated Kneser-Ney n-gram: the text model that only counts, and a hard one to beat on little data.

With h a history of n - 1 tokens and h' the same without its oldest token (Chen & Goodman 1999,
"An empirical study of smoothing techniques for language modeling"):

    P_n(w | h) = max(c(h w) - D_{c(h w)}, 0) / c(h .)  +  gamma(h) P_{n-1}(w | h')
    gamma(h)   = (D_1 N_1(h) + D_2 N_2(h) + D_3 N_3+(h)) / c(h .),      P_0 = 1 / V

c counts occurrences at the highest order and for n-grams that open a text; elsewhere it counts
*continuations*: how many different tokens were seen before (h w). N_k(h) is the number of tokens
with c(h w) = k. One discount for each count and order comes from the counts of counts n_k:

    Y = n_1 / (n_1 + 2 n_2),   D_1 = 1 - 2 Y n_2 / n_1,   D_2 = 2 - 3 Y n_3 / n_2,   D_3 = 3 - 4 Y n_4 / n_3.

Every text starts with an implicit begin-of-text token (id V). An n-gram is one integer, its ids
being digits in base V + 1, so that a table of counts is a sorted vector and n-grams that share a
history lie side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from protea.core import Countable, NextToken, Normalised, Stats
from protea.errors import ConfigError
from protea.models.entry import Entry
from protea.models.labels import refuse_labels
from protea.rng import Streams
from protea.samplers.tokens import generate
from protea.space import Rows, Space
from protea.spaces import Tokens


@dataclass(frozen=True)
class NGramConfig:
    """Args: order: tokens in an n-gram; discount: one D for every count and order, or None to estimate them."""

    order: int = 5
    discount: float | None = None


class Level(nn.Module):
    """The n-grams h w of one order, sorted, and what each contributes. All buffers are saved.

    Args:
        base: digits' base, V + 1.
    """

    keys: Tensor  # (K,) int64
    alpha: Tensor  # (K,) float64, the discounted share of w after h
    history: Tensor  # (C,) int64, the histories h, sorted
    gamma: Tensor  # (C,) float64
    starts: Tensor  # (C + 1,) int64, where the n-grams of each history start
    discounts: Tensor  # (4,) float64, D by min(c, 3); D_0 = 0

    def __init__(self, base: int) -> None:
        super().__init__()
        self.base = base
        for name, size, dtype in (
            ("keys", 0, torch.int64), ("alpha", 0, torch.float64), ("history", 0, torch.int64),
            ("gamma", 0, torch.float64), ("starts", 1, torch.int64), ("discounts", 4, torch.float64),
        ):  # fmt: skip
            self.register_buffer(name, torch.zeros(size, dtype=dtype))

    def fit(self, keys: Tensor, counts: Tensor, discount: float | None) -> None:
        """Take sorted keys and their counts, and estimate the discounts (or use the one given)."""
        d = [discount] * 3 if discount is not None else _discounts(counts)
        self.keys, self.discounts = keys, counts.new_tensor([0.0, *d])
        self.history, row, fan = torch.unique_consecutive(keys // self.base, return_inverse=True, return_counts=True)
        self.starts = nn.functional.pad(fan.cumsum(0), (1, 0))
        freed = self.discounts[counts.long().clamp(max=3)]
        total = counts.new_zeros(len(fan)).index_add_(0, row, counts)
        self.gamma = torch.zeros_like(total).index_add_(0, row, freed) / total
        self.alpha = (counts - freed) / total[row]

    def one(self, p: Tensor, key: Tensor) -> Tensor:
        """P_n of the last token of each n-gram (M,), given P_{n-1} of it."""
        row, seen = _find(self.history, key // self.base)
        at, counted = _find(self.keys, key)
        if len(self.keys) == 0:
            return p
        return torch.where(seen, self.gamma[row] * p, p) + torch.where(counted, self.alpha[at], 0.0)

    def all(self, p: Tensor, history: Tensor) -> Tensor:
        """P_n (M, V) of every token after each history (M,), given P_{n-1}."""
        row, seen = _find(self.history, history)
        if not seen.any():
            return p
        p = torch.where(seen, self.gamma[row], 1.0)[:, None] * p
        start = self.starts[row]
        fan = torch.where(seen, self.starts[row + 1] - start, 0)  # a history's n-grams are neighbours
        text = torch.repeat_interleave(fan)
        at = torch.arange(len(text), device=p.device) + (start - (fan.cumsum(0) - fan))[text]
        p[text, self.keys[at] % self.base] += self.alpha[at]
        return p

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers():  # their lengths are known from the file alone
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _find(table: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of x (M,) would be in a sorted table, and whether it is there."""
    at = torch.searchsorted(table, x).clamp(max=max(len(table) - 1, 0))
    return at, (table[at] == x if len(table) else torch.zeros_like(x, dtype=torch.bool))


def _discounts(counts: Tensor) -> list[float]:
    """D_1, D_2, D_3+ of Chen & Goodman; 1/2, 1, 3/2 where counts of counts do not determine them (as KenLM)."""
    n = [0.0, *(float((counts == k).sum()) for k in (1, 2, 3, 4))]
    if min(n[1:]) > 0:
        y = n[1] / (n[1] + 2 * n[2])
        d = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
        if all(0 < d[k - 1] <= k for k in (1, 2, 3)):
            return d
    return [0.5, 1.0, 1.5]


@dataclass
class History:
    """A cache for `NGram.logits`: the last tokens of each text, (B, order - 1)."""

    tokens: Tensor


class NGram(Normalised, NextToken, Countable):
    """Interpolated Kneser-Ney over the tokens of a text. It has no classes: labels of rows are ignored.

    Its statistics are the counts of n-grams, a sparse vector: they add, and one `maximise` with
    those of the whole data set is all its learning. Untrained, it is uniform.

    Args:
        space: texts of T tokens of a vocabulary of V.
        config: see `NGramConfig`.

    Raises:
        ConfigError: an order below 1, or so high that an n-gram does not fit in 63 bits; a discount not in (0, 1].

    >>> from protea.spaces import Tokens
    >>> model = NGram(Tokens(4, vocabulary=3), NGramConfig(order=2))
    >>> model.maximise(model.expect(torch.tensor([[0, 1, 0, 1], [0, 1, 2, 0]])))
    >>> bool(model.log_prob(torch.tensor([[0, 1, 0, 1]])) > model.log_prob(torch.tensor([[2, 2, 2, 2]])))
    True
    """

    def __init__(self, space: Tokens, config: NGramConfig) -> None:
        super().__init__()
        self.space, self.config = space, config
        self.begin, self.base = space.vocabulary, space.vocabulary + 1
        if not 1 <= config.order <= (most := highest_order(space.vocabulary)):
            raise ConfigError(
                f"An n-gram of order {config.order} over {space.vocabulary} tokens cannot be counted.",
                f"Choose an order from 1 to {most}.",
            )
        if config.discount is not None and not 0 < config.discount <= 1:
            raise ConfigError(f"The discount {config.discount} is not in (0, 1].", "Leave it out to estimate it.")
        self.levels = nn.ModuleList(Level(self.base) for _ in range(config.order))

    def _orders(self) -> Iterator[tuple[int, Level]]:
        for n, level in enumerate(self.levels, 1):
            assert isinstance(level, Level)
            yield n, level

    def _pack(self, x: Tensor, n: int) -> Tensor:
        """(B, L) ids to the keys (B, L - n + 1) of their n-grams."""
        key = x.new_zeros(x.shape[0], x.shape[1] - n + 1)
        for j in range(n):
            key = key * self.base + x[:, j : x.shape[1] - n + 1 + j]
        return key

    def _ngrams(self, x: Tensor) -> Tensor:
        """Keys (B, T) of the n-grams that end at each token of x, padded on the left by begin-of-text."""
        pad = x.new_full((len(x), self.config.order - 1), self.begin)
        return self._pack(torch.cat((pad, x.long()), 1), self.config.order)

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        key = self._ngrams(x).flatten()
        p = torch.full(key.shape, 1 / self.space.vocabulary, dtype=torch.float64, device=x.device)
        for n, level in self._orders():
            p = level.one(p, key % self.base**n)
        return p.log().reshape(x.shape).sum(1)

    def logits(self, tokens: Tensor, cache: History | None = None) -> Tensor:
        """(B, T) ids to (B, T, V) log-probabilities, float64; what no cache remembers is begin-of-text."""
        n = self.config.order
        history = cache.tokens if cache is not None else tokens.new_full((len(tokens), n - 1), self.begin)
        x = torch.cat((history, tokens), 1)
        if cache is not None:
            cache.tokens = x[:, x.shape[1] - (n - 1) :]
        key = self._pack(x, n - 1)[:, 1:].flatten()
        v = self.space.vocabulary
        p = torch.full((len(key), v), 1 / v, dtype=torch.float64, device=x.device)
        for n, level in self._orders():
            p = level.all(p, key % self.base ** (n - 1))
        return p.log().reshape(*tokens.shape, -1)

    def new_cache(self, batch: int, length: int) -> History:
        device = next(self.buffers()).device
        return History(torch.full((batch, self.config.order - 1), self.begin, device=device))

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        refuse_labels(cond)
        begin = torch.full((len(rng), 1), self.begin, device=rng.device)
        return generate(self, begin, self.space.length, rng=rng)

    @torch.no_grad()
    def expect(self, x: Tensor, cond: Tensor | None = None) -> Stats:
        """Counts of n-grams as a sparse vector over all keys; they add, like any tensor."""
        keys, counts = self._ngrams(x).flatten().unique(return_counts=True)
        size = (self.base**self.config.order,)
        ngrams = torch.sparse_coo_tensor(keys[None], counts.double(), size, is_coalesced=True, check_invariants=False)
        count = torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)
        return {"ngrams": ngrams, "log_prob": self.log_prob(x).sum(), "count": count}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        ngrams = stats["ngrams"].coalesce()
        keys, raw = ngrams.indices()[0], ngrams.values()
        counts, order = raw, self.config.order
        for n in range(order, 0, -1):
            if n < order:
                keys, inverse, left = (keys % self.base**n).unique(return_inverse=True, return_counts=True)
                raw = raw.new_zeros(len(keys)).index_add_(0, inverse, raw)
                opens = keys // self.base ** (n - 1) == self.begin  # nothing can come before it: occurrences count
                counts = torch.where(opens, raw, left.to(raw))
            # A history of several begin-of-texts says no more than one of them does.
            keep = keys // self.base ** max(n - 2, 0) % self.base != self.begin
            level = self.levels[n - 1]
            assert isinstance(level, Level)
            level.fit(keys[keep], counts[keep], self.config.discount)


def highest_order(vocabulary: int) -> int:
    """The longest n-gram over a vocabulary whose key fits in a signed 64-bit integer."""
    return max(n for n in range(1, 64) if (vocabulary + 1) ** n < 2**63)


def suggest(space: Space, train: Rows, seconds: float) -> NGramConfig:
    """The order grows with the logarithm of the text's length, up to what a key can hold: 7 at a million bytes.

    Smoothing makes an order too high nearly free: on English the best order is 5 to 7 from 3 kB up.
    """
    assert isinstance(space, Tokens)
    order = round(math.log10(max(train.x.numel(), 1))) + 1
    return NGramConfig(order=max(1, min(order, highest_order(space.vocabulary))))


def build(space: Space, config: NGramConfig) -> NGram:
    assert isinstance(space, Tokens)
    return NGram(space, config)


ENTRY = Entry(
    name="ngram",
    family="autoregressive",
    title="Interpolated Kneser-Ney n-gram",
    source="Chen & Goodman 1999, An empirical study of smoothing techniques for language modeling",
    suits=frozenset({"tokens"}),
    config=NGramConfig,
    build=build,
    suggest=suggest,
)
