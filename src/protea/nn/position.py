r"""Positions: rotary, learned, sinusoidal.

Rotary (Su et al. 2021, "RoFormer"): pair j of a head's entries is turned by m theta_j at position m,

    theta_j = theta^(-2 j / D),   j = 0 .. D/2 - 1,

so that <R_m q, R_n k> depends on m - n alone. Pairs are laid out "half-split", (x_j, x_{j + D/2}), as in
GPT-NeoX and Hugging Face's Llama, or "interleaved", (x_{2j}, x_{2j+1}), as in the original and in Cohere's models;
one is a permutation of the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from protea.nn.context import Context
from protea.nn.fused import RotateByHand, by_hand

Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]


def rope_frequencies(d_head: int, theta: float = 10000.0) -> Tensor:
    """theta_j, (d_head / 2,) float32; on the CPU whatever the default device, so that a model can be built on none.

    >>> rope_frequencies(4, 100.0).round(decimals=3).tolist()
    [1.0, 0.10000000149011612]
    """
    return 1.0 / theta ** (torch.arange(0, d_head, 2, dtype=torch.float32, device="cpu") / d_head)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn half-split pairs of x (..., T, D) by angles given as cos and sin (..., T, D / 2)."""
    if by_hand(x):
        return RotateByHand.apply(x, cos, sin)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn interleaved pairs of x (..., T, D) by angles given as cos and sin (..., T, D / 2)."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


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
    """Rotary positions, for any position.

    Args:
        frequencies: theta_j, (D / 2,), see `rope_frequencies`; or a module that gives them, (..., D / 2), for the
            lengths (...) of the texts so far, see `nn/rope.py`. Entries of a head past D are left as they are.
        scale: multiplies cos and sin (YaRN's temperature).
        turn: `rotate` for half-split pairs, `rotate_interleaved`.

    >>> rope, q, k = RoPE(rope_frequencies(8)), torch.randn(1, 8), torch.randn(1, 8)
    >>> near = rope(q, torch.tensor([5])) @ rope(k, torch.tensor([2])).T
    >>> far = rope(q, torch.tensor([105])) @ rope(k, torch.tensor([102])).T
    >>> torch.allclose(near, far, atol=1e-4)
    True
    """

    frequencies: Tensor | None

    def __init__(self, frequencies: Tensor | nn.Module, scale: float = 1.0, turn: Rotate = rotate) -> None:
        super().__init__()
        fixed = isinstance(frequencies, Tensor)
        self.register_buffer("frequencies", frequencies if fixed else None, persistent=False)
        self.by_length = None if fixed else frequencies
        self.scale, self.turn = scale, turn

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of m theta_j, times the scale: float32 (T, D / 2), or (B, 1, T, D / 2) of positions (B, T)."""
        if self.by_length is None:
            assert self.frequencies is not None
            theta = self.frequencies
        else:
            theta = self.by_length(positions.amax(-1, keepdim=True) + 1)  # (1 or (B, 1), D / 2)
        angle = positions.float()[..., None] * theta
        if positions.ndim == 2:
            angle = angle[:, None]
        return (angle.cos(), angle.sin()) if self.scale == 1 else (angle.cos() * self.scale, angle.sin() * self.scale)

    def apply_to(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, H, T, D or more) turned by angles."""
        d = 2 * cos.shape[-1]
        if d == x.shape[-1]:
            return self.turn(x, cos, sin)
        return torch.cat((self.turn(x[..., :d], cos, sin), x[..., d:]), -1)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, H, T, D) turned to its positions, (T,) or (B, T) integers."""
        cos, sin = self.angles(positions)
        return self.apply_to(x, cos.to(x.dtype), sin.to(x.dtype))

    def share(self, x: Tensor, ctx: Context) -> Tensor:
        """The same at the context's positions, with angles worked out once for all layers."""
        return self.apply_to(x, *self.shared_angles(x.dtype, ctx))

    def shared_angles(self, dtype: torch.dtype, ctx: Context) -> tuple[Tensor, Tensor]:
        """cos and sin at the context's positions, worked out once for all layers."""
        key = (self, dtype)
        if key not in ctx.shared:
            cos, sin = self.angles(ctx.positions)
            ctx.shared[key] = cos.to(dtype), sin.to(dtype)
        return ctx.shared[key]


class LearnedPositions(nn.Module):
    """One learned vector for each position (Gehring et al. 2017; GPT), positions (...) to (..., d_model).

    >>> LearnedPositions(4, 8)(torch.arange(3)).shape
    torch.Size([3, 8])
    """

    def __init__(self, context: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(context, d_model))

    def forward(self, positions: Tensor) -> Tensor:
        return nn.functional.embedding(positions, self.weight)


class Sinusoidal(nn.Module):
    """sin(m theta_j) in entries 2j and cos(m theta_j) in 2j + 1 (Vaswani et al. 2017), for any position.

    >>> Sinusoidal(4)(torch.tensor([0])).tolist()
    [[0.0, 1.0, 0.0, 1.0]]
    """

    frequencies: Tensor

    def __init__(self, d_model: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", rope_frequencies(d_model, theta), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        angle = positions.float()[..., None] * self.frequencies
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)
