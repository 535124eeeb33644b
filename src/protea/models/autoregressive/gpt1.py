r"""GPT (Radford et al. 2018, "Improving language understanding by generative pre-training"), with norms after branches:

    x <- LN(x + MHA(x)),   x <- LN(x + W_d gelu(W_u x + b_u) + b_d),

learned positions, no last norm, the head tied to the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.gpt2 import layer
from protea.models.autoregressive.spelling import Facts, demand, fact, one
from protea.nn.attention import GQA
from protea.nn.block import Block
from protea.nn.branches import PostNorm
from protea.nn.mlp import MLP
from protea.nn.position import LearnedPositions
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class GPT1Config:
    """The usual names; the perceptron is four times as wide as the stream."""

    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    context: int = 512
    norm_eps: float = 1e-5
    tie: bool = True


def build(config: GPT1Config, inputs: int, outputs: int) -> Decoder:
    c = config

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(c.d_model, c.norm_eps)

    def block() -> Block:
        attention = GQA(c.d_model, c.n_heads, c.n_heads, bias=True, bias_out=True)
        return Block([PostNorm(attention, norm()), PostNorm(MLP(c.d_model, 4 * c.d_model), norm())])

    embed = TokenEmbedding(inputs, c.d_model, position=LearnedPositions(c.context, c.d_model))
    return init_decoder(Decoder(embed, [block() for _ in range(c.n_layers)], nn.Identity(), outputs, c.tie))


def scaled(n_layers: int, d_model: int, context: int) -> GPT1Config:
    return GPT1Config(n_layers, d_model, d_model // 32 or 2, context)


def read(config: Facts) -> GPT1Config:
    demand(config, afn="gelu")  # their name of the tanh form
    return GPT1Config(
        fact(config, "n_layer"), fact(config, "n_embd"), fact(config, "n_head"), fact(config, "n_positions", 512),
        fact(config, "layer_norm_epsilon", 1e-5), fact(config, "tie_word_embeddings", True),
    )  # fmt: skip


def write(c: GPT1Config, inputs: int) -> dict[str, Any]:
    return {
        "vocab_size": inputs, "n_positions": c.context, "n_embd": c.d_model, "n_layer": c.n_layers,
        "n_head": c.n_heads, "afn": "gelu", "layer_norm_epsilon": c.norm_eps, "tie_word_embeddings": c.tie,
    }  # fmt: skip


def weights(c: GPT1Config) -> list[Weight]:
    return [
        one("embed.weight", "transformer.tokens_embed.weight"),
        one("embed.position.weight", "transformer.positions_embed.weight"),
        *(weight for i in range(c.n_layers) for weight in layer(i, ("0.norm", "1.norm"))),
        *([] if c.tie else [one("head.weight", "lm_head.weight")]),
    ]


ARCHITECTURE = Architecture(
    name="gpt1",
    title="GPT (norms after branches)",
    source="Radford et al. 2018, Improving language understanding by generative pre-training",
    config=GPT1Config,
    build=build,
    scaled=scaled,
    hf=HuggingFace("openai-gpt", "OpenAIGPTLMHeadModel", read, write, weights),
)
