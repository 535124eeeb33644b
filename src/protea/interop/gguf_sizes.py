"""The sizes a GGUF file tells of a model, under llama.cpp's names, from the config.json of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protea.errors import NotSupported

Config = Mapping[str, Any]


def decoder_sizes(writer: Any, c: Config, gguf: Any) -> None:
    """What every attention decoder's reader asks for, where the architecture has it."""
    heads = c.get("num_attention_heads") or c["n_head"]
    width = c.get("hidden_size") or c["n_embd"]
    writer.add_context_length(c.get("max_position_embeddings") or c["n_positions"])
    writer.add_embedding_length(width)
    writer.add_block_count(c.get("num_hidden_layers") or c["n_layer"])
    writer.add_feed_forward_length(c.get("intermediate_size") or c.get("n_inner") or 4 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(c.get("num_key_value_heads") or heads)
    if head := c.get("head_dim"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    _eps(writer, c)
    if c["model_type"] != "gpt2":
        _rope(writer, c, gguf, c.get("head_dim") or width // heads)
    if window := c.get("sliding_window"):
        writer.add_sliding_window(window)
        if c["model_type"] == "gemma3_text":
            _pattern(writer, c)
    if (cap := c.get("attn_logit_softcapping")) is not None:
        writer.add_attn_logit_softcapping(cap)
    if (cap := c.get("final_logit_softcapping")) is not None:
        writer.add_final_logit_softcapping(cap)
    if (scale := c.get("logit_scale")) is not None:
        writer.add_logit_scale(scale)
    if experts := c.get("num_local_experts") or c.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(c["num_experts_per_tok"])
    if wide := c.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(wide)
    if (wide := c.get("shared_expert_intermediate_size")) and c["model_type"] == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(wide)


def deepseek_sizes(writer: Any, c: Config, gguf: Any) -> None:
    """Latent attention is told as what it is once keys are absorbed: one shared head of latents."""
    latent, rope = c["kv_lora_rank"], c["qk_rope_head_dim"]
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_q_lora_rank(c["q_lora_rank"] or c["hidden_size"])  # see `gguf_kinds`
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(c["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(c["v_head_dim"])
    _rope(writer, c, gguf, rope)
    if (m := (c.get("rope_parameters") or {}).get("mscale_all_dim")) is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * m)
    writer.add_leading_dense_block_count(c["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    writer.add_expert_count(c["n_routed_experts"])
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_shared_count(c["n_shared_experts"])
    writer.add_expert_weights_scale(float(c["routed_scaling_factor"]))
    writer.add_expert_weights_norm(bool(c["norm_topk_prob"]))
    sigmoid = c["scoring_func"] == "sigmoid"
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if sigmoid else gguf.ExpertGatingFuncType.SOFTMAX)
    if c["n_group"] > 1:
        writer.add_expert_group_count(c["n_group"])
        writer.add_expert_group_used_count(c["topk_group"])


def state_sizes(writer: Any, c: Config, gguf: Any) -> None:
    """Mamba and Mamba-2: no heads of attention, no perceptron."""
    inner = c["expand"] * c["hidden_size"]
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(c["conv_kernel"])
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(c["state_size"])
    writer.add_layer_norm_rms_eps(c["layer_norm_epsilon"])
    if c["model_type"] == "mamba2":
        writer.add_ssm_time_step_rank(c["num_heads"])  # of Mamba-2 it is the number of heads
        writer.add_ssm_group_count(c["n_groups"])
    else:
        writer.add_ssm_time_step_rank(c["time_step_rank"])
        writer.add_ssm_dt_b_c_rms(False)


def hybrid_sizes(writer: Any, c: Config, gguf: Any) -> None:
    """Jamba: layers without attention have no key heads."""
    period, offset = c["attn_layer_period"], c["attn_layer_offset"]
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    kv = c["num_key_value_heads"]
    writer.add_head_count_kv([kv if i % period == offset else 0 for i in range(c["num_hidden_layers"])])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_ssm_conv_kernel(c["mamba_d_conv"])
    writer.add_ssm_inner_size(c["mamba_expand"] * c["hidden_size"])
    writer.add_ssm_state_size(c["mamba_d_state"])
    writer.add_ssm_time_step_rank(c["mamba_dt_rank"])
    writer.add_expert_count(c["num_experts"] if c["num_experts"] > 1 else 0)
    writer.add_expert_used_count(c["num_experts_per_tok"] if c["num_experts"] > 1 else 0)


def mpt_sizes(writer: Any, c: Config, gguf: Any) -> None:
    """MPT: its config has names of its own."""
    writer.add_context_length(c["max_seq_len"])
    writer.add_embedding_length(c["d_model"])
    writer.add_block_count(c["n_layers"])
    writer.add_feed_forward_length(c["expansion_ratio"] * c["d_model"])
    writer.add_head_count(c["n_heads"])
    writer.add_head_count_kv(c["n_heads"])
    writer.add_layer_norm_eps(c["layer_norm_epsilon"])
    writer.add_max_alibi_bias(float(c["attn_config"]["alibi_bias_max"]))


def _eps(writer: Any, c: Config) -> None:
    if (eps := c.get("rms_norm_eps")) is not None:
        writer.add_layer_norm_rms_eps(eps)
    for name in ("layer_norm_epsilon", "layer_norm_eps"):
        if (eps := c.get(name)) is not None:
            writer.add_layer_norm_eps(eps)


def _rope(writer: Any, c: Config, gguf: Any, dimensions: int) -> None:
    rope = c.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)  # Gemma 3 has one set for each kind of layer
    theta = rope.get("rope_theta", c.get("rope_theta"))
    if theta is not None:
        writer.add_rope_freq_base(float(theta))
        writer.add_rope_dimension_count(dimensions)
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind != "default":
        raise NotSupported(f"GGUF export of RoPE scaling {kind!r} is not written.", "Export with --to hf instead.")


def _pattern(writer: Any, c: Config) -> None:
    """Every k-th layer sees all; the others have a window, and rotary positions of their own base."""
    everywhere = [i for i, kind in enumerate(c["layer_types"]) if kind == "full_attention"]
    period = everywhere[0] + 1 if everywhere else len(c["layer_types"]) + 1
    if everywhere != list(range(period - 1, len(c["layer_types"]), period)):
        raise NotSupported(
            f"llama.cpp wants every k-th layer of Gemma 3 to see all, not layers {everywhere}.", "Export with --to hf."
        )
    writer.add_sliding_window_pattern(period)
    writer.add_rope_freq_base_swa(float(c["rope_parameters"]["sliding_attention"]["rope_theta"]))
