r"""Cohere 2 (Command R7B, Command A; Cohere team 2025): attention and perceptron side by side, global layers blind
to position.

    x <- x + GQA(LN(x)) + SwiGLU(LN(x)),    LN without bias,

three layers of a sliding window with rotary positions (interleaved pairs) to one that sees all without positions
(Yang et al. 2025, "RoPE to NoPE and back again"); the head is tied and its logits are scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.spelling import (
    ATTENTION,
    GATED,
    Facts,
    common,
    common_to,
    demand,
    ends,
    fact,
    linears,
    one,
    pattern_of,
    pattern_to,
    window_of,
)  # fmt: skip
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.branches import Parallel
from protea.nn.logits import LogitScale
from protea.nn.mlp_gated import SwiGLU
from protea.nn.position import rotate_interleaved
from protea.nn.rope import make_rope
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class CohereConfig:
    """The usual names; `pattern` repeats over the layers, "sliding" ones see `window` tokens and their positions."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 352
    context: int = 256
    window: int = 64
    pattern: tuple[str, ...] = ("sliding", "sliding", "sliding", "full")
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    logit_scale: float = 0.0625
    norm_eps: float = 1e-5
    tie: bool = True
    d_head: int | None = None
    bias: bool = False


def build(config: CohereConfig, inputs: int, outputs: int) -> Decoder:
    c = config
    d_head = c.d_head or c.d_model // c.n_heads
    rope = make_rope(d_head, c.rope_theta, c.rope_scaling, c.context, rotate_interleaved)

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(c.d_model, c.norm_eps, bias=False)

    def block(i: int) -> Block:
        window = window_of(i, c.pattern, c.window)
        attention = GQA(
            c.d_model,
            c.n_heads,
            c.n_kv_heads,
            d_head=d_head,
            position=None if window is None else rope,
            window=window,
            bias=c.bias,
            bias_out=c.bias,
        )
        return Block([Branch(norm(), Parallel(attention, SwiGLU(c.d_model, c.d_ff)))])

    blocks = [block(i) for i in range(c.n_layers)]
    embed = TokenEmbedding(inputs, c.d_model)
    return init_decoder(Decoder(embed, blocks, norm(), outputs, c.tie, LogitScale(c.logit_scale)))


def scaled(n_layers: int, d_model: int, context: int) -> CohereConfig:
    """The last of every four layers is global; of fewer, the last. The small head needs no damping."""
    heads = d_model // 32 or 2
    return CohereConfig(
        n_layers, d_model, heads, max(1, heads // 2), 16 * round(d_model / 6), context, max(2, context // 4),
        ("sliding",) * (min(n_layers, 4) - 1) + ("full",), logit_scale=1.0,
    )  # fmt: skip


def read(config: Facts) -> CohereConfig:
    demand(config, hidden_act="silu", use_qk_norm=False)
    values = common({"tie_word_embeddings": True, **config})
    return CohereConfig(
        **{**values, "norm_eps": fact(config, "layer_norm_eps", 1e-5), "d_head": None},
        window=fact(config, "sliding_window", 4096), pattern=pattern_of(config, 4),
        logit_scale=fact(config, "logit_scale", 0.0625), bias=fact(config, "attention_bias", False),
    )  # fmt: skip


def write(c: CohereConfig, inputs: int) -> dict[str, Any]:
    out = common_to(c, inputs)
    del out["rms_norm_eps"]
    return out | {
        "layer_norm_eps": c.norm_eps, "logit_scale": c.logit_scale, "sliding_window": c.window,
        "layer_types": pattern_to(c.pattern, c.n_layers), "attention_bias": c.bias,
    }  # fmt: skip


def layer(i: int, bias: bool) -> list[Weight]:
    ours, theirs = f"blocks.{i}.branches.0", f"model.layers.{i}"
    return [
        one(f"{ours}.norm.weight", f"{theirs}.input_layernorm.weight"),
        *linears(f"{ours}.mixer.mixers.0", f"{theirs}.self_attn", ATTENTION, bias),
        *linears(f"{ours}.mixer.mixers.1", f"{theirs}.mlp", GATED),
    ]


def weights(c: CohereConfig) -> list[Weight]:
    return [*ends(c.tie, "norm.weight"), *(weight for i in range(c.n_layers) for weight in layer(i, c.bias))]


ARCHITECTURE = Architecture(
    name="cohere2",
    title="Cohere 2 (parallel branches, no positions in global layers)",
    source="Cohere team 2025, Command A; Yang et al. 2025, RoPE to NoPE and back again",
    config=CohereConfig,
    build=build,
    scaled=scaled,
    hf=HuggingFace("cohere2", "Cohere2ForCausalLM", read, write, weights),
)
