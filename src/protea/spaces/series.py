r"""Sequences of unequal length over D channels of real numbers.

Canonical: float64 (N, T, D). A series of L <= T steps fills the first L; every entry after them is NaN. NaN before that
is a missing value. So the length is where the last known value stands, and a series without any has length 0; a missing
value at the very end cannot be told from the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from protea.errors import DataError
from protea.space import Field, Measured, Space

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Series(Space):
    """Series of at most T steps.

    Args:
        names: one for each channel.
        steps: T.
        classes: names of the labels, where series are labelled.

    >>> space = Series(("x",), 3)
    >>> space.encode([[[1.0], [2.0]], [[3.0]]])[..., 0].tolist()
    [[1.0, 2.0, nan], [3.0, nan, nan]]
    """

    names: tuple[str, ...]
    steps: int
    classes: tuple[str, ...] = ()
    kind: ClassVar[str] = "series"
    dtype: ClassVar[torch.dtype] = torch.float64

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(map(str, self.names)))
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if not self.names or self.steps < 1:
            raise DataError(f"Series of {self.steps} steps and {len(self.names)} channels make no sense.",
                            "Give at least one of each.")  # fmt: skip

    @property
    def event(self) -> tuple[int, ...]:
        return (self.steps, len(self.names))

    @property
    def fields(self) -> list[Field]:
        return [Field(f"{name} {t}", "real", missing=True) for t in range(self.steps) for name in self.names]

    def encode(self, raw: Any) -> Tensor:
        """An array (N, T', D) or (N, T'), T' <= T, or a sequence of arrays (L, D), to float64 (N, T, D).

        Raises:
            DataError: infinite values, other channels, or more than T steps.
        """
        if isinstance(raw, Sequence) and not isinstance(raw, (str, bytes)):
            parts = [np.asarray(part, dtype=np.float64) for part in raw]
        else:
            parts = list(np.asarray(raw, dtype=np.float64))
        d = len(self.names)
        out = np.full((len(parts), self.steps, d), np.nan)
        for i, part in enumerate(parts):
            part = part[:, None] if part.ndim == 1 and d == 1 else part.reshape(0, d) if part.size == 0 else part
            if part.ndim != 2 or part.shape[1] != d or len(part) > self.steps:
                raise DataError(f"Series {i} has shape {part.shape}.",
                                f"Give (steps, {d}) with at most {self.steps} steps.")  # fmt: skip
            out[i, : len(part)] = part
        if np.isinf(out).any():
            raise DataError(f"Series {int(np.isinf(out).any((1, 2)).argmax())} holds an infinite value.",
                            "Mark missing values as NaN.")  # fmt: skip
        return torch.from_numpy(out)

    def lengths(self, x: Tensor) -> Tensor:
        """(N,) steps up to the last known value.

        >>> Series(("x",), 2).lengths(torch.tensor([[[1.0], [float("nan")]]]))
        tensor([1])
        """
        t = torch.arange(1, self.steps + 1, device=x.device)
        return ((~x.isnan()).any(2) * t).amax(1)

    def decode(self, x: Tensor) -> list[np.ndarray]:
        """A list of float64 arrays (L, D), each as long as its series."""
        return [row[:n].cpu().double().numpy() for row, n in zip(x.detach(), self.lengths(x).tolist())]

    def features(self, x: Tensor) -> Tensor:
        """(N, 1 + 8 D): the length, and of each channel mean, deviation, 10, 50 and 90 % quantiles, mean absolute step,
        lag-1 autocorrelation and share of missing steps; 0 where a series is too short to have one."""
        x = x.double()
        n = self.lengths(x)[:, None].double()
        seen = ~x.isnan()
        count = seen.sum(1).clamp(min=1)
        zero = torch.where(seen, x, 0.0)
        mean = zero.sum(1) / count
        centred = torch.where(seen, x - mean[:, None], 0.0)
        spread = (centred.square().sum(1) / count).sqrt()
        quantiles = torch.nanquantile(x, torch.tensor(QUANTILES, dtype=torch.float64, device=x.device), dim=1)
        both = seen[:, 1:] & seen[:, :-1]
        pairs = both.sum(1).clamp(min=1)
        jump = torch.where(both, (zero[:, 1:] - zero[:, :-1]).abs(), 0.0).sum(1) / pairs
        lagged = torch.where(both, centred[:, 1:] * centred[:, :-1], 0.0).sum(1) / pairs
        lagged = torch.where(spread > 0, lagged / spread.square().clamp(min=1e-300), 0.0)
        missing = torch.where(n > 0, 1 - seen.sum(1) / n.clamp(min=1), 0.0)
        return torch.cat((n, mean, spread, *torch.nan_to_num(quantiles), jump, lagged, missing), 1)

    def likelihood(self, nats: Tensor) -> tuple[Tensor, str]:
        """-log p of a whole series with its length, "nats per series": lower is better."""
        return -nats, "nats per series"

    def per_step(self, nats: Tensor, x: Tensor) -> Measured | None:
        """-log p of whole series with their lengths over the steps they hold, missing ones included; None of no steps.

        >>> space, x = Series(("x",), 3), torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [torch.nan], [torch.nan]]])
        >>> space.per_step(torch.tensor([-3.0, -5.0]), x).mean
        2.0
        """
        steps = self.lengths(x).double().cpu()
        if float(steps.sum()) == 0:
            return None
        weights = steps.clamp(min=1e-9)  # a series of length 0 adds its nats and no step
        return Measured(-nats.double().cpu() / weights, weights, "nats per step")

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": list(self.names), "steps": self.steps, "classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Series:
        """Rebuild what `to_json` wrote."""
        return cls(tuple(value["names"]), int(value["steps"]), tuple(value["classes"]))
