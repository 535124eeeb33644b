r"""Rotary frequencies theta_j for texts longer than those of training, and the layer made of them.

With D entries turned, base theta, theta_j = theta^(-2j/D) and a context grown by the factor s:

    linear    theta_j / s                                          (Chen et al. 2023, "Extending context window")
    dynamic   base theta (s L / L_0 - (s - 1))^(D / (D - 2))        for texts of L > L_0 tokens (NTK-aware, 2023)
    yarn      (1 - r_j) theta_j / s + r_j theta_j                  (Peng et al. 2023, "YaRN")
              with r_j falling from 1 to 0 between the entries that turn beta_fast and beta_slow times in L_0
              tokens, and scores tempered: cos and sin are multiplied by 0.1 ln s + 1
    longrope  theta_j / lambda_j, searched lambda_j for texts of up to and of more than L_0 tokens (Ding et al. 2024)
    llama3    theta_j / s below, theta_j above two wavelengths, linear in 1 / wavelength between (Llama team 2024)
    proportional   theta^(-2j/D_h) of the first entries, 0 for the rest, over the whole head (Gemma team 2025)

Settings have the names that config files give them, so that they can be read off there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from protea.errors import ConfigError, nearest
from protea.nn.position import RoPE, Rotate, rope_frequencies, rotate

Scaled = tuple[Tensor | nn.Module, float]  # theta_j, or what gives them for a length; and the factor of cos and sin


class DynamicNTK(nn.Module):
    """theta_j with a base that grows with the text: lengths L (...) to (..., D / 2)."""

    def __init__(self, d: int, theta: float, factor: float, length: int) -> None:
        super().__init__()
        self.d, self.theta, self.factor, self.length = d, theta, factor, length

    def forward(self, length: Tensor) -> Tensor:
        grown = self.factor * length.clamp_min(self.length).float() / self.length - (self.factor - 1)
        base = self.theta * grown ** (self.d / (self.d - 2))
        j = torch.arange(0, self.d, 2, dtype=torch.float32, device=length.device)
        return 1.0 / base[..., None] ** (j / self.d)


class ShortLong(nn.Module):
    """theta_j of texts of up to `length` tokens, and of longer ones: lengths L (...) to (..., D / 2)."""

    short: Tensor
    long: Tensor

    def __init__(self, short: Tensor, long: Tensor, length: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("short", short, persistent=False)
        self.register_buffer("long", long, persistent=False)

    def forward(self, length: Tensor) -> Tensor:
        return torch.where(length[..., None] > self.length, self.long, self.short)


def linear(d: int, theta: float, context: int, *, factor: float) -> Scaled:
    """Positions divided by `factor`."""
    return rope_frequencies(d, theta) / factor, 1.0


def dynamic(
    d: int, theta: float, context: int, *, factor: float, original_max_position_embeddings: int | None = None
) -> Scaled:
    """The base grows once a text is longer than the context of training."""
    return DynamicNTK(d, theta, factor, original_max_position_embeddings or context), 1.0


def _mscale(factor: float, m: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0


def yarn(
    d: int, theta: float, context: int, *, original_max_position_embeddings: int, factor: float | None = None,
    attention_factor: float | None = None, beta_fast: float = 32.0, beta_slow: float = 1.0,
    mscale: float | None = None, mscale_all_dim: float | None = None, truncate: bool = True,
) -> Scaled:  # fmt: skip
    """Fast entries stay, slow ones are interpolated, scores are tempered."""
    length = original_max_position_embeddings
    s = factor or context / length
    if attention_factor is None:
        both = mscale and mscale_all_dim
        attention_factor = _mscale(s, mscale) / _mscale(s, mscale_all_dim) if both else _mscale(s)  # type: ignore[arg-type]

    def entry(turns: float) -> float:
        """Which entry turns that often in `length` tokens."""
        return d * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = entry(beta_fast or 32.0), entry(beta_slow or 1.0)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    high = high + 0.001 if low == high else high
    r = 1 - ((torch.arange(d // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    plain = rope_frequencies(d, theta)
    return plain / s * (1 - r) + plain * r, attention_factor


def longrope(
    d: int, theta: float, context: int, *, short_factor: list[float], long_factor: list[float],
    original_max_position_embeddings: int, factor: float | None = None, attention_factor: float | None = None,
) -> Scaled:  # fmt: skip
    """Searched divisors of every entry, one set for short and one for long texts."""
    length = original_max_position_embeddings
    if len(short_factor) != d // 2 or len(long_factor) != d // 2:
        raise ConfigError(
            f"LongRoPE was given {len(short_factor)} short and {len(long_factor)} long factors.",
            f"Give one of each for all {d // 2} frequencies.",
        )
    s = factor or context / length
    if attention_factor is None:
        attention_factor = 1.0 if s <= 1 else math.sqrt(1 + math.log(s) / math.log(length))
    power = theta ** (torch.arange(0, d, 2, dtype=torch.float32, device="cpu") / d)
    short, long = (1.0 / (torch.tensor(f, device="cpu") * power) for f in (short_factor, long_factor))
    return ShortLong(short, long, length), attention_factor


def llama3(
    d: int, theta: float, context: int, *, factor: float, low_freq_factor: float, high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Scaled:  # fmt: skip
    """Long waves are interpolated, short ones stay, those between blend."""
    plain = rope_frequencies(d, theta)
    turns = original_max_position_embeddings * plain / (2 * math.pi)  # of an entry in the context of training
    blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return (1 - blend) * plain / factor + blend * plain, 1.0


def proportional(d: int, theta: float, context: int, *, factor: float = 1.0, share: float = 1.0) -> Scaled:
    """The first `share` of the entries turn; d is the width of the head."""
    turned = int(share * d // 2)
    plain = rope_frequencies(d, theta)
    return torch.where(torch.arange(d // 2, device="cpu") < turned, plain, 0.0) / factor, 1.0


SCALINGS: dict[str, Callable[..., Scaled]] = {
    "linear": linear, "dynamic": dynamic, "yarn": yarn, "longrope": longrope, "llama3": llama3,
    "proportional": proportional,
}  # fmt: skip


def frequencies(d_head: int, theta: float, scaling: Mapping[str, Any] | None = None, context: int = 0) -> Scaled:
    """theta_j (or what gives them for a length) and the factor of cos and sin.

    Args:
        d_head: width of a head.
        theta: base.
        scaling: settings of a function of `SCALINGS`, with its name as "rope_type" and perhaps the share of a head
            that is turned as "partial_rotary_factor"; None for none.
        context: the longest text, where the scaling does not say.

    Raises:
        ConfigError: an unknown scaling, or settings that it does not have or lacks.

    >>> frequencies(4, 100.0, {"rope_type": "linear", "factor": 2.0})[0].tolist()
    [0.5, 0.05000000074505806]
    """
    settings = dict(scaling or {"rope_type": "default"})
    kind, share = settings.pop("rope_type", "default"), settings.pop("partial_rotary_factor", 1.0)
    if kind == "default" and not settings:
        return rope_frequencies(int(d_head * share), theta), 1.0
    if kind not in SCALINGS:
        raise ConfigError(f"There is no rotary scaling {kind!r}.", nearest(str(kind), SCALINGS))
    if kind == "proportional":
        settings["share"], share = share, 1.0
    try:
        return SCALINGS[kind](int(d_head * share), theta, context, **settings)
    except TypeError as error:
        raise ConfigError(
            f"The rotary scaling {kind!r} was given {settings}: {error}.", "Check its settings."
        ) from None


def make_rope(
    d_head: int, theta: float = 10000.0, scaling: Mapping[str, Any] | None = None, context: int = 0,
    turn: Rotate = rotate,
) -> RoPE:  # fmt: skip
    """The rotary layer of `frequencies`, with pairs laid out as `turn` has them."""
    theta_j, scale = frequencies(d_head, theta, scaling, context)
    return RoPE(theta_j, scale, turn)
