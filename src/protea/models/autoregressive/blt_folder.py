"""How a Hugging Face folder spells a Byte Latent Transformer: five configs in one."""

from __future__ import annotations

from typing import Any

from protea.errors import DataError, NotSupported
from protea.models.autoregressive.architecture import HuggingFace, Weight
from protea.models.autoregressive.blt_config import BLTConfig, Stack
from protea.models.autoregressive.spelling import ATTENTION, GATED, Facts, demand, fact, linears, one, rope_of

STACKS = {
    "encoder": "encoder_config", "latent": "global_config", "decoder": "decoder_config", "patcher": "patcher_config"
}  # fmt: skip


def stack_of(config: Facts) -> Stack:
    """(layers, width, heads, key heads, d_ff) of one of the configs."""
    heads, d = fact(config, "num_attention_heads"), fact(config, "hidden_size")
    d_ff = fact(config, "intermediate_size", int(8 * d / 3))
    return fact(config, "num_hidden_layers"), d, heads, fact(config, "num_key_value_heads", heads), d_ff


def stack_to(shape: Stack, c: BLTConfig, theta: float | None = None, **more: Any) -> dict[str, Any]:
    """The inverse."""
    return {
        "num_hidden_layers": shape[0], "hidden_size": shape[1], "num_attention_heads": shape[2],
        "num_key_value_heads": shape[3], "intermediate_size": shape[4], "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta or c.rope_theta[0]}, "hidden_act": "silu",
        "max_position_embeddings": c.context, "dropout": 0.0, **more,
    }  # fmt: skip


def read(config: Facts) -> BLTConfig:
    parts = {name: dict(fact(config, theirs)) for name, theirs in STACKS.items()}
    demand(config, patching_mode="entropy", patch_in_forward=True, encoder_hash_byte_group_nb_functions=1,
           tie_word_embeddings=False)  # fmt: skip
    demand(parts["encoder"], cross_attn_all_layers=False)
    demand(parts["decoder"], cross_attn_all_layers=True)
    theta: dict[str, float] = {}
    eps = fact(parts["latent"], "rms_norm_eps", 1e-5)
    for name, part in parts.items():
        demand(part, hidden_act="silu", rms_norm_eps=eps)
        theta[name], scaling = rope_of(part, 10000.0 if name == "patcher" else 500000.0)
        if scaling is not None or (name != "patcher" and theta[name] != theta["encoder"]):
            raise DataError(
                f"config.json's {STACKS[name]} has rotary positions of base {theta[name]}, scaling {scaling}, where "
                f"the encoder has {theta['encoder']} and none.",
                "One base for all but the patcher, and no scaling, are known.",
            )
    shapes = {name: stack_of(part) for name, part in parts.items()}
    if shapes["encoder"][1] != shapes["decoder"][1]:
        raise DataError(f"config.json's encoder is {shapes['encoder'][1]} wide, its decoder {shapes['decoder'][1]}.")
    return BLTConfig(
        encoder=shapes["encoder"], latent=shapes["latent"], decoder=shapes["decoder"], patcher=shapes["patcher"],
        context=fact(config, "max_position_embeddings", 4096), k=fact(config, "cross_attn_k", 2),
        ngrams=tuple(fact(config, "encoder_hash_byte_group_size", (3, 4, 5, 6, 7, 8))),
        buckets=fact(config, "encoder_hash_byte_group_vocab", 500002),
        patch=float(fact(config, "patch_size", 4)), threshold=fact(config, "patching_threshold", 1.335442066192627),
        longest=config.get("max_patch_length"),
        windows=(config.get("local_attention_window_len"), parts["patcher"].get("sliding_window")),
        rope_theta=(theta["encoder"], theta["patcher"]), norm_eps=eps,
    )  # fmt: skip


def write(c: BLTConfig, inputs: int) -> dict[str, Any]:
    local = {"vocab_size": inputs, "cross_attn_k": c.k, "hidden_size_global": c.d_model}
    window, own = c.windows
    return {
        "vocab_size": inputs, "max_position_embeddings": c.context, "patch_in_forward": True,
        "patching_mode": "entropy", "patch_size": max(1, round(c.patch)), "patching_threshold": c.threshold,
        "max_patch_length": c.longest, "local_attention_window_len": window, "cross_attn_k": c.k,
        "encoder_hash_byte_group_size": list(c.ngrams), "encoder_hash_byte_group_vocab": c.buckets,
        "encoder_hash_byte_group_nb_functions": 1, "tie_word_embeddings": False,
        "encoder_config": stack_to(c.encoder, c, cross_attn_all_layers=False, sliding_window=window, **local),
        "decoder_config": stack_to(c.decoder, c, cross_attn_all_layers=True, **local),
        "global_config": stack_to(c.latent, c),
        "patcher_config": stack_to(c.patcher, c, c.rope_theta[1], vocab_size=inputs, sliding_window=own),
    }  # fmt: skip


def blocks(ours: str, theirs: str, n: int) -> list[Weight]:
    """The tensors of a stack."""
    out = []
    for i in range(n):
        a, b = f"{ours}.blocks.{i}.branches", f"{theirs}.layers.{i}"
        out.append(one(f"{a}.0.norm.g", f"{b}.input_layernorm.weight"))
        out.append(one(f"{a}.1.norm.g", f"{b}.post_attention_layernorm.weight"))
        out += linears(f"{a}.0.mixer", f"{b}.self_attn", ATTENTION)
        out += linears(f"{a}.1.mixer", f"{b}.mlp", GATED)
    return out


def cross(ours: str, theirs: str) -> list[Weight]:
    """The tensors of a cross-attention."""
    norms = [one(f"{ours}.norm_{x}.g", f"{theirs}.{x}_norm.weight") for x in "qk"]
    return linears(ours, theirs, ATTENTION) + norms


def weights(c: BLTConfig) -> list[Weight]:
    if c.threshold is None or c.rule != "global":
        raise NotSupported(
            f"Hugging Face's patches begin at a fixed entropy; this model has the rule {c.rule!r} and the threshold "
            f"{c.threshold}.",
            "Train with rule = global, and call protea.models.autoregressive.blt.settle(model) before the export.",
        )
    encoder, decoder = "model.local_encoder", "model.local_decoder"
    out = [
        one("head.weight", "lm_head.weight"),
        one("encoder.embed.weight", f"{encoder}.embed_tokens.weight"),
        one("encoder.ngrams.weight", "model.encoder_hash_tok_embedding.weight"),
        one("encoder.spread.weight", f"{encoder}.patch_embedding_projection.weight"),
        one("decoder.spread.weight", f"{decoder}.patch_embedding_projection.weight"),
        one("decoder.norm.g", f"{decoder}.norm.weight"),
        one("patcher.embed.weight", "model.patcher.embed_tokens.weight"),
        one("patcher.norm.g", "model.patcher.norm.weight"),
        one("patcher.head.weight", "model.patcher.lm_head.weight"),
        *cross("encoder.cross", f"{encoder}.cross_attn_layers.0"),
    ]
    if c.k * c.encoder[1] != c.d_model:
        out.append(one("latent.inward.weight", "model.global_transformer.token_embedding_projection.weight"))
    for i in range(c.decoder[0]):
        out += cross(f"decoder.cross.{i}", f"{decoder}.cross_attn_layers.{i}")
    names = {"encoder": encoder, "latent": "model.global_transformer", "decoder": decoder, "patcher": "model.patcher"}
    for name, theirs in names.items():
        out += blocks(name, theirs, getattr(c, name)[0])
    return out


HF = HuggingFace("blt", "BltForCausalLM", read, write, weights)
