r"""Bijections of R^D and their composition.

For z = f(x) with x ~ p_X and z ~ p_Z the change of variables gives

    log p_X(x) = log p_Z(f(x)) + log |det df/dx|.

Every bijection here goes from data x to noise z, the direction in which likelihoods are computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn


class Bijection(nn.Module, ABC):
    """z = f(x; y), invertible in x for every label y."""

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (B, D) and log |det dz/dx| (B,), of x (B, D) and labels y (B,) or None."""

    @abstractmethod
    def inverse(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, D) with f(x; y) = z."""


class Chain(Bijection):
    """f_n o ... o f_1; log-determinants add."""

    def __init__(self, parts: Iterable[Bijection]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for part in self.parts:
            x, term = part(x, y)
            log_det = log_det + term
        return x, log_det

    def inverse(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        for part in reversed(self.parts):
            z = part.inverse(z, y)
        return z
