"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protea.nn.fused import RMSNormByHand, by_hand
from protea.nn.precise import precise


class RMSNorm(nn.Module):
    r"""x / sqrt(mean(x^2) + eps) * g over the last axis.

    Zhang & Sennrich 2019, "Root mean square layer normalization". Computed in float32 whatever the input's precision.

    Args:
        dim: of the last axis.
        eps: added to the mean square.

    >>> RMSNorm(2)(torch.tensor([3.0, 4.0])).square().mean().round(decimals=4).item()
    1.0
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if by_hand(x):
            return RMSNormByHand.apply(x, self.g, self.eps)
        return self.g * nn.functional.rms_norm(precise(x), self.g.shape, eps=self.eps).to(x.dtype)


class OffsetRMSNorm(nn.Module):
    r"""x / sqrt(mean(x^2) + eps) * (1 + g), all in float32 (Gemma team 2024): weight decay pulls the gain to one.

    >>> OffsetRMSNorm(2)(torch.tensor([3.0, 4.0])).square().mean().round(decimals=4).item()
    1.0
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = nn.functional.rms_norm(precise(x), self.g.shape, eps=self.eps)
        return (normed * (1.0 + precise(self.g))).to(x.dtype)
