r"""The decoder-only transformer: exact likelihood of a text by the chain rule, all conditionals in one pass.

    log p(x_1 .. x_T) = sum_t log softmax(W h_t)[x_t],     h_t a function of x_0 .. x_{t-1},

with x_0 the begin-of-text token (Vaswani et al. 2017). The blocks are those on which the field
converged (Llama; Touvron et al. 2023): RMSNorm before each branch, rotary positions, grouped-query
attention, SwiGLU, no biases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protea.core import NextToken, Normalised
from protea.errors import DataError
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.entry import Entry
from protea.models.labels import class_frequencies, draw_labels, each_label, marginalise
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.cache import Cache
from protea.nn.mlp_gated import SwiGLU
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE, rope_frequencies
from protea.rng import Streams
from protea.samplers.tokens import generate
from protea.space import Rows, Space
from protea.spaces import Tokens


@dataclass(frozen=True)
class TransformerConfig:
    """The usual names; `context` is the longest text, begin-of-text included."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 4
    d_ff: int = 352
    context: int = 256
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie: bool = False


def llama(config: TransformerConfig, inputs: int, outputs: int) -> Decoder:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config
    rope = RoPE(rope_frequencies(c.d_model // c.n_heads, c.rope_theta))

    def block() -> Block:
        attention = GQA(c.d_model, c.n_heads, c.n_kv_heads, position=rope)
        return Block([
            Branch(RMSNorm(c.d_model, c.norm_eps), attention),
            Branch(RMSNorm(c.d_model, c.norm_eps), SwiGLU(c.d_model, c.d_ff)),
        ])  # fmt: skip

    blocks = [block() for _ in range(c.n_layers)]
    net = Decoder(nn.Embedding(inputs, c.d_model), blocks, RMSNorm(c.d_model, c.norm_eps), outputs, c.tie)
    return init_decoder(net)


class Transformer(Normalised, NextToken):
    """A text of T tokens under a causal network.

    Begin-of-text is the id V, or V + y for a text of class y: a label is what the text begins with.

    Args:
        space: texts of T tokens of a vocabulary of V.
        net: reads ids 0 .. V - 1 + max(classes, 1), predicts 0 .. V - 1.
        context: most tokens that `logits` may see.

    >>> from protea.spaces import Tokens
    >>> model = build(Tokens(5, vocabulary=3, tokenizer="ids"), TransformerConfig(n_layers=1, d_model=8, d_ff=16))
    >>> every_text = torch.cartesian_prod(*[torch.arange(3)] * 5)
    >>> round(model.log_prob(every_text).exp().sum().item(), 4)
    1.0
    """

    block = 8
    class_prior: Tensor

    def __init__(self, space: Tokens, net: Decoder, context: int) -> None:
        super().__init__()
        self.space, self.net, self.context, self.begin = space, net, context, space.vocabulary
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
        nats = nn.functional.cross_entropy(logits.flatten(0, 1).float(), x.flatten(), reduction="none")
        return -nats.reshape(x.shape).sum(1)

    def logits(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, T) ids, begin-of-text where the caller wants it, to (B, T, V).

        Raises:
            DataError: more tokens than the context.
        """
        end = tokens.shape[1] + (0 if cache is None else cache.length)
        if end > self.context:
            raise DataError(
                f"{end} tokens do not fit in the model's context of {self.context}.",
                "Shorten the prompt, ask for fewer new tokens, or train with a longer context.",
            )
        return self.net(tokens, cache)

    def new_cache(self, batch: int, length: int) -> Cache:
        return Cache(length)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        begin = self._begin(draw_labels(self.class_prior, rng, cond), len(rng), rng.device)
        return generate(self, begin, self.space.length, rng=rng)


def suggest(space: Space, train: Rows, seconds: float) -> TransformerConfig:
    """As large as the budget can train, and as the data can feed.

    6 N D operations train N parameters on D tokens (Kaplan et al. 2020), and compute is best spent with D proportional
    to N (Hoffmann et al. 2022): so N ~ sqrt(seconds), here 30,000 sqrt(seconds) for two cores, and at most one
    parameter for each token of the data. Width d and depth d / 32 + 2 have N of about 12 (d / 32 + 2) d^2.
    """
    assert isinstance(space, Tokens)
    most = min(3e4 * math.sqrt(max(seconds, 1.0)), train.x.numel())
    width = 32
    for d in (64, 96, 128, 192, 256, 384, 512):
        if 12 * (d // 32 + 2) * d**2 <= 1.2 * most:
            width = d
    heads, d_ff = width // 32, 16 * round(width / 6)
    return TransformerConfig(width // 32 + 2, width, heads, heads, d_ff, context=space.length)


def build(space: Space, config: TransformerConfig) -> Transformer:
    assert isinstance(space, Tokens)
    v = space.vocabulary
    return Transformer(space, llama(config, v + max(1, len(space.classes)), v), max(config.context, space.length))


ENTRY = Entry(
    name="transformer",
    family="autoregressive",
    title="Decoder-only transformer (RMSNorm, RoPE, GQA, SwiGLU)",
    source="Vaswani et al. 2017, Attention is all you need; Touvron et al. 2023, LLaMA",
    suits=frozenset({"tokens"}),
    config=TransformerConfig,
    build=build,
    suggest=suggest,
)
