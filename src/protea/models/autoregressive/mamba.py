r"""Mamba: selective state spaces in place of attention and perceptron (Gu & Dao 2023).

    x <- x + Mamba(RMSNorm(x))

A text of any length is remembered in a state of one size, and read in time proportional to its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.spelling import Facts, demand, fact, one
from protea.nn.block import Block, Branch
from protea.nn.mamba import Mamba
from protea.nn.norm import RMSNorm
from protea.nn.tokens import TokenEmbedding

ANY_LENGTH = 1 << 20  # the context of a folder that does not say one


@dataclass(frozen=True)
class MambaConfig:
    """The usual names; `context` is the longest text, begin-of-text included (the network itself sets no limit)."""

    n_layers: int = 4
    d_model: int = 128
    expand: int = 2
    d_state: int = 16
    d_conv: int = 4
    dt_rank: int = 8
    context: int = 256
    norm_eps: float = 1e-5
    tie: bool = True
    bias: bool = False
    conv_bias: bool = True


def build(config: MambaConfig, inputs: int, outputs: int) -> Decoder:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config

    def block() -> Block:
        mixer = Mamba(
            c.d_model, c.expand * c.d_model, c.d_state, c.d_conv, c.dt_rank, bias=c.bias, conv_bias=c.conv_bias
        )
        return Block([Branch(RMSNorm(c.d_model, c.norm_eps), mixer)])

    blocks = [block() for _ in range(c.n_layers)]
    norm = RMSNorm(c.d_model, c.norm_eps)
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm, outputs, c.tie))


def scaled(n_layers: int, d_model: int, context: int) -> MambaConfig:
    """Two Mamba layers weigh what attention and perceptron do (Gu & Dao 2023, section 3.4)."""
    return MambaConfig(2 * n_layers, d_model, dt_rank=-(-d_model // 16), context=context)


def read(config: Facts) -> MambaConfig:
    demand(config, hidden_act="silu")
    d_model, rank = fact(config, "hidden_size"), fact(config, "time_step_rank", "auto")
    return MambaConfig(
        n_layers=fact(config, "num_hidden_layers"), d_model=d_model, expand=fact(config, "expand", 2),
        d_state=fact(config, "state_size", 16), d_conv=fact(config, "conv_kernel", 4),
        dt_rank=-(-d_model // 16) if rank == "auto" else rank,
        context=fact(config, "max_position_embeddings", ANY_LENGTH), norm_eps=fact(config, "layer_norm_epsilon", 1e-5),
        tie=fact(config, "tie_word_embeddings", True), bias=fact(config, "use_bias", False),
        conv_bias=fact(config, "use_conv_bias", True),
    )  # fmt: skip


def write(c: MambaConfig, inputs: int) -> dict[str, Any]:
    return {
        "vocab_size": inputs, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "expand": c.expand,
        "intermediate_size": c.expand * c.d_model, "state_size": c.d_state, "conv_kernel": c.d_conv,
        "time_step_rank": c.dt_rank, "layer_norm_epsilon": c.norm_eps, "tie_word_embeddings": c.tie,
        "use_bias": c.bias, "use_conv_bias": c.conv_bias, "hidden_act": "silu", "max_position_embeddings": c.context,
    }  # fmt: skip


def filters(ours: str, theirs: str) -> Weight:
    """A depthwise convolution's taps, (C, K) here and (C, 1, K) there."""

    def load(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].squeeze(1)]

    def save(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].unsqueeze(1)]

    return Weight((ours,), (theirs,), load, save)


def mixer(ours: str, theirs: str, bias: bool, conv_bias: bool) -> list[Weight]:
    """The tensors of a Mamba layer."""
    pairs = {"inp": "in_proj", "o": "out_proj"}
    return [
        *(one(f"{ours}.{a}.weight", f"{theirs}.{b}.weight") for a, b in pairs.items()),
        *(one(f"{ours}.{a}.bias", f"{theirs}.{b}.bias") for a, b in pairs.items() if bias),
        filters(f"{ours}.conv.weight", f"{theirs}.conv1d.weight"),
        *([one(f"{ours}.conv.bias", f"{theirs}.conv1d.bias")] if conv_bias else []),
        one(f"{ours}.select.weight", f"{theirs}.x_proj.weight"),
        one(f"{ours}.delta.weight", f"{theirs}.dt_proj.weight"),
        one(f"{ours}.delta.bias", f"{theirs}.dt_proj.bias"),
        one(f"{ours}.A_log", f"{theirs}.A_log"),
        one(f"{ours}.D", f"{theirs}.D"),
    ]


def ends(tie: bool) -> list[Weight]:
    """Embedding, last norm and, where it is not tied, the head."""
    both = [one("embed.weight", "backbone.embeddings.weight"), one("norm.g", "backbone.norm_f.weight")]
    return both if tie else [*both, one("head.weight", "lm_head.weight")]


def weights(c: MambaConfig) -> list[Weight]:
    out = ends(c.tie)
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}.branches.0", f"backbone.layers.{i}"
        out.append(one(f"{ours}.norm.g", f"{theirs}.norm.weight"))
        out += mixer(f"{ours}.mixer", f"{theirs}.mixer", c.bias, c.conv_bias)
    return out


ARCHITECTURE = Architecture(
    name="mamba",
    title="Mamba (selective state space)",
    source="Gu & Dao 2023, Mamba: linear-time sequence modeling with selective state spaces",
    config=MambaConfig,
    build=build,
    scaled=scaled,
    hf=HuggingFace("mamba", "MambaForCausalLM", read, write, weights),
)
