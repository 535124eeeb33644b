r"""The decoder-only transformer on which the field converged (Vaswani et al. 2017; Llama: Touvron et al. 2023).

RMSNorm before each branch, rotary positions, grouped-query attention, SwiGLU, no biases: the network of `llama.py`.
"""

from __future__ import annotations

from dataclasses import replace

from protea.models.autoregressive.architectures import language_model, size
from protea.models.autoregressive.language import LanguageModel
from protea.models.autoregressive.llama import LlamaConfig as TransformerConfig
from protea.models.autoregressive.llama import build as llama
from protea.models.autoregressive.llama import scaled
from protea.models.entry import Entry
from protea.space import Rows, Space
from protea.spaces import Tokens

__all__ = ["ENTRY", "TransformerConfig", "build", "llama", "suggest"]


def suggest(space: Space, train: Rows, seconds: float) -> TransformerConfig:
    """The size of `architectures.size`; a text this short has nothing to gain from fewer key heads."""
    config = scaled(*size(space, train, seconds))
    return replace(config, n_kv_heads=config.n_heads)


def build(space: Space, config: TransformerConfig) -> LanguageModel:
    assert isinstance(space, Tokens)
    return language_model("llama", space, config)


ENTRY = Entry(
    name="transformer",
    family="autoregressive",
    title="Decoder-only transformer (RMSNorm, RoPE, GQA, SwiGLU)",
    source="Vaswani et al. 2017, Attention is all you need; Touvron et al. 2023, LLaMA",
    suits=frozenset({"tokens"}),
    config=TransformerConfig,
    build=build,
    suggest=suggest,
)
