r"""Mamba-2: state spaces of one decay a head, computed as matrix products (Dao & Gu 2024).

x <- x + Mamba2(RMSNorm(x))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protea.errors import DataError
from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.mamba import ANY_LENGTH, ends, filters
from protea.models.autoregressive.spelling import Facts, demand, fact, one
from protea.nn.block import Block, Branch
from protea.nn.mamba2 import Mamba2
from protea.nn.norm import RMSNorm
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class Mamba2Config:
    """The usual names; heads of width `d_head` share the B and C of their group; `context` is the longest text."""

    n_layers: int = 4
    d_model: int = 128
    expand: int = 2
    d_head: int = 32
    d_state: int = 64
    n_groups: int = 1
    d_conv: int = 4
    context: int = 256
    norm_eps: float = 1e-5
    tie: bool = False
    bias: bool = False
    conv_bias: bool = True


def build(config: Mamba2Config, inputs: int, outputs: int) -> Decoder:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config

    def block() -> Block:
        mixer = Mamba2(
            c.d_model, c.expand * c.d_model // c.d_head, c.d_head, c.d_state, c.n_groups, c.d_conv, bias=c.bias,
            conv_bias=c.conv_bias, norm_eps=c.norm_eps,
        )  # fmt: skip
        return Block([Branch(RMSNorm(c.d_model, c.norm_eps), mixer)])

    blocks = [block() for _ in range(c.n_layers)]
    norm = RMSNorm(c.d_model, c.norm_eps)
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm, outputs, c.tie))


def scaled(n_layers: int, d_model: int, context: int) -> Mamba2Config:
    """Two Mamba-2 layers weigh what attention and perceptron do."""
    return Mamba2Config(2 * n_layers, d_model, d_head=min(32, d_model), context=context)


def read(config: Facts) -> Mamba2Config:
    demand(config, hidden_act="silu")
    d_model, d_head = fact(config, "hidden_size"), fact(config, "head_dim", 64)
    expand, heads = fact(config, "expand", 2), fact(config, "num_heads")
    if expand * d_model != heads * d_head:
        raise DataError(
            f"config.json has {heads} heads of {d_head} for a width of {expand * d_model}.", "Is it copied whole?"
        )
    limit = [
        float(x["__float__"] if isinstance(x, dict) else x)  # how they write an infinity in JSON
        for x in fact(config, "time_step_limit", (0.0, float("inf")))
    ]
    if limit != [0.0, float("inf")]:
        raise DataError(
            f"config.json limits the step size to {limit}, which Mamba-2's own decoding does not apply.",
            "Train without a limit, or take it out if it never binds.",
        )
    return Mamba2Config(
        n_layers=fact(config, "num_hidden_layers"), d_model=d_model, expand=expand, d_head=d_head,
        d_state=fact(config, "state_size", 128), n_groups=fact(config, "n_groups", 8),
        d_conv=fact(config, "conv_kernel", 4), context=fact(config, "max_position_embeddings", ANY_LENGTH),
        norm_eps=fact(config, "layer_norm_epsilon", 1e-5), tie=fact(config, "tie_word_embeddings", False),
        bias=fact(config, "use_bias", False), conv_bias=fact(config, "use_conv_bias", True),
    )  # fmt: skip


def write(c: Mamba2Config, inputs: int) -> dict[str, Any]:
    return {
        "vocab_size": inputs, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "expand": c.expand,
        "num_heads": c.expand * c.d_model // c.d_head, "head_dim": c.d_head, "state_size": c.d_state,
        "n_groups": c.n_groups, "conv_kernel": c.d_conv, "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tie, "use_bias": c.bias, "use_conv_bias": c.conv_bias, "hidden_act": "silu",
        "max_position_embeddings": c.context,
    }  # fmt: skip


def weights(c: Mamba2Config) -> list[Weight]:
    out = ends(c.tie)
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}.branches.0", f"backbone.layers.{i}"
        out.append(one(f"{ours}.norm.g", f"{theirs}.norm.weight"))
        ours, theirs = f"{ours}.mixer", f"{theirs}.mixer"
        pairs = {"inp": "in_proj", "o": "out_proj"}
        out += [one(f"{ours}.{a}.weight", f"{theirs}.{b}.weight") for a, b in pairs.items()]
        out += [one(f"{ours}.{a}.bias", f"{theirs}.{b}.bias") for a, b in pairs.items() if c.bias]
        out.append(filters(f"{ours}.conv.weight", f"{theirs}.conv1d.weight"))
        out += [one(f"{ours}.conv.bias", f"{theirs}.conv1d.bias")] if c.conv_bias else []
        out += [one(f"{ours}.{name}", f"{theirs}.{name}") for name in ("dt_bias", "A_log", "D")]
        out.append(one(f"{ours}.norm.g", f"{theirs}.norm.weight"))
    return out


ARCHITECTURE = Architecture(
    name="mamba2",
    title="Mamba-2 (state space duality)",
    source="Dao & Gu 2024, Transformers are SSMs: generalized models and efficient algorithms",
    config=Mamba2Config,
    build=build,
    scaled=scaled,
    hf=HuggingFace("mamba2", "Mamba2ForCausalLM", read, write, weights),
)
