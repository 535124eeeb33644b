r"""Jamba: one attention layer in k, Mamba in the others, a mixture of experts every n-th (Lieber et al. 2024).

    x <- x + (GQA or Mamba)(RMSNorm(x)),   x <- x + (SwiGLU or MoE)(RMSNorm(x)).

Attention has no positions: the state spaces know the order. The memory that grows with the text is 1 / k of a
transformer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.mamba import mixer
from protea.models.autoregressive.spelling import ATTENTION, GATED, Facts, demand, fact, linears, one
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.mamba import Mamba
from protea.nn.mlp_gated import SwiGLU
from protea.nn.moe import Experts, MoE
from protea.nn.norm import RMSNorm
from protea.nn.router import LearnedRouter
from protea.nn.router_choices import TopK
from protea.nn.router_losses import SwitchBalance
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class Every:
    """Layers offset, offset + period, offset + 2 period ...

    >>> [i in Every(4, 1) for i in range(6)]
    [False, True, False, False, False, True]
    """

    period: int
    offset: int

    def __contains__(self, i: int) -> bool:
        return i % self.period == self.offset


@dataclass(frozen=True)
class JambaConfig:
    """The usual names. `attention` and `experts` are (period, offset) of the layers that have them."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 352
    d_state: int = 16
    dt_rank: int = 8
    attention: tuple[int, int] = (4, 2)
    experts: tuple[int, int] = (2, 1)
    n_experts: int = 4
    n_active: int = 2
    context: int = 256
    norm_eps: float = 1e-6
    expand: int = 2
    d_conv: int = 4
    tie: bool = False


def build(config: JambaConfig, inputs: int, outputs: int) -> Decoder:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config
    attention, experts = Every(*c.attention), Every(*c.experts)

    def norm() -> RMSNorm:
        return RMSNorm(c.d_model, c.norm_eps)

    def block(i: int) -> Block:
        first: nn.Module
        if i in attention:
            first = GQA(c.d_model, c.n_heads, c.n_kv_heads)
        else:
            first = Mamba(c.d_model, c.expand * c.d_model, c.d_state, c.d_conv, c.dt_rank, norm_eps=c.norm_eps)
        second: nn.Module = SwiGLU(c.d_model, c.d_ff)
        if c.n_experts > 1 and i in experts:
            choice = TopK(c.n_active, normalise=False)
            router = LearnedRouter(c.d_model, c.n_experts, choice, losses=(SwitchBalance(),))
            second = MoE(router, Experts(c.n_experts, c.d_model, c.d_ff))
        return Block([Branch(norm(), first), Branch(norm(), second)])

    blocks = [block(i) for i in range(c.n_layers)]
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm(), outputs, c.tie))


def scaled(n_layers: int, d_model: int, context: int) -> JambaConfig:
    """One attention layer in four at most, dense perceptrons."""
    heads, period = d_model // 32 or 2, min(4, n_layers)
    return JambaConfig(
        n_layers, d_model, heads, max(1, heads // 2), 16 * round(d_model / 6), dt_rank=-(-d_model // 16),
        attention=(period, period // 2), n_experts=1, context=context,
    )  # fmt: skip


def read(config: Facts) -> JambaConfig:
    demand(config, hidden_act="silu", mamba_conv_bias=True, mamba_proj_bias=False)
    d_model, heads = fact(config, "hidden_size"), fact(config, "num_attention_heads")
    rank = fact(config, "mamba_dt_rank", "auto")
    return JambaConfig(
        n_layers=fact(config, "num_hidden_layers"), d_model=d_model, n_heads=heads,
        n_kv_heads=fact(config, "num_key_value_heads", heads), d_ff=fact(config, "intermediate_size"),
        d_state=fact(config, "mamba_d_state", 16), dt_rank=-(-d_model // 16) if rank == "auto" else rank,
        attention=(fact(config, "attn_layer_period", 8), fact(config, "attn_layer_offset", 4)),
        experts=(fact(config, "expert_layer_period", 2), fact(config, "expert_layer_offset", 1)),
        n_experts=fact(config, "num_experts", 16), n_active=fact(config, "num_experts_per_tok", 2),
        context=fact(config, "max_position_embeddings", 262144), norm_eps=fact(config, "rms_norm_eps", 1e-6),
        expand=fact(config, "mamba_expand", 2), d_conv=fact(config, "mamba_d_conv", 4),
        tie=fact(config, "tie_word_embeddings", False),
    )  # fmt: skip


def write(c: JambaConfig, inputs: int) -> dict[str, Any]:
    return {
        "vocab_size": inputs, "hidden_size": c.d_model, "intermediate_size": c.d_ff, "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "mamba_d_state": c.d_state,
        "mamba_dt_rank": c.dt_rank, "mamba_expand": c.expand, "mamba_d_conv": c.d_conv,
        "mamba_conv_bias": True, "mamba_proj_bias": False, "attn_layer_period": c.attention[0],
        "attn_layer_offset": c.attention[1], "expert_layer_period": c.experts[0], "expert_layer_offset": c.experts[1],
        "num_experts": c.n_experts, "num_experts_per_tok": c.n_active, "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps, "hidden_act": "silu", "tie_word_embeddings": c.tie,
    }  # fmt: skip


def experts_of(ours: str, theirs: str, n: int) -> Weight:
    """All experts of a layer: two stacks of matrices here, three matrices an expert there."""
    names = tuple(f"{theirs}.experts.{e}.{p}_proj.weight" for e in range(n) for p in ("gate", "up", "down"))

    def load(tensors: list[Tensor]) -> list[Tensor]:
        gates, ups, downs = tensors[0::3], tensors[1::3], tensors[2::3]
        both = [torch.cat(pair) for pair in zip(gates, ups, strict=True)]
        return [torch.stack(both), torch.stack(downs)]

    def save(tensors: list[Tensor]) -> list[Tensor]:
        return [m.contiguous() for both, down in zip(*tensors, strict=True) for m in (*both.chunk(2), down)]

    return Weight((f"{ours}.experts.gate_up", f"{ours}.experts.down"), names, load, save)


def weights(c: JambaConfig) -> list[Weight]:
    out = [one("embed.weight", "model.embed_tokens.weight"), one("norm.g", "model.final_layernorm.weight")]
    if not c.tie:
        out.append(one("head.weight", "lm_head.weight"))
    attention, experts = Every(*c.attention), Every(*c.experts)
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}.branches", f"model.layers.{i}"
        out.append(one(f"{ours}.0.norm.g", f"{theirs}.input_layernorm.weight"))
        out.append(one(f"{ours}.1.norm.g", f"{theirs}.pre_ff_layernorm.weight"))
        if i in attention:
            out += linears(f"{ours}.0.mixer", f"{theirs}.self_attn", ATTENTION)
        else:
            out += mixer(f"{ours}.0.mixer", f"{theirs}.mamba", bias=False, conv_bias=True)
            norms = ("dt_layernorm", "b_layernorm", "c_layernorm")
            out += [one(f"{ours}.0.mixer.norms.{j}.g", f"{theirs}.mamba.{n}.weight") for j, n in enumerate(norms)]
        ours, theirs = f"{ours}.1.mixer", f"{theirs}.feed_forward"
        if c.n_experts > 1 and i in experts:
            out.append(one(f"{ours}.router.weight", f"{theirs}.router.weight"))
            out.append(experts_of(ours, theirs, c.n_experts))
        else:
            out += linears(ours, theirs, GATED)
    return out


ARCHITECTURE = Architecture(
    name="jamba",
    title="Jamba (Mamba with attention every k-th layer, experts)",
    source="Lieber et al. 2024, Jamba: a hybrid transformer-Mamba language model",
    config=JambaConfig,
    build=build,
    scaled=scaled,
    hf=HuggingFace("jamba", "JambaForCausalLM", read, write, weights),
)
