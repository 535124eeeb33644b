"""MobileLLM (Liu et al. 2024): deep and thin, grouped heads, tied head; in its LS form every block acts twice in a row.

A block that acts again costs time and a memory of its own, but no parameters: for devices whose memory is the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from protea.models.autoregressive.architecture import Architecture
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.llama import LlamaConfig, proportions
from protea.models.autoregressive.llama import build as llama


@dataclass(frozen=True)
class MobileLLMConfig:
    """`n_layers` as they act: n_layers / share different blocks, each `share` times in a row."""

    n_layers: int = 8
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 352
    context: int = 256
    share: int = 2
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie: bool = True


def build(config: MobileLLMConfig, inputs: int, outputs: int) -> Decoder:
    c = config
    different = -(-c.n_layers // c.share)
    shape = LlamaConfig(
        different, c.d_model, c.n_heads, c.n_kv_heads, c.d_ff, c.context, c.rope_theta, c.norm_eps, c.tie
    )
    net = llama(shape, inputs, outputs)
    blocks = [net.blocks[i // c.share] for i in range(c.n_layers)]
    return init_decoder(Decoder(net.embed, blocks, net.norm, outputs, c.tie))  # type: ignore[arg-type]


def scaled(n_layers: int, d_model: int, context: int) -> MobileLLMConfig:
    """Every block twice, so twice the depth."""
    return replace(MobileLLMConfig(**proportions(n_layers, d_model, context)), n_layers=2 * n_layers)


ARCHITECTURE = Architecture(
    name="mobilellm",
    title="MobileLLM-LS (Llama, every block twice)",
    source="Liu et al. 2024, MobileLLM",
    config=MobileLLMConfig,
    build=build,
    scaled=scaled,
)
