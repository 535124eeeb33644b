"""Mixtral 8x7B (Jiang et al. 2024, "Mixtral of experts"): Mistral, with eight experts of which a token uses two.

x <- x + GQA(RMSNorm(x)),   x <- x + sum_{i in top-2} softmax(top-2 logits)_i SwiGLU_i(RMSNorm(x))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.llama import proportions
from protea.models.autoregressive.spelling import (
    ATTENTION,
    Facts,
    common,
    common_to,
    demand,
    ends,
    fact,
    linears,
    one,
)  # fmt: skip
from protea.models.autoregressive.spelling_moe import experts
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.moe import Experts, MoE
from protea.nn.norm import RMSNorm
from protea.nn.rope import make_rope
from protea.nn.router import LearnedRouter
from protea.nn.router_choices import TopK
from protea.nn.router_losses import SwitchBalance
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class MixtralConfig:
    """The usual names; `d_ff` is an expert's, `aux` weighs the load-balance loss of training."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 176
    n_experts: int = 8
    top_k: int = 2
    context: int = 256
    window: int | None = None
    aux: float = 0.02
    rope_theta: float = 1000000.0
    norm_eps: float = 1e-5
    tie: bool = False
    d_head: int | None = None
    rope_scaling: dict[str, Any] | None = None


def build(config: MixtralConfig, inputs: int, outputs: int) -> Decoder:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config
    d_head = c.d_head or c.d_model // c.n_heads
    rope = make_rope(d_head, c.rope_theta, c.rope_scaling, c.context)

    def norm() -> RMSNorm:
        return RMSNorm(c.d_model, c.norm_eps)

    def block() -> Block:
        attention = GQA(c.d_model, c.n_heads, c.n_kv_heads, d_head=d_head, position=rope, window=c.window)
        router = LearnedRouter(c.d_model, c.n_experts, TopK(c.top_k), [SwitchBalance(c.aux)])
        return Block([
            Branch(norm(), attention),
            Branch(norm(), MoE(router, Experts(c.n_experts, c.d_model, c.d_ff))),
        ])  # fmt: skip

    blocks = [block() for _ in range(c.n_layers)]
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm(), outputs, c.tie))


def scaled(n_layers: int, d_model: int, context: int) -> MixtralConfig:
    """Eight experts of half the width of a dense perceptron: two of them cost a token what that would."""
    values = proportions(n_layers, d_model, context)
    return MixtralConfig(**{**values, "d_ff": 8 * round(values["d_ff"] / 16)}, rope_theta=10000.0)


def read(config: Facts) -> MixtralConfig:
    demand(config, hidden_act="silu")
    return MixtralConfig(
        **common(config, 1000000.0, 1e-5), n_experts=fact(config, "num_local_experts", 8),
        top_k=fact(config, "num_experts_per_tok", 2), window=fact(config, "sliding_window", None),
        aux=fact(config, "router_aux_loss_coef", 0.001),
    )  # fmt: skip


def write(c: MixtralConfig, inputs: int) -> dict[str, Any]:
    return {
        **common_to(c, inputs), "num_local_experts": c.n_experts, "num_experts_per_tok": c.top_k,
        "sliding_window": c.window, "router_aux_loss_coef": c.aux,
    }  # fmt: skip


def weights(c: MixtralConfig) -> list[Weight]:
    found = ends(c.tie)
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}.branches", f"model.layers.{i}"
        found += [
            one(f"{ours}.0.norm.g", f"{theirs}.input_layernorm.weight"),
            one(f"{ours}.1.norm.g", f"{theirs}.post_attention_layernorm.weight"),
            *linears(f"{ours}.0.mixer", f"{theirs}.self_attn", ATTENTION),
            one(f"{ours}.1.mixer.router.weight", f"{theirs}.block_sparse_moe.gate.weight"),
            experts(f"{ours}.1.mixer.experts", f"{theirs}.block_sparse_moe.experts", c.n_experts, ("w1", "w3", "w2")),
        ]
    return found


ARCHITECTURE = Architecture(
    name="mixtral",
    title="Mixtral (Mistral with sparse experts)",
    source="Jiang et al. 2024, Mixtral of experts",
    config=MixtralConfig,
    build=build,
    scaled=scaled,
    hf=HuggingFace("mixtral", "MixtralForCausalLM", read, write, weights),
)
