r"""The decoder-only transformer on which the field converged (Vaswani et al. 2017; Llama: Touvron et al. 2023).

RMSNorm before each branch, rotary positions, grouped-query attention, SwiGLU, no biases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.language import LanguageModel
from protea.models.entry import Entry
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.mlp_gated import SwiGLU
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE, rope_frequencies
from protea.nn.tokens import TokenEmbedding
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
    net = Decoder(TokenEmbedding(inputs, c.d_model), blocks, RMSNorm(c.d_model, c.norm_eps), outputs, c.tie)
    return init_decoder(net)


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


def build(space: Space, config: TransformerConfig) -> LanguageModel:
    assert isinstance(space, Tokens)
    v = space.vocabulary
    return LanguageModel(space, llama(config, v + max(1, len(space.classes)), v), max(config.context, space.length))


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
