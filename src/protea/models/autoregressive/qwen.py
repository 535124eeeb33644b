"""Qwen 2 (Yang et al. 2024): Llama's block with biases of q, k and v. Qwen 3 (Yang et al. 2025): norms of every
head's queries and keys in their stead. In both, layers may be given a sliding window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder
from protea.models.autoregressive.llama import layer, proportions, stack
from protea.models.autoregressive.spelling import (
    Facts,
    common,
    common_to,
    demand,
    ends,
    one,
    pattern_of,
    pattern_to,
    window_of,
)  # fmt: skip
from protea.nn.attention import GQA, QKNorm
from protea.nn.norm import RMSNorm
from protea.nn.rope import make_rope


@dataclass(frozen=True)
class QwenConfig:
    """The usual names; `pattern` repeats over the layers, "sliding" ones of them see `window` tokens.

    `bias`: whether the projections of Qwen 3's attention have one; of Qwen 2's, q, k and v always do.
    """

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 352
    context: int = 256
    rope_theta: float = 1000000.0
    norm_eps: float = 1e-6
    tie: bool = False
    d_head: int | None = None
    rope_scaling: dict[str, Any] | None = None
    window: int | None = None
    pattern: tuple[str, ...] = ("full",)
    bias: bool = False


def _build(c: QwenConfig, inputs: int, outputs: int, normed: bool) -> Decoder:
    d_head = c.d_head or c.d_model // c.n_heads
    rope = make_rope(d_head, c.rope_theta, c.rope_scaling, c.context)

    def attention(i: int) -> GQA:
        norms = QKNorm(RMSNorm(d_head, c.norm_eps), RMSNorm(d_head, c.norm_eps)) if normed else None
        return GQA(
            c.d_model, c.n_heads, c.n_kv_heads, d_head=d_head, position=rope,
            bias=not normed or c.bias, bias_out=normed and c.bias, qk_norm=norms,
            window=window_of(i, c.pattern, c.window),
        )  # fmt: skip

    return stack(c, attention, inputs, outputs)


def build_2(config: QwenConfig, inputs: int, outputs: int) -> Decoder:
    return _build(config, inputs, outputs, normed=False)


def build_3(config: QwenConfig, inputs: int, outputs: int) -> Decoder:
    return _build(config, inputs, outputs, normed=True)


def scaled(n_layers: int, d_model: int, context: int) -> QwenConfig:
    return QwenConfig(**proportions(n_layers, d_model, context))


def read(config: Facts) -> QwenConfig:
    demand(config, hidden_act="silu")
    values, window, pattern = common(config), None, ("full",)
    if config.get("use_sliding_window") and config.get("sliding_window") is not None:
        n, first = values["n_layers"], config.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(n)]
        window, pattern = config["sliding_window"], pattern_of({"layer_types": kinds, **config}, 1)
    return QwenConfig(**values, window=window, pattern=pattern)


def read_3(config: Facts) -> QwenConfig:
    return replace(read({"head_dim": 128, **config}), bias=bool(config.get("attention_bias")))


def write(c: QwenConfig, inputs: int) -> dict[str, Any]:
    first = next((i for i in range(c.n_layers) if window_of(i, c.pattern, c.window)), c.n_layers)
    return {
        **common_to(c, inputs), "use_sliding_window": c.window is not None, "sliding_window": c.window,
        "max_window_layers": first, "layer_types": pattern_to(c.pattern, c.n_layers), "attention_bias": c.bias,
    }  # fmt: skip


def weights_2(c: QwenConfig) -> list[Weight]:
    return [*ends(c.tie), *(weight for i in range(c.n_layers) for weight in layer(i, "qkv"))]


def weights_3(c: QwenConfig) -> list[Weight]:
    norms = [
        one(f"blocks.{i}.branches.0.mixer.qk_norm.{p}.g", f"model.layers.{i}.self_attn.{p}_norm.weight")
        for i in range(c.n_layers)
        for p in "qk"
    ]
    return [*ends(c.tie), *(weight for i in range(c.n_layers) for weight in layer(i, "qkvo" if c.bias else "")), *norms]


QWEN2 = Architecture(
    name="qwen2",
    title="Qwen 2 and 2.5 (Llama with biases of q, k and v)",
    source="Yang et al. 2024, Qwen2 technical report",
    config=QwenConfig,
    build=build_2,
    scaled=scaled,
    hf=HuggingFace("qwen2", "Qwen2ForCausalLM", read, write, weights_2),
)
QWEN3 = Architecture(
    name="qwen3",
    title="Qwen 3 (Llama with normed queries and keys)",
    source="Yang et al. 2025, Qwen3 technical report",
    config=QwenConfig,
    build=build_3,
    scaled=scaled,
    hf=HuggingFace("qwen3", "Qwen3ForCausalLM", read_3, write, weights_3),
)
