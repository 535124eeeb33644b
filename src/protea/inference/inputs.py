"""Inputs of a discriminative classifier: numbers on a common scale, categories one-hot, missing values flagged."""

from __future__ import annotations

import torch
from torch import Tensor

from protea.errors import NotSupported
from protea.inference.labelling import Labelling
from protea.space import Space
from protea.spaces import Table
from protea.spaces.table import MAX_ONE_HOT


class Inputs:
    """From canonical units to (N, D) float64, with scales of the rows it is fitted on.

    Pixels are divided by their largest level. Numbers are standardised, a missing one is 0 (their mean) with a column
    that says so; categories are indicators. A table's target column is left out.

    Raises:
        NotSupported: a space of text.
    """

    def __init__(self, space: Space, where: Labelling) -> None:
        if space.kind == "tokens":
            raise NotSupported("Text has no fixed inputs for a linear classifier.", "Give a table, vectors or images.")
        self.space, self.where = space, where
        self.mean = self.scale = torch.zeros(0)

    def raw(self, x: Tensor) -> Tensor:
        """(N, F) the space's features without those of the target; NaN where missing."""
        if not isinstance(self.space, Table):
            top = self.space.fields[0].levels - 1 if self.space.kind == "image" else 1
            return x.reshape(len(x), -1).double() / top
        widths = [1 if f.kind != "category" else min(f.levels, MAX_ONE_HOT) + f.missing for f in self.space.fields]
        if self.where.column is None:
            return self.space.features(x)
        start = sum(widths[: self.where.column])
        found = self.space.features(self.where.put(x, 0))
        return torch.cat((found[:, :start], found[:, start + widths[self.where.column] :]), 1)

    def fit(self, x: Tensor) -> Inputs:
        """Set mean and scale of each column from rows x (N, *event)."""
        value = self.raw(x)
        if self.space.kind == "image":
            self.mean, self.scale = torch.zeros(value.shape[1]), torch.ones(value.shape[1])
            return self
        here = ~value.isnan()
        count = here.sum(0).clamp(min=1)
        self.mean = value.nan_to_num(0.0).sum(0) / count
        spread = (torch.where(here, value - self.mean, 0.0).square().sum(0) / count).sqrt()
        self.scale = torch.where(spread > 1e-9 * (1 + self.mean.abs()), spread, 1.0)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """(N, D): the standardised features, then a flag for each column that may be missing."""
        value = self.raw(x)
        out = ((value - self.mean) / self.scale).nan_to_num(0.0)
        if not isinstance(self.space, Table):
            return out
        numeric = [i for i, f in enumerate(self.space.fields) if f.kind != "category" and f.missing]
        return torch.cat((out, x[:, [i for i in numeric if i != self.where.column]].isnan().double()), 1)
