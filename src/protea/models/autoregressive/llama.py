r"""Llama: the decoder on which the field converged (Touvron et al. 2023; Llama team 2024, "Llama 3").

    x <- x + GQA(RMSNorm(x)),   x <- x + SwiGLU(RMSNorm(x)),

rotary positions (Llama 3: base 500,000, long waves interpolated), no biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.spelling import (
    ATTENTION,
    GATED,
    Facts,
    demand,
    ends,
    fact,
    linears,
    one,
    rope_of,
    rope_to,
)
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.mlp_gated import SwiGLU
from protea.nn.norm import RMSNorm
from protea.nn.rope import make_rope
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class LlamaConfig:
    """The usual names; `context` is the longest text, begin-of-text included; `rope_scaling` as in `nn/rope.py`."""

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


def build(config: LlamaConfig, inputs: int, outputs: int) -> Decoder:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config
    d_head = c.d_head or c.d_model // c.n_heads
    rope = make_rope(d_head, c.rope_theta, c.rope_scaling, c.context)

    def norm() -> RMSNorm:
        return RMSNorm(c.d_model, c.norm_eps)

    def block() -> Block:
        attention = GQA(c.d_model, c.n_heads, c.n_kv_heads, d_head=d_head, position=rope)
        return Block([Branch(norm(), attention), Branch(norm(), SwiGLU(c.d_model, c.d_ff))])

    blocks = [block() for _ in range(c.n_layers)]
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm(), outputs, c.tie))


def scaled(n_layers: int, d_model: int, context: int) -> LlamaConfig:
    """Heads of 32 where the width allows, two query heads to a key head, 8/3 d_model inside."""
    heads = d_model // 32 or 2
    return LlamaConfig(n_layers, d_model, heads, max(1, heads // 2), 16 * round(d_model / 6), context)


def read(config: Facts) -> LlamaConfig:
    demand(config, hidden_act="silu", attention_bias=False, mlp_bias=False)
    heads = fact(config, "num_attention_heads")
    theta, scaling = rope_of(config)
    return LlamaConfig(
        n_layers=fact(config, "num_hidden_layers"), d_model=fact(config, "hidden_size"), n_heads=heads,
        n_kv_heads=fact(config, "num_key_value_heads", heads), d_ff=fact(config, "intermediate_size"),
        context=fact(config, "max_position_embeddings", 2048), rope_theta=theta,
        norm_eps=fact(config, "rms_norm_eps", 1e-6), tie=fact(config, "tie_word_embeddings", False),
        d_head=fact(config, "head_dim", None), rope_scaling=scaling,
    )  # fmt: skip


def write(c: LlamaConfig, inputs: int) -> dict[str, Any]:
    return {
        "vocab_size": inputs, "hidden_size": c.d_model, "intermediate_size": c.d_ff, "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.d_head or c.d_model // c.n_heads, "hidden_act": "silu", "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tie, "attention_bias": False, "mlp_bias": False,
        **rope_to(c.rope_theta, c.rope_scaling),
    }  # fmt: skip


def layer(i: int, bias: bool = False) -> list[Weight]:
    """The tensors of block i of Llama and its kin; with biases of q, k and v where they are asked for."""
    ours, theirs = f"blocks.{i}.branches", f"model.layers.{i}"
    return [
        one(f"{ours}.0.norm.g", f"{theirs}.input_layernorm.weight"),
        one(f"{ours}.1.norm.g", f"{theirs}.post_attention_layernorm.weight"),
        *linears(f"{ours}.0.mixer", f"{theirs}.self_attn", ATTENTION),
        *(one(f"{ours}.0.mixer.{p}.bias", f"{theirs}.self_attn.{p}_proj.bias") for p in "qkv" if bias),
        *linears(f"{ours}.1.mixer", f"{theirs}.mlp", GATED),
    ]


def weights(c: LlamaConfig) -> list[Weight]:
    return [*ends(c.tie), *(weight for i in range(c.n_layers) for weight in layer(i))]


ARCHITECTURE = Architecture(
    name="llama",
    title="Llama (RMSNorm, RoPE, GQA, SwiGLU)",
    source="Touvron et al. 2023, LLaMA; Llama team 2024, The Llama 3 herd of models",
    config=LlamaConfig,
    build=build,
    scaled=scaled,
    hf=HuggingFace("llama", "LlamaForCausalLM", read, write, weights),
)
