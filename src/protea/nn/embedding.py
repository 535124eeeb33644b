r"""Time and label as one vector, which modulates every block of a diffusion network.

Time becomes gamma(t) = (cos(w_j 1000 t), sin(w_j 1000 t)), w_j = 10000^(-j / (dim/2)) (Vaswani et al. 2017; Ho et al.
2020), then a small MLP; the label's embedding is added (Dhariwal & Nichol 2021).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoid(t: Tensor, dim: int, scale: float = 1000.0, period: float = 10000.0) -> Tensor:
    """gamma(t), (B, dim), of times (B,) in [0, 1]; dim is even.

    >>> sinusoid(torch.zeros(1), 4).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    half = dim // 2
    w = torch.exp(-math.log(period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = scale * t.float()[:, None] * w
    return torch.cat((angle.cos(), angle.sin()), 1)


class Conditioning(nn.Module):
    """(t, y) to a vector of `width`: MLP(gamma(t)) + E[y], where index `classes` of E stands for "no label".

    Args:
        dim: of the sinusoidal features, even.
        width: of the result.
        classes: labels; 0 for none.
    """

    def __init__(self, dim: int, width: int, classes: int = 0) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.linear_1, self.linear_2 = nn.Linear(dim, width), nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, width) from t (B,) and y (B,) in 0 .. classes, or None for "no label"."""
        c = self.linear_2(nn.functional.silu(self.linear_1(sinusoid(t, self.dim))))
        if self.label is None:
            return c
        y = torch.full((len(t),), self.classes, device=t.device) if y is None else y
        return c + self.label(y)
