r"""The U-Net of DDPM (Ho et al. 2020): residual blocks with GroupNorm and SiLU, time added inside each block.

Down: per level `depth` residual blocks, then a strided convolution. Middle: block, attention, block. Up: per level
`depth + 1` blocks, each on the features beside the skip of the same size, then nearest-neighbour upsampling and a
convolution. Attention follows each block of the levels where it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.nn.attention2d import Attention2D
from protea.nn.embedding import Conditioning


class ResidualBlock2D(nn.Module):
    """skip(x) + conv_2(silu(GN(conv_1(silu(GN(x))) + W silu(c)))), (B, outputs, H, W).

    Args:
        inputs, outputs: channels; the skip is a 1x1 convolution where they differ.
        cond: width of the condition c (B, cond).
        groups: of both normalisations.
    """

    def __init__(self, inputs: int, outputs: int, cond: int, groups: int = 8) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.cond = nn.Linear(cond, outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        silu = nn.functional.silu
        h = self.conv_1(silu(self.norm_1(x))) + self.cond(silu(c))[:, :, None, None]
        return self.skip(x) + self.conv_2(silu(self.norm_2(h)))


class UNet(nn.Module):
    """(x_t, t, y) to a tensor shaped as x_t, for images of any size.

    Sides that do not halve evenly `len(widths) - 1` times are padded by repeating the edge, and cropped at the end.
    The last convolution of every block and of the network start at zero, so the untrained network is exactly 0.

    Args:
        channels: of the image.
        widths: channels of each level, from full to lowest resolution; multiples of `groups`.
        depth: residual blocks a level.
        classes: labels; 0 for none.
        attention: which levels have attention, as many as `widths`; None for the lowest alone.
        groups: of the normalisations.
        head_dim: channels of an attention head.

    Raises:
        ConfigError: for widths that `groups` or `head_dim` does not divide.

    >>> net = UNet(1, (8, 16), depth=1)
    >>> net(torch.ones(2, 1, 7, 5), torch.full((2,), 0.5)).shape
    torch.Size([2, 1, 7, 5])
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (32, 64),
        depth: int = 1,
        classes: int = 0,
        *,
        attention: Sequence[bool] | None = None,
        groups: int = 8,
        head_dim: int = 8,
    ) -> None:
        super().__init__()
        bad = [w for w in widths if w % groups or w % head_dim]
        if bad or not widths:
            raise ConfigError(
                f"U-Net widths {tuple(widths)} do not suit {groups} groups and heads of {head_dim} channels.",
                f"Use multiples of {max(groups, head_dim)}.",
            )
        attend = [i == len(widths) - 1 for i in range(len(widths))] if attention is None else list(attention)
        cond = 4 * widths[0]
        self.multiple = 2 ** (len(widths) - 1)

        def block(inputs: int, outputs: int) -> ResidualBlock2D:
            return ResidualBlock2D(inputs, outputs, cond, groups)

        def attends(level: int) -> nn.Module:
            return Attention2D(widths[level], head_dim, groups) if attend[level] else nn.Identity()

        self.condition = Conditioning(widths[0], cond, classes)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, w in enumerate(widths):
            stage = nn.ModuleDict({"blocks": nn.ModuleList(), "attention": nn.ModuleList()})
            for _ in range(depth):
                stage["blocks"].append(block(width, w))
                stage["attention"].append(attends(level))
                width = w
                skips.append(w)
            if level < len(widths) - 1:
                stage["resample"] = nn.Conv2d(w, w, 3, stride=2, padding=1)
                skips.append(w)
            self.down.append(stage)
        self.middle = nn.ModuleList((block(width, width), Attention2D(width, head_dim, groups), block(width, width)))
        for level in reversed(range(len(widths))):
            stage = nn.ModuleDict({"blocks": nn.ModuleList(), "attention": nn.ModuleList()})
            for _ in range(depth + 1):
                stage["blocks"].append(block(width + skips.pop(), widths[level]))
                stage["attention"].append(attends(level))
                width = widths[level]
            if level > 0:
                stage["resample"] = nn.Conv2d(width, width, 3, padding=1)
            self.up.append(stage)
        self.norm, self.last = nn.GroupNorm(groups, width), nn.Conv2d(width, channels, 3, padding=1)
        for layer in (self.last, *(m.conv_2 for m in self.modules() if isinstance(m, ResidualBlock2D))):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W) from x_t (B, C, H, W), t (B,) in [0, 1] and y (B,) in 0 .. classes or None."""
        height, width = x_t.shape[-2:]
        pad = (-width % self.multiple, -height % self.multiple)
        c = self.condition(t, y)
        h = self.first(nn.functional.pad(x_t, (0, pad[0], 0, pad[1]), mode="replicate") if any(pad) else x_t)
        skips = [h]
        for stage in cast(Any, self.down):
            for block, attention in zip(stage["blocks"], stage["attention"]):
                h = attention(block(h, c))
                skips.append(h)
            if "resample" in stage:
                h = stage["resample"](h)
                skips.append(h)
        h = self.middle[2](self.middle[1](self.middle[0](h, c)), c)
        for stage in cast(Any, self.up):
            for block, attention in zip(stage["blocks"], stage["attention"]):
                h = attention(block(torch.cat((h, skips.pop()), 1), c))
            if "resample" in stage:
                h = stage["resample"](nn.functional.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.last(nn.functional.silu(self.norm(h)))[..., :height, :width]
