r"""MPT (MosaicML 2023): no position is added or turned; scores fall with the distance (ALiBi, Press et al. 2022).

    softmax(q k^T / sqrt(d) - m_h (t - s)) v,    x <- x + MHA(LN(x)),   x <- x + W_d gelu(W_u LN(x)),

LayerNorm without bias, no biases, the head tied. The penalty means the same at any length, so that texts may be longer
than those of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.spelling import Facts, demand, fact, linears, one, stacked
from protea.nn.attention import GQA, ALiBi, alibi_slopes
from protea.nn.block import Block, Branch
from protea.nn.mlp import MLP
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class MPTConfig:
    """The usual names; the perceptron is four times as wide as the stream."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    context: int = 256
    norm_eps: float = 1e-5
    tie: bool = True


def build(config: MPTConfig, inputs: int, outputs: int) -> Decoder:
    c = config
    kernel = ALiBi(alibi_slopes(c.n_heads))

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(c.d_model, c.norm_eps, bias=False)

    def block() -> Block:
        attention = GQA(c.d_model, c.n_heads, c.n_heads, kernel=kernel)
        mlp = MLP(c.d_model, 4 * c.d_model, nn.functional.gelu, bias=False)
        return Block([Branch(norm(), attention), Branch(norm(), mlp)])

    blocks = [block() for _ in range(c.n_layers)]
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm(), outputs, c.tie))


def scaled(n_layers: int, d_model: int, context: int) -> MPTConfig:
    return MPTConfig(n_layers, d_model, d_model // 32 or 2, context)


def read(config: Facts) -> MPTConfig:
    demand(config, expansion_ratio=4, no_bias=True)
    inner = config.get("attn_config")
    demand(
        inner if isinstance(inner, Mapping) else {}, attn_type="multihead_attention", alibi=True, alibi_bias_max=8,
        qk_ln=False, prefix_lm=False, clip_qkv=0, softmax_scale=(),
    )  # fmt: skip
    return MPTConfig(
        fact(config, "n_layers"), fact(config, "d_model"), fact(config, "n_heads"), fact(config, "max_seq_len", 2048),
        fact(config, "layer_norm_epsilon", 1e-5), fact(config, "tie_word_embeddings", True),
    )  # fmt: skip


def write(c: MPTConfig, inputs: int) -> dict[str, Any]:
    return {
        "vocab_size": inputs, "d_model": c.d_model, "n_heads": c.n_heads, "n_layers": c.n_layers,
        "expansion_ratio": 4, "max_seq_len": c.context, "layer_norm_epsilon": c.norm_eps, "no_bias": True,
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention"},
        "tie_word_embeddings": c.tie,
    }  # fmt: skip


def layer(i: int) -> list[Weight]:
    ours, theirs = f"blocks.{i}.branches", f"transformer.blocks.{i}"
    return [
        one(f"{ours}.0.norm.weight", f"{theirs}.norm_1.weight"),
        one(f"{ours}.1.norm.weight", f"{theirs}.norm_2.weight"),
        stacked(tuple(f"{ours}.0.mixer.{p}.weight" for p in "qkv"), f"{theirs}.attn.Wqkv.weight"),
        one(f"{ours}.0.mixer.o.weight", f"{theirs}.attn.out_proj.weight"),
        *linears(f"{ours}.1.mixer", f"{theirs}.ffn", {"up": "up_proj", "down": "down_proj"}),
    ]


def weights(c: MPTConfig) -> list[Weight]:
    both = [one("embed.weight", "transformer.wte.weight"), one("norm.weight", "transformer.norm_f.weight")]
    head = [] if c.tie else [one("head.weight", "lm_head.weight")]
    return [*both, *head, *(weight for i in range(c.n_layers) for weight in layer(i))]


ARCHITECTURE = Architecture(
    name="mpt",
    title="MPT (ALiBi: scores fall with the distance)",
    source="Press et al. 2022, Train short, test long; MosaicML 2023, MPT-7B",
    config=MPTConfig,
    build=build,
    scaled=scaled,
    hf=HuggingFace("mpt", "MptForCausalLM", read, write, weights),
)
