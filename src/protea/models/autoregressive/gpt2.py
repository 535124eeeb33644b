r"""GPT-2 (Radford et al. 2019) and GPT-3 (Brown et al. 2020): learned positions, LayerNorm before each branch, GELU.

    x <- x + MHA(LN(x)),   x <- x + W_d gelu(W_u LN(x) + b_u) + b_d,

biases everywhere, the head tied to the embedding. GPT-3 is the same, its layers "alternating dense and locally banded
sparse attention patterns" (Child et al. 2019): in a banded layer a token sees the `window` last ones. OpenAI has not
published the width of the band; 256 here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.spelling import Facts, demand, fact, one, stacked, transposed, window_of
from protea.nn.activations import gelu_tanh
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.mlp import MLP
from protea.nn.position import LearnedPositions
from protea.nn.tokens import TokenEmbedding

ACTIVATIONS = {
    "gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh, "gelu": nn.functional.gelu, "relu": nn.functional.relu,
    "silu": nn.functional.silu,
}  # fmt: skip


@dataclass(frozen=True)
class GPT2Config:
    """The usual names; `pattern` repeats over the layers, "sliding" ones of them see `window` tokens.

    `by_layer`: the scores of layer i are divided by i + 1 too (Karamcheti et al. 2021, "Mistral"), which keeps float16
    in range.
    """

    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    d_ff: int = 3072
    context: int = 1024
    norm_eps: float = 1e-5
    tie: bool = True
    window: int | None = None
    pattern: tuple[str, ...] = ("full",)
    activation: str = "gelu_new"
    by_layer: bool = False


GPT3 = GPT2Config(96, 12288, 96, 4 * 12288, 2048, window=256, pattern=("full", "sliding"))  # 175B


def build(config: GPT2Config, inputs: int, outputs: int) -> Decoder:
    c = config

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(c.d_model, c.norm_eps)

    def block(i: int) -> Block:
        window = window_of(i, c.pattern, c.window)
        scale = 1 / (math.sqrt(c.d_model // c.n_heads) * (i + 1)) if c.by_layer else None
        attention = GQA(c.d_model, c.n_heads, c.n_heads, bias=True, bias_out=True, window=window, scale=scale)
        return Block([Branch(norm(), attention), Branch(norm(), MLP(c.d_model, c.d_ff, ACTIVATIONS[c.activation]))])

    embed = TokenEmbedding(inputs, c.d_model, position=LearnedPositions(c.context, c.d_model))
    return init_decoder(Decoder(embed, [block(i) for i in range(c.n_layers)], norm(), outputs, c.tie))


def scaled(n_layers: int, d_model: int, context: int) -> GPT2Config:
    return GPT2Config(n_layers, d_model, d_model // 32 or 2, 4 * d_model, context)


def scaled_3(n_layers: int, d_model: int, context: int) -> GPT2Config:
    band = max(2, context // 4)
    return GPT2Config(
        n_layers, d_model, d_model // 32 or 2, 4 * d_model, context, window=band, pattern=("full", "sliding")
    )


def read(config: Facts) -> GPT2Config:
    demand(
        config, activation_function=tuple(ACTIVATIONS), scale_attn_weights=True, add_cross_attention=False,
    )  # fmt: skip
    width = fact(config, "n_embd")
    return GPT2Config(
        fact(config, "n_layer"), width, fact(config, "n_head"), fact(config, "n_inner", 4 * width),
        fact(config, "n_positions", 1024), fact(config, "layer_norm_epsilon", 1e-5),
        fact(config, "tie_word_embeddings", True), activation=fact(config, "activation_function", "gelu_new"),
        by_layer=fact(config, "scale_attn_by_inverse_layer_idx", False),
    )  # fmt: skip


def write(c: GPT2Config, inputs: int) -> dict[str, Any]:
    return {
        "vocab_size": inputs, "n_positions": c.context, "n_embd": c.d_model, "n_layer": c.n_layers,
        "n_head": c.n_heads, "n_inner": c.d_ff, "activation_function": c.activation, "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tie, "scale_attn_by_inverse_layer_idx": c.by_layer,
    }  # fmt: skip


def layer(i: int, norms: tuple[str, str]) -> list[Weight]:
    """The tensors of block i of OpenAI's models; `norms` are our names of the two LayerNorms."""
    ours, theirs = f"blocks.{i}.branches", f"transformer.h.{i}"
    qkv = tuple(f"{ours}.0.mixer.{p}" for p in "qkv")
    pairs = [(f"{ours}.0.mixer.o", "attn.c_proj"), (f"{ours}.1.mixer.up", "mlp.c_fc")]
    pairs.append((f"{ours}.1.mixer.down", "mlp.c_proj"))
    return [
        stacked(tuple(f"{p}.weight" for p in qkv), f"{theirs}.attn.c_attn.weight", dim=1, turn=True),
        stacked(tuple(f"{p}.bias" for p in qkv), f"{theirs}.attn.c_attn.bias"),
        *(transposed(f"{a}.weight", f"{theirs}.{b}.weight") for a, b in pairs),
        *(one(f"{a}.bias", f"{theirs}.{b}.bias") for a, b in pairs),
        *(
            one(f"{ours}.{norms[n]}.{kind}", f"{theirs}.ln_{n + 1}.{kind}")
            for n in (0, 1)
            for kind in ("weight", "bias")
        ),
    ]


def weights(c: GPT2Config) -> list[Weight]:
    return [
        one("embed.weight", "transformer.wte.weight"),
        one("embed.position.weight", "transformer.wpe.weight"),
        *(weight for i in range(c.n_layers) for weight in layer(i, ("0.norm", "1.norm"))),
        *(one(f"norm.{kind}", f"transformer.ln_f.{kind}") for kind in ("weight", "bias")),
        *([] if c.tie else [one("head.weight", "lm_head.weight")]),
    ]


GPT2_ARCHITECTURE = Architecture(
    name="gpt2",
    title="GPT-2 (learned positions, LayerNorm, GELU)",
    source="Radford et al. 2019, Language models are unsupervised multitask learners",
    config=GPT2Config,
    build=build,
    scaled=scaled,
    hf=HuggingFace("gpt2", "GPT2LMHeadModel", read, write, weights),
)
GPT3_ARCHITECTURE = Architecture(
    name="gpt3",
    title="GPT-3 (GPT-2, every second layer banded)",
    source="Brown et al. 2020, Language models are few-shot learners",
    config=GPT2Config,
    build=build,
    scaled=scaled_3,
)
