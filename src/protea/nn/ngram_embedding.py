"""Token embeddings that see the tokens just before, through hashed n-grams: what a small network learns slowly.

    e_t = norm(E[x_t] + sum_n G_n[hash(x_{t-n+1} .. x_t)])

A table look-up costs no products, so the short contexts that make up most of a text's predictability are nearly free
(hash embeddings: Svenstrup et al. 2017; n-grams: `hash_ngrams`). The tables start at zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protea.nn.context import Context
from protea.nn.hash_ngrams import HashNGrams
from protea.nn.tokens import TokenEmbedding

LAYER = -1  # where the memory keeps the tokens before


class NGramEmbedding(TokenEmbedding):
    """A `TokenEmbedding` plus embeddings of the n-grams that end at each token.

    Args:
        inputs: ids that can be read.
        d_model: width of the residual stream.
        sizes: n, of the n-grams.
        buckets: rows of each table.
        norm: of the sum; None for none.

    n-grams do not reach past the beginning of a document, and go on from what a memory holds.

    >>> from protea.nn.context import plain_context
    >>> NGramEmbedding(5, 8, (2, 3), 64)(torch.tensor([[0, 4, 1]]), plain_context(3)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(
        self, inputs: int, d_model: int, sizes: Sequence[int], buckets: int, norm: nn.Module | None = None
    ) -> None:
        super().__init__(inputs, d_model)
        self.grams, self.norm = HashNGrams(sizes, buckets, d_model), norm
        nn.init.zeros_(self.grams.weight)

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """(B, T) ids to (B, T, d_model)."""
        held = None if ctx.cache is None else ctx.cache.state(LAYER)
        past = tokens.new_zeros(len(tokens), self.grams.back) if held is None else held[0]
        if ctx.cache is not None:
            ctx.cache.keep(LAYER, torch.cat((past, tokens), 1)[:, tokens.shape[1] :])
        # Ids from 1, for 0 stands for no token.
        positions = ctx.positions.expand(tokens.shape)
        x = super().forward(tokens, ctx) + self.grams(tokens + 1, positions, past + 1)
        return x if self.norm is None else self.norm(x)
