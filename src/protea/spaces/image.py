r"""Images of fixed size with L levels a channel.

Likelihoods are given in bits per dimension, -log p(x) / (C H W ln 2) of the *discrete* pixel values
0 .. L-1: a probability mass, so at least 0, and at most log2 L for a model that is better than noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from protea.errors import DataError
from protea.space import Field, Space

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's names by number of channels


@dataclass(frozen=True)
class Image(Space):
    """Images: uint8 (N, C, H, W) with values 0 .. levels-1.

    Args:
        channels: 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA.
        height, width: pixels.
        levels: number of values of a channel, 2 to 256. Pictures shown to people are stretched to 0..255.
        classes: names of the labels.

    >>> space = Image(1, 2, 2, levels=17)
    >>> x = torch.tensor([[[[0, 16], [8, 3]]]], dtype=torch.uint8)
    >>> bool((space.encode(space.decode(x)) == x).all())
    True
    """

    channels: int
    height: int
    width: int
    levels: int = 256
    classes: tuple[str, ...] = ()
    kind: ClassVar[str] = "image"
    dtype: ClassVar[torch.dtype] = torch.uint8

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if self.channels not in MODES or not 2 <= self.levels <= 256 or min(self.height, self.width) < 1:
            raise DataError(
                f"No image has {self.channels} channels, size {self.height}x{self.width} and {self.levels} levels.",
                "Channels are 1 to 4, levels 2 to 256, and sides at least 1.",
            )

    @property
    def event(self) -> tuple[int, ...]:
        return (self.channels, self.height, self.width)

    @property
    def fields(self) -> list[Field]:
        names = (f"{c},{i},{j}" for c in range(self.channels) for i in range(self.height) for j in range(self.width))
        return [Field(name, "grid", levels=self.levels) for name in names]

    def encode(self, raw: Any) -> Tensor:
        """Images to uint8 (N, C, H, W).

        Args:
            raw: a Pillow image or a list of them (converted to the space's channels, 0..255 shrunk to the
                levels); a torch tensor (N, C, H, W); or a numpy array (N, H, W) or (N, H, W, C). Tensors and
                arrays hold whole numbers 0 .. levels-1. One image without the leading N is accepted too.

        Raises:
            DataError: another size, other values.
        """
        if hasattr(raw, "convert"):
            raw = [raw]
        if isinstance(raw, Sequence) and len(raw) and all(hasattr(item, "convert") for item in raw):
            pixels = np.stack([self._pixels(picture, i) for i, picture in enumerate(raw)])
            return self._place(torch.from_numpy(np.rint(pixels * ((self.levels - 1) / 255)).astype(np.uint8)))
        if isinstance(raw, Tensor):
            x = raw[None] if raw.ndim == 3 else raw
            if tuple(x.shape[1:]) != self.event:
                raise self._shape_error(tuple(raw.shape))
        else:
            array = np.asarray(raw)
            if array.dtype.kind not in "uifb":
                raise DataError(
                    f"Pixels of type {array.dtype} are not numbers.", "Give whole numbers or Pillow images."
                )
            array = (
                array[None]
                if array.shape == self.event[1:] or array.shape == (*self.event[1:], self.channels)
                else array
            )
            array = array[..., None] if array.ndim == 3 and self.channels == 1 else array
            if array.ndim != 4 or array.shape[1:] != (self.height, self.width, self.channels):
                raise self._shape_error(np.shape(raw))
            x = self._place(torch.from_numpy(np.ascontiguousarray(array)))
        if x.is_floating_point() and not bool((torch.isfinite(x) & (x == x.round())).all()):
            raise DataError("Pixel values are not whole numbers.", f"Scale and round them to 0 .. {self.levels - 1}.")
        if len(x) and (int(x.min()) < 0 or int(x.max()) >= self.levels):
            raise DataError(
                f"Pixel values run from {int(x.min())} to {int(x.max())}, outside 0 .. {self.levels - 1}.",
                "Rescale the images, or open them with the number of levels they have.",
            )
        return x.to(torch.uint8)

    def decode(self, x: Tensor) -> list[Any]:
        """A list of Pillow images, levels stretched to 0..255."""
        from PIL import Image as Pillow

        pixels = torch.round(x.detach().cpu().double() * (255 / (self.levels - 1))).clamp(0, 255).to(torch.uint8)
        pixels = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return [Pillow.fromarray(p[..., 0] if self.channels == 1 else p) for p in pixels]

    def features(self, x: Tensor) -> Tensor:
        """(N, C H W): pixels on [0, 1]."""
        return x.reshape(len(x), math.prod(self.event)).double() / (self.levels - 1)

    def likelihood(self, nats: Tensor) -> tuple[Tensor, str]:
        """-log p / (C H W ln 2), "bits per dimension": lower is better."""
        return -nats / (math.prod(self.event) * math.log(2)), "bits per dimension"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "channels": self.channels, "height": self.height, "width": self.width,
            "levels": self.levels, "classes": list(self.classes),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Image:
        """Rebuild what `to_json` wrote."""
        sizes = (int(value[k]) for k in ("channels", "height", "width", "levels"))
        return cls(*sizes, classes=tuple(value["classes"]))

    def _pixels(self, picture: Any, i: int) -> np.ndarray:
        if picture.size != (self.width, self.height):
            raise DataError(
                f"Image {i} is {picture.size[0]}x{picture.size[1]}, but {self.width}x{self.height} was expected.",
                "Resize the images first.",
            )
        array = np.asarray(picture.convert(MODES[self.channels]))
        return array[..., None] if self.channels == 1 else array

    @staticmethod
    def _place(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous()  # (N, H, W, C) to (N, C, H, W)

    def _shape_error(self, shape: tuple[int, ...]) -> DataError:
        return DataError(
            f"Images of shape {self.event} (channels, height, width) were expected, but got {shape}.",
            f"Arrays are (N, {self.height}, {self.width}[, {self.channels}]), tensors (N, {self.channels}, ...).",
        )
