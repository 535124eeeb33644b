r"""What a language model takes to serve: the weights that must be held, those that a token uses, the memory of a text.

A mixture of experts computes like a small model and occupies the room of a large one: all experts are held, though a
token goes to k of them. A text takes for each of its tokens and each layer

    2 H_kv d_h numbers of keys and values (GQA, at most a window of tokens),   d_c + d_R of a latent (MLA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from protea.models.autoregressive.architectures import ARCHITECTURES
from protea.models.autoregressive.decoder import Decoder
from protea.nn.attention import GQA
from protea.nn.mla import MLA
from protea.nn.moe import MoE


@dataclass(frozen=True)
class Footprint:
    """Counts of a network.

    Args:
        parameters: all of them.
        active: those that one token multiplies with; the embedding, which is looked up, is not among them unless it
            is also the head.
        numbers: remembered for each token of a text, in full layers.
        windowed: (window, numbers for each of its tokens) of layers with a window.
    """

    parameters: int
    active: int
    numbers: int
    windowed: tuple[tuple[int, int], ...]

    def weight_bytes(self, bytes_each: float = 2.0) -> float:
        """Of the weights; 1 byte each in FP8, 2 in bfloat16, 0.5 in 4-bit formats (less their scales)."""
        return self.parameters * bytes_each

    def text_bytes(self, tokens: int, bytes_each: float = 2.0) -> float:
        """Of what is remembered of a text."""
        return bytes_each * (self.numbers * tokens + sum(min(tokens, w) * n for w, n in self.windowed))

    def fits(self, device_bytes: float, devices: int = 1, *, bytes_each: float = 2.0, texts_bytes: float = 0.0) -> bool:
        """Whether the weights, and the memory of the texts at work, fit on so many devices together."""
        return self.weight_bytes(bytes_each) + texts_bytes <= device_bytes * devices


def footprint(net: Decoder) -> Footprint:
    """Of a network, which may be on the meta device."""
    idle, numbers, windowed = 0, 0, []
    for module in net.blocks.modules():
        if isinstance(module, MoE):
            k = getattr(getattr(module.router, "choice", None), "k", 1)
            idle += sum(p.numel() // len(p) * (len(p) - k) for p in module.experts.parameters())
        elif isinstance(module, MLA):
            numbers += module.d_c + module.d_rope
        elif isinstance(module, GQA):
            n = module.k.out_features + module.v.out_features
            if module.window is None:
                numbers += n
            else:
                windowed.append((module.window, n))
    ahead = 0 if net.ahead is None else sum(p.numel() for p in net.ahead.parameters())
    total = sum(p.numel() for p in net.parameters())
    looked_up = 0 if net.head is None else net.embed.weight.numel()
    return Footprint(total, total - idle - looked_up - ahead, numbers, tuple(windowed))


def footprint_of(name: str, config: Any, vocabulary: int) -> Footprint:
    """Of an architecture by name, counted without making it.

    >>> from protea.models.autoregressive.llama import LlamaConfig
    >>> footprint_of("llama", LlamaConfig(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2), 100).numbers
    128
    """
    with torch.device("meta"):
        return footprint(ARCHITECTURES[name].build(config, vocabulary, vocabulary))
