r"""Smaller memories of keys and values (AR-25): what a token costs, and codes of 8 or 4 bits.

    values per token and layer:  2 n_h d_h (multi-head),  2 n_kv d_h (grouped-query),  2 d_h (multi-query),
                                 d_c + d_R (multi-head latent);  a window keeps w tokens of them, a state none.

Codes: each token's vector of each head, x (D), becomes c = round((x - lo) / s), s = (hi - lo) / (2^bits - 1), with lo
and s beside the codes in half precision (asymmetric, per token; Liu et al. 2024, "KIVI"): D bits / 8 + 4 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from protea.errors import ConfigError
from protea.models.autoregressive.language import LanguageModel
from protea.nn.context import Context, Memory, Seen


def quantise(x: Tensor, bits: int) -> Tensor:
    """(..., D) to bytes (..., D bits / 8 + 4): codes, then lo and s as two float16 numbers. D is even for 4 bits.

    >>> x = torch.tensor([[-1.0, 0.0, 0.5, 1.0]])
    >>> quantise(x, 8).shape, dequantise(quantise(x, 8), 8, torch.float32).sub(x).abs().max().item() < 0.01
    (torch.Size([1, 8]), True)
    """
    if bits not in (4, 8) or (bits == 4 and x.shape[-1] % 2):
        raise ConfigError(f"{x.shape[-1]} entries cannot have codes of {bits} bits.", "Use 8, or 4 of an even number.")
    x = x.float()
    lo, hi = x.amin(-1, keepdim=True).half(), x.amax(-1, keepdim=True)
    s = ((hi - lo.float()) / (2**bits - 1)).clamp_min(2.0**-24).half()
    codes = ((x - lo.float()) / s.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return torch.cat((codes, torch.cat((lo, s), -1).view(torch.uint8)), -1)


def dequantise(codes: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The inverse, up to half a step."""
    lo, s = codes[..., -4:].contiguous().view(torch.float16).float().split(1, -1)
    codes = codes[..., :-4]
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    return torch.addcmul(lo, codes.float(), s).to(dtype)


class Quantised(Memory):
    """A memory that holds codes; what layers get back is decoded. States of recurrent layers stay as they are.

    Args:
        memory: that holds the codes: `Cache`, or a `PagedCache`.
        bits: 8 or 4.

    >>> from protea.nn.cache import Cache
    >>> memory = Quantised(Cache(4), bits=8)
    >>> (k,), _ = memory.context(2).remember(torch.randn(1, 1, 2, 16))
    >>> k.shape, memory.memory.nbytes                    # 4 tokens of 16 + 4 bytes, not of 64
    (torch.Size([1, 1, 2, 16]), 80)
    """

    def __init__(self, memory: Memory, bits: int = 8) -> None:
        self.memory, self.bits = memory, bits

    @property
    def length(self) -> int:
        """Tokens it holds."""
        return getattr(self.memory, "length", 0)

    def context(self, tokens: int, device: torch.device | str = "cpu") -> Context:
        inner = self.memory.context(tokens, device)
        return Context(inner.positions, inner.documents, inner.causal, self, shared={"inner": inner})

    def remember(self, ctx: Context, window: int | None, *new: Tensor) -> tuple[tuple[Tensor, ...], Seen]:
        inner = ctx.shared["inner"].at(ctx.layer)
        parts, seen = self.memory.remember(inner, window, *(quantise(p, self.bits) for p in new))
        return tuple(dequantise(c, self.bits, p.dtype) for c, p in zip(parts, new, strict=True)), seen

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        return self.memory.state(layer)

    def keep(self, layer: int, *state: Tensor) -> None:
        self.memory.keep(layer, *state)

    def advance(self, tokens: int) -> None:
        self.memory.advance(tokens)


class Cost(NamedTuple):
    """What a text's memory costs.

    Args:
        per_token: bytes that each token of layers without a window adds.
        fixed: bytes that do not grow: windows once they are full, and states.
        by_layer: bytes of each layer for the text that was asked about.
    """

    per_token: int
    fixed: int
    by_layer: Sequence[int]

    @property
    def total(self) -> int:
        """Bytes of the text that was asked about."""
        return sum(self.by_layer)


class _Meter(Memory):
    """Notes what layers remember."""

    def __init__(self) -> None:
        self.parts: dict[int, tuple[int | None, list[tuple[int, int, int]]]] = {}
        self.states: dict[int, int] = {}

    def context(self, tokens: int, device: torch.device | str = "cpu") -> Context:
        return Context(torch.arange(tokens, device=device), cache=self)

    def remember(self, ctx: Context, window: int | None, *new: Tensor) -> tuple[tuple[Tensor, ...], Seen]:
        self.parts[ctx.layer] = (window, [(p.shape[1], p.shape[3], p.element_size()) for p in new])
        slots = torch.arange(new[0].shape[-2], device=new[0].device)
        return new, Seen(slots, slots, causal=True)

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        return None

    def keep(self, layer: int, *state: Tensor) -> None:
        self.states[layer] = sum(t.nbytes for t in state)

    def advance(self, tokens: int) -> None:
        pass


@torch.no_grad()
def cost(model: LanguageModel, tokens: int, bits: int | None = None) -> Cost:
    """Bytes that the memory of one text of so many tokens takes, told by its layers themselves.

    Args:
        model: whose layers are asked, with one token.
        tokens: of the text.
        bits: of codes (`Quantised`); None for the model's own numbers.

    >>> from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    >>> from protea.spaces import Tokens
    >>> llama = language_model("llama", Tokens(64), ARCHITECTURES["llama"].scaled(2, 64, 64))   # 1 key head of 32
    >>> cost(llama, 64).per_token, cost(llama, 64, bits=8).per_token                             # 2 x 2 x 32 x 4
    (512, 144)
    """
    meter = _Meter()
    device = next(model.parameters()).device
    model.net.hidden(torch.zeros(1, 1, dtype=torch.int64, device=device), meter.context(1, device))
    each: dict[int, tuple[int | None, int]] = {}
    for layer, (window, parts) in meter.parts.items():
        bytes_ = sum(h * (d * size if bits is None else d * bits // 8 + 4) for h, d, size in parts)
        each[layer] = (window, bytes_)
    layers = sorted({*each, *meter.states})
    held = {n: b * (tokens if w is None else min(tokens, w)) for n, (w, b) in each.items()}
    by_layer = [held.get(n, 0) + meter.states.get(n, 0) for n in layers]
    return Cost(
        per_token=sum(b for w, b in each.values() if w is None),
        fixed=sum(b * w for w, b in each.values() if w is not None) + sum(meter.states.values()),
        by_layer=by_layer,
    )
