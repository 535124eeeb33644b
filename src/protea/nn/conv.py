"""Convolutional encoder and decoder of small images: strided convolutions between a picture and a vector."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from protea.nn.mlp import ResidualMLP


def halvings(event: tuple[int, ...], smallest: int = 4) -> int:
    """How often both sides of an image (C, H, W) can be halved, leaving at least `smallest`; 0 if not an image.

    >>> halvings((1, 28, 28)), halvings((3, 32, 64)), halvings((1, 9, 9)), halvings((5,))
    (2, 3, 0, 0)
    """
    if len(event) != 3:
        return 0
    sides, count = event[1:], 0
    while all(side % 2 == 0 and side // 2 >= smallest for side in sides):
        sides, count = tuple(side // 2 for side in sides), count + 1
    return count


def is_convolutional(event: tuple[int, ...]) -> bool:
    """Whether the convolutional networks fit: an image whose sides can be halved at least once."""
    return halvings(event) > 0


def _levels(event: tuple[int, ...], channels: int) -> tuple[list[int], tuple[int, int, int]]:
    """Channels of each resolution, finest first (doubled at each halving, at most 8 times), and the coarsest shape."""
    n = halvings(event)
    widths = [channels * min(2**i, 8) for i in range(n + 1)]
    return widths, (widths[-1], event[1] >> n, event[2] >> n)


class ConvEncoder(nn.Module):
    """Image (B, C, H, W) and labels (B,) to (B, outputs): 4x4 convolutions of stride 2, then a perceptron.

    Args:
        event: (C, H, W) with sides that can be halved (see `halvings`).
        outputs: entries of the result.
        channels: at full resolution.
        width, depth, classes: of the perceptron, which is where labels enter.
        activation: makes an activation.
    """

    def __init__(
        self, event: tuple[int, ...], outputs: int, *, channels: int = 16, width: int = 128, depth: int = 1,
        classes: int = 0, activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:  # fmt: skip
        super().__init__()
        widths, coarsest = _levels(event, channels)
        parts: list[nn.Module] = [nn.Conv2d(event[0], widths[0], 3, padding=1), activation()]
        for narrow, wide in pairwise(widths):
            parts += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), activation()]
        self.trunk = nn.Sequential(*parts)
        self.head = ResidualMLP(
            math.prod(coarsest), outputs, width=width, depth=depth, classes=classes, activation=activation
        )

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.head(self.trunk(x), y)


class ConvDecoder(nn.Module):
    """Vector (B, inputs) and labels (B,) to image (B, C, H, W): a perceptron, then 4x4 transposed convolutions.

    Args: as those of `ConvEncoder`, and
        norm: makes a normalisation of so many channels; it must not mix the samples of a batch.
    """

    def __init__(
        self, inputs: int, event: tuple[int, ...], *, channels: int = 16, width: int = 128, depth: int = 1,
        classes: int = 0, activation: Callable[[], nn.Module] = nn.SiLU,
        norm: Callable[[int], nn.Module] = lambda channels: nn.GroupNorm(1, channels),
    ) -> None:  # fmt: skip
        super().__init__()
        widths, self.coarsest = _levels(event, channels)
        self.stem = ResidualMLP(
            inputs, math.prod(self.coarsest), width=width, depth=depth, classes=classes, activation=activation
        )
        parts: list[nn.Module] = []
        for wide, narrow in zip(widths[:0:-1], widths[-2::-1]):
            parts += [norm(wide), activation(), nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)]
        parts += [norm(widths[0]), activation(), nn.Conv2d(widths[0], event[0], 3, padding=1)]
        self.trunk = nn.Sequential(*parts)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.trunk(self.stem(z, y).unflatten(1, self.coarsest))
