r"""Rotary positions (Su et al. 2021, "RoFormer"): pair j of a head's entries is turned by m theta_j at position m.

    theta_j = theta^(-2 j / D),   j = 0 .. D/2 - 1,

so that <R_m q, R_n k> depends on m - n alone. Pairs are laid out "half-split", (x_j, x_{j + D/2}), as in
GPT-NeoX and Hugging Face's Llama; the original's "interleaved" pairs (x_{2j}, x_{2j+1}) are a permutation of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rope_frequencies(d_head: int, theta: float = 10000.0) -> Tensor:
    """theta_j, (d_head / 2,) float32.

    >>> rope_frequencies(4, 100.0).round(decimals=3).tolist()
    [1.0, 0.10000000149011612]
    """
    return 1.0 / theta ** (torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn half-split pairs of x (..., T, D) by angles given as cos and sin (..., T, D / 2)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def half_split(x: Tensor) -> Tensor:
    """Interleaved pairs of the last axis to half-split ones; apply to the rows of W_q and W_k to convert weights.

    >>> half_split(torch.tensor([0, 1, 2, 3])).tolist()
    [0, 2, 1, 3]
    """
    return torch.cat((x[..., 0::2], x[..., 1::2]), -1)


def interleaved(x: Tensor) -> Tensor:
    """The inverse of `half_split`."""
    return torch.stack(x.chunk(2, -1), -1).flatten(-2)


class RoPE(nn.Module):
    """Rotary positions with given frequencies, for any position.

    Args:
        frequencies: theta_j, (D / 2,); see `rope_frequencies`.

    >>> rope, q, k = RoPE(rope_frequencies(8)), torch.randn(1, 8), torch.randn(1, 8)
    >>> near = rope(q, torch.tensor([5])) @ rope(k, torch.tensor([2])).T
    >>> far = rope(q, torch.tensor([105])) @ rope(k, torch.tensor([102])).T
    >>> torch.allclose(near, far, atol=1e-4)
    True
    """

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, H, T, D) turned to its positions, (T,) or (B, T) integers."""
        angle = positions.float()[..., None] * self.frequencies
        if positions.ndim == 2:
            angle = angle[:, None]
        return rotate(x, angle.cos().to(x.dtype), angle.sin().to(x.dtype))
