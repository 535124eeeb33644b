r"""Byte Latent Transformer: no tokenizer; the text is cut where it is hard to guess (Pagnoni et al. 2024).

A small byte model cuts the text into patches, a large transformer runs once a patch, and two light ones carry bytes to
patches and back. See `blt_net.py`, `blt_patcher.py`, and `blt_folder.py` for Hugging Face's spelling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from protea.models.autoregressive.architecture import Architecture
from protea.models.autoregressive.blt_config import BLTConfig, Stack
from protea.models.autoregressive.blt_folder import HF
from protea.models.autoregressive.blt_net import ByteLatent, Latent, LocalDecoder, LocalEncoder
from protea.models.autoregressive.blt_patcher import Patcher
from protea.models.autoregressive.language import LanguageModel
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.cross_attention import CrossAttention
from protea.nn.hash_ngrams import HashNGrams
from protea.nn.mlp_gated import SwiGLU
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE, rope_frequencies, rotate_interleaved
from protea.nn.tokens import TokenEmbedding


def stack(shape: Stack, rope_theta: float, eps: float, window: int | None) -> list[Block]:
    """Blocks of Llama's kind."""
    n, d, heads, kv, d_ff = shape
    rope = RoPE(rope_frequencies(d // heads, rope_theta), turn=rotate_interleaved)
    return [
        Block([Branch(RMSNorm(d, eps), GQA(d, heads, kv, position=rope, window=window)),
               Branch(RMSNorm(d, eps), SwiGLU(d, d_ff))])
        for _ in range(n)
    ]  # fmt: skip


def build(config: BLTConfig, inputs: int, outputs: int) -> ByteLatent:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config
    d, wide, small = c.encoder[1], c.latent[1], c.patcher[1]
    local, own = c.windows

    def blocks(shape: Stack, window: int | None, theta: float = c.rope_theta[0]) -> list[Block]:
        return stack(shape, theta, c.norm_eps, window)

    def cross(shape: Stack) -> CrossAttention:
        return CrossAttention(d, shape[2], shape[3], c.norm_eps)

    encoder = LocalEncoder(
        TokenEmbedding(inputs, d), HashNGrams(c.ngrams, c.buckets, d), blocks(c.encoder, local),
        nn.Linear(d, c.k * d, bias=False), cross(c.encoder),
    )  # fmt: skip
    pool = c.encoder[0]
    reader = pool + 1
    asker = reader + c.decoder[0]
    latent = asker + c.patcher[0]
    inward = nn.Identity() if c.k * d == wide else nn.Linear(c.k * d, wide, bias=False)
    decoder = LocalDecoder(
        nn.Linear(wide, c.k * d, bias=False), [cross(c.decoder) for _ in range(c.decoder[0])],
        blocks(c.decoder, local), RMSNorm(d, c.norm_eps), reader,
    )  # fmt: skip
    patcher = Patcher(
        TokenEmbedding(inputs, small), blocks(c.patcher, own, c.rope_theta[1]), RMSNorm(small, c.norm_eps), inputs,
        rule=c.rule, size=c.patch, threshold=c.threshold, longest=c.longest, layer=asker,
    )  # fmt: skip
    net = ByteLatent(
        encoder, Latent(inward, blocks(c.latent, None)), decoder, patcher, outputs, (pool, latent, latent + c.latent[0])
    )
    return initialised(net)


@torch.no_grad()
def initialised(net: ByteLatent) -> ByteLatent:
    """Normal weights of variance 1 / fan-in; those that write to a stream smaller; first logits near zero."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            shrink = 0.3 if name.endswith((".o", ".down")) else 1.0
            nn.init.normal_(module.weight, std=shrink * module.in_features**-0.5)
    for head in (net.head, net.patcher.head):
        head.weight.mul_(0.1)
    return net


def scaled(n_layers: int, d_model: int, context: int) -> BLTConfig:
    """Local blocks half as wide as the latent ones; light encoder and patcher, patches of a word's length."""
    d = max(16, d_model // 2)
    heads, wide = max(2, d // 32), d_model // 32 or 2
    local = (d, heads, heads, 16 * round(d / 6))
    return BLTConfig(
        (1, *local), (n_layers, d_model, wide, wide, 16 * round(d_model / 6)), (2, *local), (2, *local), context
    )  # fmt: skip


def settle(model: LanguageModel) -> LanguageModel:
    """Fix the threshold that a trained model has learnt, as its folder must say it; the same model."""
    net = cast(Any, model.net)
    model.config = replace(model.config, threshold=net.patcher.settle())
    return model


ARCHITECTURE = Architecture(
    name="blt",
    title="Byte latent transformer (entropy patches, no tokenizer)",
    source="Pagnoni et al. 2024, Byte latent transformer: patches scale better than tokens",
    config=BLTConfig,
    build=cast(Callable[..., Any], build),
    scaled=scaled,
    hf=HF,
)
