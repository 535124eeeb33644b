"""What a sample is to the user, and a set of samples. Spaces themselves live in `spaces/`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Field:
    """One entry of a sample: 'real' (a density), 'grid' (multiples of `step`, a mass), 'category' (codes, a mass)."""

    name: str
    kind: Literal["real", "grid", "category"]
    levels: int = 0  # category: codes are 0 .. levels-1; grid: number of values where bounded, else 0
    step: float = 1.0  # grid: the resolution
    missing: bool = False  # NaN may occur in canonical units
    low: float = -math.inf  # real, grid: no value of the schema lies outside [low, high]
    high: float = math.inf


class Measured(NamedTuple):
    """Likelihoods of rows in the user's unit. The figure of several rows is the mean of values by these weights.

    Args:
        values: (N,) lower is better.
        weights: (N,) how much each row holds: its bytes, where rows of text differ in them; else 1.
        unit: of the values.
    """

    values: Tensor
    weights: Tensor
    unit: str

    @property
    def mean(self) -> float:
        """The figure of all rows: their total over the total of what they hold."""
        w = self.weights.double()
        return float((self.values.double() * w).sum() / w.sum())


class Space(ABC):
    """What a sample is to the user. Saved with the model as JSON; fitted on nothing but the schema.

    Canonical units are the user's own: pixel values 0 .. levels-1, table entries as they are
    (categories as codes, datetimes as seconds, missing as NaN), token ids. A likelihood of
    canonical units is therefore comparable between families without any correction.
    """

    kind: ClassVar[str]  # "vector", "table", "image", "tokens"
    event: tuple[int, ...]  # shape of one sample in canonical units
    dtype: torch.dtype  # float64 for vector and table; uint8 for image; int64 for tokens
    classes: tuple[str, ...] = ()  # names of the labels a model may be conditioned on

    @property
    @abstractmethod
    def fields(self) -> Sequence[Field]:
        """One `Field` per entry of the flattened event."""

    @abstractmethod
    def encode(self, raw: Any) -> Tensor:
        """User's objects (DataFrame, images, strings, array) to canonical units (N, *event)."""

    @abstractmethod
    def decode(self, x: Tensor) -> Any:
        """Canonical units back to the user's objects."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """(N, F) float64 description by which tools compare samples; the same for every model."""

    @abstractmethod
    def likelihood(self, nats: Tensor) -> tuple[Tensor, str]:
        """Nats per sample to the user's figure and its unit ("bits per dimension", "nats per row" ...)."""

    def measure(self, nats: Tensor, x: Tensor) -> Measured:
        """`likelihood` of rows x (N, *event), with their weights, where what a row holds depends on the row."""
        values, unit = self.likelihood(nats)
        return Measured(values, torch.ones(len(x), dtype=torch.float64), unit)

    def per_step(self, nats: Tensor, x: Tensor) -> Measured | None:
        """The same for each step, where a sample is a series of them: total nats over all steps. Else None."""
        return None

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything needed to rebuild the space, with a "kind" entry."""


@dataclass(frozen=True)
class Rows:
    """Examples in canonical units: x (N, *event), labels y (N,) or None, fixed row numbers ids (N,)."""

    x: Tensor
    y: Tensor | None
    ids: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return Rows(self.x[index], None if self.y is None else self.y[index], self.ids[index])
