"""Mistral 7B (Jiang et al. 2023): Llama's block, where a token sees itself and the window - 1 tokens before it.

L layers of a window w reach back L (w - 1) tokens, and their memory of a text never grows past w tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protea.models.autoregressive.architecture import Architecture, HuggingFace
from protea.models.autoregressive.decoder import Decoder
from protea.models.autoregressive.llama import proportions, stack, weights
from protea.models.autoregressive.spelling import Facts, common, common_to, demand
from protea.nn.attention import GQA
from protea.nn.rope import make_rope


@dataclass(frozen=True)
class MistralConfig:
    """The usual names; `window` is None where every token sees all before it."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 352
    context: int = 256
    window: int | None = 64
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie: bool = False
    d_head: int | None = None
    rope_scaling: dict[str, Any] | None = None


def build(config: MistralConfig, inputs: int, outputs: int) -> Decoder:
    c = config
    d_head = c.d_head or c.d_model // c.n_heads
    rope = make_rope(d_head, c.rope_theta, c.rope_scaling, c.context)

    def attention(i: int) -> GQA:
        return GQA(c.d_model, c.n_heads, c.n_kv_heads, d_head=d_head, position=rope, window=c.window)

    return stack(c, attention, inputs, outputs)


def scaled(n_layers: int, d_model: int, context: int) -> MistralConfig:
    return MistralConfig(**proportions(n_layers, d_model, context), window=max(2, context // 4))


def read(config: Facts) -> MistralConfig:
    demand(config, hidden_act="silu")
    return MistralConfig(**common(config), window=config.get("sliding_window", 4096))


def write(c: MistralConfig, inputs: int) -> dict[str, Any]:
    return {**common_to(c, inputs), "sliding_window": c.window}


ARCHITECTURE = Architecture(
    name="mistral",
    title="Mistral (Llama with a sliding window)",
    source="Jiang et al. 2023, Mistral 7B",
    config=MistralConfig,
    build=build,
    scaled=scaled,
    hf=HuggingFace("mistral", "MistralForCausalLM", read, write, weights),
)
