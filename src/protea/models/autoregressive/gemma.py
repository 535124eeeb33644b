r"""Gemma 2 (Gemma team 2024) and Gemma 3 (2025): norms before and after each branch, layers local and global in turn.

    x <- x + RMSNorm(GQA(RMSNorm(x))),   x <- x + RMSNorm(GeGLU(RMSNorm(x))),    RMSNorm with gains 1 + g,

embedding times sqrt(d_model), scores divided by sqrt(query_pre_attn_scalar), the head tied. Gemma 2 bounds scores
and logits by c tanh(. / c), and every second layer is global. Gemma 3 norms queries and keys instead; five local
layers with rotary base 10,000 stand before each global one with base 1,000,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protea.errors import ConfigError
from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
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
    pattern_of,
    pattern_to,
    rope_to,
    window_of,
)  # fmt: skip
from protea.nn.attention import GQA, QKNorm, SoftCap, sdpa
from protea.nn.block import Block, Branch
from protea.nn.logits import LogitCap
from protea.nn.mlp_gated import GeGLU
from protea.nn.norm import OffsetRMSNorm
from protea.nn.rope import make_rope
from protea.nn.tokens import TokenEmbedding

SIX = ("sliding",) * 5 + ("full",)


@dataclass(frozen=True)
class GemmaConfig:
    """The usual names; `pattern` repeats over the layers, "sliding" ones of them see `window` tokens.

    `score_scale` is query_pre_attn_scalar (None: d_head); caps are None for none; `local_theta` is the rotary base of
    sliding layers (None: as in the others; if it is given, rope_scaling is of full layers alone).
    """

    n_layers: int = 6
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 512
    context: int = 256
    window: int = 64
    pattern: tuple[str, ...] = ("sliding", "full")
    d_head: int | None = None
    rope_theta: float = 10000.0
    local_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    score_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    norm_eps: float = 1e-6
    tie: bool = True


def _build(c: GemmaConfig, inputs: int, outputs: int, normed: bool) -> Decoder:
    d_head = c.d_head or c.d_model // c.n_heads
    rope = make_rope(d_head, c.rope_theta, c.rope_scaling, c.context)
    local = rope if c.local_theta is None else make_rope(d_head, c.local_theta)
    kernel = sdpa if c.score_cap is None else SoftCap(c.score_cap)

    def norm(dim: int = c.d_model) -> OffsetRMSNorm:
        return OffsetRMSNorm(dim, c.norm_eps)

    def block(i: int) -> Block:
        window = window_of(i, c.pattern, c.window)
        attention = GQA(
            c.d_model, c.n_heads, c.n_kv_heads, d_head=d_head, position=rope if window is None else local,
            kernel=kernel, window=window, scale=(c.score_scale or d_head) ** -0.5,
            qk_norm=QKNorm(norm(d_head), norm(d_head)) if normed else None,
        )  # fmt: skip
        return Block([Branch(norm(), attention, norm()), Branch(norm(), GeGLU(c.d_model, c.d_ff), norm())])

    embed = TokenEmbedding(inputs, c.d_model, scale=c.d_model**0.5)
    cap = None if c.logit_cap is None else LogitCap(c.logit_cap)
    blocks = [block(i) for i in range(c.n_layers)]
    return init_decoder(Decoder(embed, blocks, norm(), outputs, c.tie, cap))


def build_2(config: GemmaConfig, inputs: int, outputs: int) -> Decoder:
    return _build(config, inputs, outputs, normed=False)


def build_3(config: GemmaConfig, inputs: int, outputs: int) -> Decoder:
    if config.score_cap is not None:
        raise ConfigError(f"Gemma 3 bounds no scores (score_cap {config.score_cap}).", "Gemma 2 does; norms here.")
    return _build(config, inputs, outputs, normed=True)


def _scaled(n_layers: int, d_model: int, context: int, **more: Any) -> GemmaConfig:
    heads = d_model // 32 or 2
    return GemmaConfig(
        n_layers, d_model, heads, max(1, heads // 2), 16 * round(d_model / 6), context, max(2, context // 4), **more
    )


def scaled_2(n_layers: int, d_model: int, context: int) -> GemmaConfig:
    return _scaled(n_layers, d_model, context, score_cap=50.0, logit_cap=30.0)


def scaled_3(n_layers: int, d_model: int, context: int) -> GemmaConfig:
    """With every layer but the last local where there are fewer than six."""
    pattern = SIX[-min(n_layers, 6) :]
    return _scaled(n_layers, d_model, context, pattern=pattern, rope_theta=1e6, local_theta=1e4)


def _read(config: Facts, every: int) -> dict[str, Any]:
    demand(
        config, hidden_activation="gelu_pytorch_tanh", hidden_act="gelu_pytorch_tanh", attention_bias=False,
        use_bidirectional_attention=False,
    )  # fmt: skip
    return {
        "tie": True, **common({"tie_word_embeddings": True, "head_dim": 256, **config}),
        "window": fact(config, "sliding_window", 4096), "pattern": pattern_of(config, every),
        "score_scale": float(fact(config, "query_pre_attn_scalar", 256)),
    }  # fmt: skip


def read_2(config: Facts) -> GemmaConfig:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **config}
    return GemmaConfig(
        **_read(config, 2), score_cap=caps["attn_logit_softcapping"], logit_cap=caps["final_logit_softcapping"]
    )


def read_3(config: Facts) -> GemmaConfig:
    ropes = config.get("rope_parameters") or {}
    nested = ropes.get("full_attention")
    base = {"rope_theta": 1e6, **config, "rope_parameters": nested if nested is not None else ropes or None}
    local = (ropes.get("sliding_attention") or {}) if nested is not None else {}
    demand(local, rope_type="default")
    demand(config, attn_logit_softcapping=None)  # which transformers reads and does not use
    theta = local.get("rope_theta") or config.get("rope_local_base_freq") or 1e4
    return GemmaConfig(
        **_read(base, 6), local_theta=float(theta), logit_cap=config.get("final_logit_softcapping"),
    )  # fmt: skip


def write_2(c: GemmaConfig, inputs: int) -> dict[str, Any]:
    out = common_to(c, inputs)
    del out["hidden_act"]
    return out | {
        "hidden_activation": "gelu_pytorch_tanh", "sliding_window": c.window,
        "layer_types": pattern_to(c.pattern, c.n_layers),
        "query_pre_attn_scalar": _whole(c.score_scale or c.d_head or c.d_model // c.n_heads),
        "attn_logit_softcapping": c.score_cap, "final_logit_softcapping": c.logit_cap, "attention_bias": False,
    }  # fmt: skip


def write_3(c: GemmaConfig, inputs: int) -> dict[str, Any]:
    local = c.rope_theta if c.local_theta is None else c.local_theta
    full = rope_to(c.rope_theta, c.rope_scaling)["rope_parameters"]
    ropes = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    out = {k: v for k, v in write_2(c, inputs).items() if k not in ("rope_theta", "rope_scaling")}
    return out | {"rope_parameters": ropes, "rope_local_base_freq": local, "use_bidirectional_attention": False}


def _whole(x: float) -> float | int:
    return int(x) if x == int(x) else x


def layer(i: int) -> list[Weight]:
    ours, theirs = f"blocks.{i}.branches", f"model.layers.{i}"
    norms = {
        "0.norm": "input_layernorm", "0.post": "post_attention_layernorm",
        "1.norm": "pre_feedforward_layernorm", "1.post": "post_feedforward_layernorm",
    }  # fmt: skip
    return [
        *(one(f"{ours}.{a}.g", f"{theirs}.{b}.weight") for a, b in norms.items()),
        *linears(f"{ours}.0.mixer", f"{theirs}.self_attn", ATTENTION),
        *linears(f"{ours}.1.mixer", f"{theirs}.mlp", GATED),
    ]


def weights_2(c: GemmaConfig) -> list[Weight]:
    return [*ends(c.tie), *(weight for i in range(c.n_layers) for weight in layer(i))]


def weights_3(c: GemmaConfig) -> list[Weight]:
    norms = [
        one(f"blocks.{i}.branches.0.mixer.qk_norm.{p}.g", f"model.layers.{i}.self_attn.{p}_norm.weight")
        for i in range(c.n_layers)
        for p in "qk"
    ]
    return [*weights_2(c), *norms]


GEMMA2 = Architecture(
    name="gemma2",
    title="Gemma 2 (local and global layers in turn, bounded scores)",
    source="Gemma team 2024, Gemma 2",
    config=GemmaConfig,
    build=build_2,
    scaled=scaled_2,
    hf=HuggingFace("gemma2", "Gemma2ForCausalLM", read_2, write_2, weights_2),
)
GEMMA3 = Architecture(
    name="gemma3",
    title="Gemma 3 (five local layers to a global one, normed queries and keys)",
    source="Gemma team 2025, Gemma 3 technical report",
    config=GemmaConfig,
    build=build_3,
    scaled=scaled_3,
    hf=HuggingFace("gemma3_text", "Gemma3ForCausalLM", read_3, write_3, weights_3),
)
