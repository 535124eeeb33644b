"""How Hugging Face folders spell DeepSeek-V2 and V3. The modules that look ahead stand after the last layer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from protea.models.autoregressive.architecture import HuggingFace, Weight
from protea.models.autoregressive.spelling import GATED, Facts, demand, ends, fact, linears, one, rope_of, rope_to
from protea.models.autoregressive.spelling_moe import experts

SIZES = {
    "n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size", "context": "max_position_embeddings", "d_c": "kv_lora_rank",
    "d_nope": "qk_nope_head_dim", "d_rope": "qk_rope_head_dim", "d_v": "v_head_dim", "n_experts": "n_routed_experts",
    "n_shared": "n_shared_experts", "top_k": "num_experts_per_tok", "d_expert": "moe_intermediate_size",
}  # fmt: skip

AHEAD = {"embed_norm.g": "enorm", "hidden_norm.g": "hnorm", "norm.g": "shared_head.norm", "join.weight": "eh_proj"}


def _read(config: Facts) -> dict[str, Any]:
    """What both say alike."""
    heads = fact(config, "num_attention_heads")
    demand(
        config, hidden_act="silu", num_key_value_heads=heads, moe_layer_freq=1, ep_size=1,
        scoring_func=("softmax", "sigmoid"), mlp_bias=False,
    )  # fmt: skip
    theta, scaling = rope_of(config)
    return {
        **{ours: fact(config, theirs) for ours, theirs in SIZES.items()}, "q_rank": fact(config, "q_lora_rank", None),
        "n_dense": fact(config, "first_k_dense_replace", 0), "n_groups": fact(config, "n_group", 1),
        "top_groups": fact(config, "topk_group", 1), "scale": fact(config, "routed_scaling_factor", 1.0),
        "rope_theta": theta, "rope_scaling": scaling, "norm_eps": fact(config, "rms_norm_eps", 1e-6),
        "bias": fact(config, "attention_bias", False), "tie": fact(config, "tie_word_embeddings", False),
        "aux": fact(config, "aux_loss_alpha", 1e-4), "n_ahead": fact(config, "num_nextn_predict_layers", 0),
    }  # fmt: skip


def _write(c: Any, inputs: int) -> dict[str, Any]:
    return {
        **{theirs: getattr(c, ours) for ours, theirs in SIZES.items()}, "vocab_size": inputs, "hidden_act": "silu",
        "num_key_value_heads": c.n_heads, "q_lora_rank": c.q_rank, "first_k_dense_replace": c.n_dense,
        "n_group": c.n_groups, "topk_group": c.top_groups, "routed_scaling_factor": c.scale,
        "rms_norm_eps": c.norm_eps, "attention_bias": c.bias, "tie_word_embeddings": c.tie, "aux_loss_alpha": c.aux,
        "moe_layer_freq": 1, "num_nextn_predict_layers": c.n_ahead, **rope_to(c.rope_theta, c.rope_scaling),
    }  # fmt: skip


def _layer(c: Any, ours: str, theirs: str, dense: bool, biased: bool) -> list[Weight]:
    """The tensors of one block; `biased` where the router has a selection bias."""
    a, s = f"{ours}.branches.0.mixer", f"{theirs}.self_attn"
    m, p = f"{ours}.branches.1.mixer", f"{theirs}.mlp"
    found = [
        one(f"{ours}.branches.0.norm.g", f"{theirs}.input_layernorm.weight"),
        one(f"{ours}.branches.1.norm.g", f"{theirs}.post_attention_layernorm.weight"),
        one(f"{a}.norm.g", f"{s}.kv_a_layernorm.weight"),
        *linears(a, s, {"kv_down": "kv_a_proj_with_mqa", "o": "o_proj"}, c.bias),
        *linears(a, s, {"kv_up": "kv_b_proj"}),
    ]
    if c.q_rank is None:
        found += linears(a, s, {"q": "q_proj"})
    else:
        found += [
            *linears(a, s, {"q.compress": "q_a_proj"}, c.bias),
            one(f"{a}.q.norm.g", f"{s}.q_a_layernorm.weight"),
            *linears(a, s, {"q.expand": "q_b_proj"}),
        ]
    if dense:
        return [*found, *linears(m, p, GATED)]
    found += [one(f"{m}.router.weight", f"{p}.gate.weight"), experts(f"{m}.experts", f"{p}.experts", c.n_experts)]
    if c.n_shared:
        found += linears(f"{m}.shared", f"{p}.shared_experts", GATED)
    return [*found, one(f"{m}.router.choice.bias", f"{p}.gate.e_score_correction_bias")] if biased else found


def _weights(biased: bool) -> Callable[[Any], list[Weight]]:
    def weights(c: Any) -> list[Weight]:
        found = ends(c.tie)
        for i in range(c.n_layers):
            found += _layer(c, f"blocks.{i}", f"model.layers.{i}", i < c.n_dense, biased)
        for k in range(c.n_ahead):
            ours, theirs = f"ahead.depths.{k}", f"model.layers.{c.n_layers + k}"
            found += [one(f"{ours}.{a}", f"{theirs}.{b}.weight") for a, b in AHEAD.items()]
            found += _layer(c, f"{ours}.block", theirs, False, biased)
        return found

    return weights


def _settle(c: Any, names: Collection[str]) -> Any:
    """config.json names the modules that look ahead whether the folder holds them or not."""
    held = sum(any(name.startswith(f"model.layers.{c.n_layers + k}.") for name in names) for k in range(c.n_ahead))
    return replace(c, n_ahead=held)


def V2(made: Callable[..., Any]) -> HuggingFace:
    """DeepSeek-V2's spelling of a config class."""

    def read(config: Facts) -> Any:
        demand(config, norm_topk_prob=False, topk_method=("greedy", "group_limited_greedy"))
        values = _read(config)
        if config.get("topk_method", "greedy") == "greedy":
            values |= {"n_groups": 1, "top_groups": 1}
        return made(**values)

    def write(c: Any, inputs: int) -> dict[str, Any]:
        method = "group_limited_greedy" if c.n_groups > 1 else "greedy"
        return {**_write(c, inputs), "topk_method": method, "norm_topk_prob": False, "scoring_func": "softmax"}

    return HuggingFace("deepseek_v2", "DeepseekV2ForCausalLM", read, write, _weights(False), _settle)


def V3(made: Callable[..., Any]) -> HuggingFace:
    """DeepSeek-V3's spelling of a config class."""

    def read(config: Facts) -> Any:
        demand(config, topk_method="noaux_tc", scoring_func="sigmoid")
        normalise, interleave = fact(config, "norm_topk_prob", True), fact(config, "rope_interleave", True)
        return made(**_read(config), normalise=normalise, interleave=interleave)

    def write(c: Any, inputs: int) -> dict[str, Any]:
        return {
            **_write(c, inputs), "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": c.normalise,
            "rope_interleave": c.interleave,
        }  # fmt: skip

    return HuggingFace("deepseek_v3", "DeepseekV3ForCausalLM", read, write, _weights(True), _settle)
