"""Qwen2-MoE and Qwen3-MoE (Yang et al. 2024, 2025): Qwen's attention, and many small experts.

Qwen 2's experts stand beside a shared one behind a gate of its own,

    y = sigmoid(w u) shared(u) + sum_i g_i expert_i(u);

Qwen 3 has no shared expert and normalises the weights g of those chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.llama import proportions
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
from protea.models.autoregressive.spelling_moe import experts
from protea.nn.attention import GQA, QKNorm
from protea.nn.block import Block, Branch
from protea.nn.mlp_gated import SwiGLU
from protea.nn.moe import Experts, GatedShared, MoE
from protea.nn.norm import RMSNorm
from protea.nn.rope import make_rope
from protea.nn.router import LearnedRouter
from protea.nn.router_choices import TopK
from protea.nn.router_losses import SwitchBalance
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class QwenMoEConfig:
    """The usual names; `dense` lists the layers with a plain perceptron of `d_ff`, experts are `d_expert` wide, the
    shared one `d_shared` (Qwen 2 alone); `normalise` is of the weights, `aux` weighs the load-balance loss."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 352
    n_experts: int = 16
    top_k: int = 4
    d_expert: int = 64
    d_shared: int = 96
    context: int = 256
    dense: tuple[int, ...] = ()
    normalise: bool = True
    aux: float = 0.001
    rope_theta: float = 1000000.0
    norm_eps: float = 1e-6
    tie: bool = False
    d_head: int | None = None
    rope_scaling: dict[str, Any] | None = None


def _build(c: QwenMoEConfig, inputs: int, outputs: int, third: bool) -> Decoder:
    d_head = c.d_head or c.d_model // c.n_heads
    rope = make_rope(d_head, c.rope_theta, c.rope_scaling, c.context)

    def norm(d: int = c.d_model) -> RMSNorm:
        return RMSNorm(d, c.norm_eps)

    def block(i: int) -> Block:
        attention = GQA(
            c.d_model, c.n_heads, c.n_kv_heads, d_head=d_head, position=rope, bias=not third,
            qk_norm=QKNorm(norm(d_head), norm(d_head)) if third else None,
        )  # fmt: skip
        mlp: nn.Module = SwiGLU(c.d_model, c.d_ff)
        if i not in c.dense:
            choice = TopK(c.top_k, normalise=c.normalise)
            router = LearnedRouter(c.d_model, c.n_experts, choice, [SwitchBalance(c.aux)])
            shared = None if third else GatedShared(c.d_model, SwiGLU(c.d_model, c.d_shared))
            mlp = MoE(router, Experts(c.n_experts, c.d_model, c.d_expert), shared)
        return Block([Branch(norm(), attention), Branch(norm(), mlp)])

    blocks = [block(i) for i in range(c.n_layers)]
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm(), outputs, c.tie))


def build_2(config: QwenMoEConfig, inputs: int, outputs: int) -> Decoder:
    """Qwen2-MoE: `inputs` ids can be read, the first `outputs` of them predicted."""
    return _build(config, inputs, outputs, third=False)


def build_3(config: QwenMoEConfig, inputs: int, outputs: int) -> Decoder:
    """Qwen3-MoE: `inputs` ids can be read, the first `outputs` of them predicted."""
    return _build(config, inputs, outputs, third=True)


def scaled(n_layers: int, d_model: int, context: int) -> QwenMoEConfig:
    """Sixteen experts, of which the four of a token (and the shared one) cost what a dense perceptron would."""
    values = proportions(n_layers, d_model, context)
    d = 4 * max(1, round(values["d_ff"] / 20))
    return QwenMoEConfig(**values, d_expert=d, d_shared=d, rope_theta=10000.0)


def _read(config: Facts, **defaults: Any) -> QwenMoEConfig:
    demand(config, hidden_act="silu", use_sliding_window=False, attention_bias=False, qkv_bias=True)
    values, every = common(config), fact(config, "decoder_sparse_step", 1)
    only = set(fact(config, "mlp_only_layers", []))
    dense = tuple(i for i in range(values["n_layers"]) if i in only or (i + 1) % every)
    return QwenMoEConfig(
        **values, **defaults, top_k=fact(config, "num_experts_per_tok"), d_expert=fact(config, "moe_intermediate_size"),
        dense=dense, normalise=fact(config, "norm_topk_prob", False), aux=fact(config, "router_aux_loss_coef", 0.001),
    )  # fmt: skip


def read_2(config: Facts) -> QwenMoEConfig:
    shared = fact(config, "shared_expert_intermediate_size")
    return _read(config, n_experts=fact(config, "num_experts"), d_shared=shared)


def read_3(config: Facts) -> QwenMoEConfig:
    n = config.get("num_local_experts") or fact(config, "num_experts", 128)
    return _read({"head_dim": 128, **config}, n_experts=n)


def write(c: QwenMoEConfig, inputs: int) -> dict[str, Any]:
    return {
        **common_to(c, inputs), "num_experts": c.n_experts, "num_experts_per_tok": c.top_k,
        "moe_intermediate_size": c.d_expert, "shared_expert_intermediate_size": c.d_shared,
        "decoder_sparse_step": 1, "mlp_only_layers": list(c.dense), "norm_topk_prob": c.normalise,
        "router_aux_loss_coef": c.aux, "use_sliding_window": False,
    }  # fmt: skip


def _weights(c: QwenMoEConfig, third: bool) -> list[Weight]:
    found = ends(c.tie)
    for i in range(c.n_layers):
        a, s = f"blocks.{i}.branches.0.mixer", f"model.layers.{i}.self_attn"
        m, p = f"blocks.{i}.branches.1.mixer", f"model.layers.{i}.mlp"
        found += [
            one(f"blocks.{i}.branches.0.norm.g", f"model.layers.{i}.input_layernorm.weight"),
            one(f"blocks.{i}.branches.1.norm.g", f"model.layers.{i}.post_attention_layernorm.weight"),
            *linears(a, s, ATTENTION),
        ]
        if third:
            found += [one(f"{a}.qk_norm.{x}.g", f"{s}.{x}_norm.weight") for x in "qk"]
        else:
            found += [one(f"{a}.{x}.bias", f"{s}.{x}_proj.bias") for x in "qkv"]
        if i in c.dense:
            found += linears(m, p, GATED)
            continue
        found += [one(f"{m}.router.weight", f"{p}.gate.weight"), experts(f"{m}.experts", f"{p}.experts", c.n_experts)]
        if not third:
            found += linears(f"{m}.shared.mlp", f"{p}.shared_expert", GATED)
            found += linears(f"{m}.shared", p, {"gate": "shared_expert_gate"})
    return found


def weights_2(c: QwenMoEConfig) -> list[Weight]:
    return _weights(c, third=False)


def weights_3(c: QwenMoEConfig) -> list[Weight]:
    return _weights(c, third=True)


QWEN2_MOE = Architecture(
    name="qwen2-moe",
    title="Qwen2-MoE (Qwen 2 with small experts beside a gated shared one)",
    source="Yang et al. 2024, Qwen2 technical report",
    config=QwenMoEConfig,
    build=build_2,
    scaled=scaled,
    hf=HuggingFace("qwen2_moe", "Qwen2MoeForCausalLM", read_2, write, weights_2),
)
QWEN3_MOE = Architecture(
    name="qwen3-moe",
    title="Qwen3-MoE (Qwen 3 with small experts)",
    source="Yang et al. 2025, Qwen3 technical report",
    config=QwenMoEConfig,
    build=build_3,
    scaled=scaled,
    hf=HuggingFace("qwen3_moe", "Qwen3MoeForCausalLM", read_3, write, weights_3),
)
