r"""Llama: the decoder on which the field converged (Touvron et al. 2023; Llama team 2024, "Llama 3").

    x <- x + GQA(RMSNorm(x)),   x <- x + SwiGLU(RMSNorm(x)),

rotary positions (Llama 3: base 500,000, long waves interpolated), no biases.
"""

from __future__ import annotations

from collections.abc import Callable
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
)  # fmt: skip
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.mlp_gated import SwiGLU
from protea.nn.norm import RMSNorm
from protea.nn.rope import make_rope
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class LlamaConfig:
    """The usual names; `context` is the longest text, begin-of-text included; `rope_scaling` as in `nn/rope.py`.

    `bias`: whether the projections of attention have one.
    """

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 4
    d_ff: int = 352
    context: int = 256
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie: bool = False
    d_head: int | None = None
    rope_scaling: dict[str, Any] | None = None
    bias: bool = False


def build(config: LlamaConfig, inputs: int, outputs: int) -> Decoder:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config
    d_head = c.d_head or c.d_model // c.n_heads
    rope = make_rope(d_head, c.rope_theta, c.rope_scaling, c.context)

    def attention(i: int) -> GQA:
        return GQA(c.d_model, c.n_heads, c.n_kv_heads, d_head=d_head, position=rope, bias=c.bias, bias_out=c.bias)

    return stack(c, attention, inputs, outputs)


def stack(c: Any, attention: Callable[[int], nn.Module], inputs: int, outputs: int) -> Decoder:
    """What Llama's kin share: blocks of attention(i) and SwiGLU, each after an RMSNorm."""

    def norm() -> RMSNorm:
        return RMSNorm(c.d_model, c.norm_eps)

    def block(i: int) -> Block:
        return Block([Branch(norm(), attention(i)), Branch(norm(), SwiGLU(c.d_model, c.d_ff))])

    blocks = [block(i) for i in range(c.n_layers)]
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm(), outputs, c.tie))


def proportions(n_layers: int, d_model: int, context: int) -> dict[str, Any]:
    """Heads of 32 where the width allows, two query heads to a key head, 8/3 d_model inside."""
    heads = d_model // 32 or 2
    return {
        "n_layers": n_layers, "d_model": d_model, "n_heads": heads, "n_kv_heads": max(1, heads // 2),
        "d_ff": 16 * round(d_model / 6), "context": context,
    }  # fmt: skip


def scaled(n_layers: int, d_model: int, context: int) -> LlamaConfig:
    return LlamaConfig(**proportions(n_layers, d_model, context))


def read(config: Facts) -> LlamaConfig:
    demand(config, hidden_act="silu", mlp_bias=False)
    return LlamaConfig(**common(config), bias=fact(config, "attention_bias", False))


def write(c: LlamaConfig, inputs: int) -> dict[str, Any]:
    return {**common_to(c, inputs), "attention_bias": c.bias, "mlp_bias": False}


def layer(i: int, biased: str = "") -> list[Weight]:
    """The tensors of block i of Llama and its kin; `biased` are those of q, k, v, o that have a bias."""
    ours, theirs = f"blocks.{i}.branches", f"model.layers.{i}"
    return [
        one(f"{ours}.0.norm.g", f"{theirs}.input_layernorm.weight"),
        one(f"{ours}.1.norm.g", f"{theirs}.post_attention_layernorm.weight"),
        *linears(f"{ours}.0.mixer", f"{theirs}.self_attn", ATTENTION),
        *(one(f"{ours}.0.mixer.{p}.bias", f"{theirs}.self_attn.{p}_proj.bias") for p in biased),
        *linears(f"{ours}.1.mixer", f"{theirs}.mlp", GATED),
    ]


def weights(c: Any, biased: str = "") -> list[Weight]:
    return [*ends(c.tie), *(weight for i in range(c.n_layers) for weight in layer(i, biased))]


def _weights(c: LlamaConfig) -> list[Weight]:
    return weights(c, "qkvo" if c.bias else "")


ARCHITECTURE = Architecture(
    name="llama",
    title="Llama (RMSNorm, RoPE, GQA, SwiGLU)",
    source="Touvron et al. 2023, LLaMA; Llama team 2024, The Llama 3 herd of models",
    config=LlamaConfig,
    build=build,
    scaled=scaled,
    hf=HuggingFace("llama", "LlamaForCausalLM", read, write, _weights),
)
