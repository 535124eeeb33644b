"""Points in R^D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from protea.errors import DataError
from protea.space import Field, Space


@dataclass(frozen=True)
class Vector(Space):
    """Points in R^D: float64 arrays (N, D), as they are.

    Args:
        names: one name a coordinate.
        classes: names of the labels, where rows are labelled.

    >>> space = Vector(("x", "y"))
    >>> space.encode([[0.0, 1.0]]).shape, space.likelihood(torch.tensor([-2.0]))
    (torch.Size([1, 2]), (tensor([2.]), 'nats per row'))
    """

    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    kind: ClassVar[str] = "vector"
    dtype: ClassVar[torch.dtype] = torch.float64

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(map(str, self.names)))
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if not self.names:
            raise DataError("A vector needs at least one coordinate.")

    @property
    def event(self) -> tuple[int, ...]:
        return (len(self.names),)

    @property
    def fields(self) -> list[Field]:
        return [Field(name, "real") for name in self.names]

    def encode(self, raw: Any) -> Tensor:
        """An array (N, D), or one point (D,), to float64 (N, D). Raises DataError on another width, NaN or inf."""
        x = torch.as_tensor(np.array(raw, dtype=np.float64))
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise DataError(
                f"Points of {len(self.names)} coordinates were expected, but the array has shape {tuple(x.shape)}.",
                f"Give an array of shape (N, {len(self.names)}) with the columns {', '.join(self.names[:8])}.",
            )
        bad = (~torch.isfinite(x)).any(1).nonzero()[:, 0]
        if len(bad):
            raise DataError(
                f"{len(bad)} rows hold NaN or infinity; the first is row {int(bad[0])}.",
                "Drop or fill them; a table (CSV, Parquet) may hold missing values, a vector may not.",
            )
        return x

    def decode(self, x: Tensor) -> np.ndarray:
        """Float64 array (N, D)."""
        return x.detach().cpu().double().numpy()

    def features(self, x: Tensor) -> Tensor:
        """The coordinates themselves: scales are for the tools that compare, which know the training rows."""
        return x.double()

    def likelihood(self, nats: Tensor) -> tuple[Tensor, str]:
        """-log p, "nats per row": lower is better."""
        return -nats, "nats per row"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": list(self.names), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Vector:
        """Rebuild what `to_json` wrote."""
        return cls(tuple(value["names"]), tuple(value["classes"]))
