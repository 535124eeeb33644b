r"""The language model: exact likelihood of a text by the chain rule, all conditionals in one pass.

    log p(x_1 .. x_T) = sum_t log softmax(W h_t)[x_t],     h_t a function of x_0 .. x_{t-1},

with x_0 the begin-of-text token. The network is any `Decoder`: attention, state space, or both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protea.core import NextToken, Normalised
from protea.errors import DataError
from protea.models.autoregressive.decoder import Decoder
from protea.models.labels import class_frequencies, draw_labels, each_label, marginalise
from protea.nn.cache import Cache
from protea.nn.context import Memory
from protea.nn.fused import nats
from protea.nn.precise import precise
from protea.rng import Streams
from protea.samplers.tokens import generate
from protea.space import Rows
from protea.spaces import Tokens


class LanguageModel(Normalised, NextToken):
    """A text of T tokens under a causal network.

    Args:
        space: texts of T tokens of a vocabulary of V.
        net: reads token ids and predicts 0 .. V - 1.
        context: most tokens that `logits` may see.
        begin: id of begin-of-text; V + y for a text of class y where the space has classes (a label is what the
            text begins with). None is V: an id of its own, that cannot follow.

    >>> from protea.models.autoregressive.transformer import TransformerConfig, build
    >>> model = build(Tokens(5, vocabulary=3, tokenizer="ids"), TransformerConfig(n_layers=1, d_model=8, d_ff=16))
    >>> every_text = torch.cartesian_prod(*[torch.arange(3)] * 5)
    >>> round(model.log_prob(every_text).exp().sum().item(), 4)
    1.0
    """

    block = 8
    class_prior: Tensor
    architecture: str = ""  # its name in `ARCHITECTURES`, and its config: what other people's files are written from
    config: Any = None

    def __init__(self, space: Tokens, net: Decoder, context: int, begin: int | None = None) -> None:
        super().__init__()
        self.space, self.net, self.context = space, net, context
        self.begin = space.vocabulary if begin is None else begin
        self.register_buffer("class_prior", torch.full((n := len(space.classes),), 1 / max(n, 1), dtype=torch.float64))

    def initialise(self, rows: Rows, seed: int = 0) -> None:
        if len(self.class_prior):
            self.class_prior = class_frequencies(rows, len(self.class_prior)).to(self.class_prior)

    def _begin(self, cond: Tensor | None, n: int, device: torch.device) -> Tensor:
        """(n, 1) begin-of-text ids."""
        begin = torch.full((n, 1), self.begin, device=device)
        return begin if cond is None or len(self.class_prior) == 0 else begin + cond[:, None]

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None and len(self.class_prior):
            return marginalise(self.class_prior, self.log_prob(*each_label(self.class_prior, x)))
        logits = self.logits(torch.cat((self._begin(cond, len(x), x.device), x[:, :-1]), 1))
        return -nats(precise(logits.flatten(0, 1)), x.flatten()).reshape(x.shape).sum(1)

    def logits(
        self, tokens: Tensor, cache: Memory | None = None, *, pad: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, T) ids, begin-of-text where the caller wants it, to (B, T, V).

        Args:
            tokens: int64 ids.
            cache: from `new_cache`; the ids continue the texts it holds.
            pad: (B,) how many ids on the left of each row are padding (without a cache; with one, tell `new_cache`).
            documents: (B, T) integers that tell the documents of packed rows apart.

        Raises:
            DataError: more tokens than the context.
        """
        end = tokens.shape[1] + (0 if cache is None else getattr(cache, "length", 0))
        if end > self.context:
            raise DataError(
                f"{end} tokens do not fit in the model's context of {self.context}.",
                "Shorten the prompt, ask for fewer new tokens, or train with a longer context.",
            )
        return self.net(tokens, cache, pad=pad, documents=documents)

    def new_cache(self, batch: int, length: int, pad: Tensor | None = None) -> Cache:
        return Cache(length, pad)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        begin = self._begin(draw_labels(self.class_prior, rng, cond), len(rng), rng.device)
        return generate(self, begin, self.space.length, rng=rng)
