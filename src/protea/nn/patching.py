r"""Where patches of bytes begin (Pagnoni et al. 2024, "Byte latent transformer: patches scale better than tokens").

A small byte model says how uncertain the next byte is, H_t = H(x_{t+1} | x_<=t) in nats. Byte t + 1 begins a patch
where

    global     H_t > theta                  the next byte is hard to guess
    relative   H_t - H_{t-1} > theta        it is harder than the one before ("approximate monotonic constraint")

and the first two bytes of every text do. A patch of more than `longest` bytes is cut. Whether byte t + 1 begins a patch
is known once byte t is, so patches are found while a text is written, and never depend on what follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from protea.errors import ConfigError
from protea.nn.precise import precise


def entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits) over the last axis, in nats.

    >>> entropy(torch.zeros(4)).exp().round().item()
    4.0
    """
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def level(H: Tensor, before: Tensor) -> Tensor:
    """H_t itself."""
    return H


def rise(H: Tensor, before: Tensor) -> Tensor:
    """H_t - H_{t-1}."""
    return H - before


RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"global": level, "relative": rise}


def shifted(H: Tensor, first: Tensor | None = None) -> Tensor:
    """H_{t-1} of H (B, T); `first` (B,) is what came before, zeros when None."""
    start = torch.zeros_like(H[:, :1]) if first is None else first[:, None]
    return torch.cat((start, H[:, :-1]), 1)


def patch_starts(
    score: Tensor, theta: Tensor | float, positions: Tensor, longest: int | None = None
) -> tuple[Tensor, Tensor]:
    """Which bytes begin a patch, and after which a next byte of the same text would: (B, T) booleans each.

    Args:
        score: (B, T), of the rule; large where the byte that follows should begin a patch.
        theta: what it must exceed.
        positions: (B, T), of the bytes in their texts; negative for padding, which forms patches of its own.
        longest: bytes of a patch at most; None for no limit.

    Raises:
        ConfigError: patches of no bytes.

    >>> score = torch.tensor([[9.0, 0.0, 2.0, 0.0, 0.0, 0.0]])
    >>> patch_starts(score, 1.0, torch.arange(6)[None])[0].int().tolist()
    [[1, 1, 0, 1, 0, 0]]
    >>> patch_starts(score, 1.0, torch.arange(6)[None], longest=2)[0].int().tolist()
    [[1, 1, 0, 1, 0, 1]]
    """
    if longest is not None and longest < 1:
        raise ConfigError(f"A patch of at most {longest} bytes is none.", "Give at least 1, or None for no limit.")
    follows = positions + 1
    cut = ((score > theta) & (follows > 1)) | (follows == 0) | (follows == 1)
    first = torch.ones_like(cut[:, :1])
    if longest is not None:
        slots = torch.arange(cut.shape[1], device=score.device)
        starts = torch.cat((first, cut[:, :-1]), 1) | (positions == 0)
        begun = torch.where(starts, slots, 0).cummax(1).values  # of patches before the limit cuts them
        cut = cut | ((slots + 1 - begun) % longest == 0)
    return torch.cat((first, cut[:, :-1]), 1) | (positions == 0), cut


def calibrated(score: Tensor, size: float) -> Tensor:
    """The theta at which patches are of `size` bytes on average: the 1 - 1 / size quantile of the scores (N,).

    >>> calibrated(torch.arange(101.0), 4.0).item()
    75.0
    """
    if not size > 1:
        raise ConfigError(f"Patches of {size} bytes on average cannot be.", "Ask for more than 1.")
    ordered, place = precise(score).flatten().sort().values, (score.numel() - 1) * (1 - 1 / size)
    return ordered[math.floor(place)].lerp(ordered[math.ceil(place)], place % 1)
