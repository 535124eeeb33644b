r"""A residual perceptron whose blocks are modulated by time and label: the network of diffusion on vectors.

    h <- h + gate(c) * W_2 silu(W_1 (LN(h) (1 + scale(c)) + shift(c)))

is adaLN-Zero (Peebles & Xie 2023, "Scalable diffusion models with transformers"): the gates and the last layer start
at zero, so the untrained network is exactly 0. Beside x it sees sin(2^j x) and cos(2^j x), without which a perceptron
is slow to learn sharp functions of few inputs (Tancik et al. 2020, "Fourier features").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.nn.embedding import Conditioning


class ModulatedBlock(nn.Module):
    """One adaLN-Zero block on h (B, width), with condition c (B, cond)."""

    def __init__(self, width: int, cond: int, expansion: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(cond, 3 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width),
            nn.SiLU(),
            nn.Linear(expansion * width, width),
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(nn.functional.silu(c)).chunk(3, 1)
        return h + gate * self.mlp(self.norm(h) * (1 + scale) + shift)


class ModulatedMLP(nn.Module):
    """(x_t, t, y) to a tensor shaped as x_t, through `depth` modulated blocks.

    Args:
        event: shape of one sample; flattened inside.
        width: of the hidden layers, even.
        depth: blocks.
        classes: labels; 0 for none.
        octaves: of the Fourier features of x, j = 0 .. octaves-1; 0 for none.

    >>> import torch
    >>> net = ModulatedMLP((2,), width=32, depth=2)
    >>> net(torch.ones(3, 2), torch.full((3,), 0.5)).abs().max().item()
    0.0
    """

    def __init__(
        self, event: tuple[int, ...], width: int = 256, depth: int = 4, classes: int = 0, octaves: int = 3
    ) -> None:
        super().__init__()
        self.event, self.octaves, size = tuple(event), octaves, math.prod(event)
        self.condition = Conditioning(64, width, classes)
        self.first = nn.Linear(size * (1 + 2 * octaves), width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, size)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, *event) from x_t (B, *event), t (B,) in [0, 1] and y (B,) in 0 .. classes or None."""
        c = self.condition(t, y)
        x = x_t.flatten(1)
        waves = [wave(2.0**j * x) for j in range(self.octaves) for wave in (torch.sin, torch.cos)]
        h = self.first(torch.cat((x, *waves), 1))
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(nn.functional.silu(c)).chunk(2, 1)
        return self.last(self.norm(h) * (1 + scale) + shift).reshape(-1, *self.event)
