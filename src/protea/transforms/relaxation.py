r"""Relaxations: from canonical units to R^D and back, so that one continuous model serves every space.

A relaxation draws v ~ q(v | x) and recovers x = lower(v) exactly (a surjection with a stochastic
right inverse; Nielsen et al. 2020, "SurVAE Flows"). For any density p(v) it gives

    log p(x) >= E_{q(v|x)} [ log p(v) - log q(v | x) ],

with equality when the relaxation is a bijection, where -log q is the log-determinant of dv/dx.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from protea.rng import Streams


class Relaxation(nn.Module, ABC):
    """q(v | x) and its exact inverse x = lower(v)."""

    event: tuple[int, ...]  # shape of v
    exact: bool  # a bijection: the bound is an equality and `lift` draws nothing

    @abstractmethod
    def fit(self, x: Tensor) -> None:
        """Set scales and knots from training rows (N, *event of x)."""

    @abstractmethod
    def lift(self, x: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
        """v ~ q(v | x), float32 (B, *event), and log q(v | x), (B,)."""

    @abstractmethod
    def lower(self, v: Tensor) -> Tensor:
        """x in canonical units; lower(lift(x)) = x."""


class Entrywise(Relaxation):
    """Each entry by itself through an increasing bijection: what is known of x is known of v. NaN (unknown) stays."""

    exact = True

    @abstractmethod
    def entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """v (B, *event) in float64 and the log |dv/dx| of every entry, 0 where it is unknown."""

    @abstractmethod
    def expected(self, mean: Tensor, std: Tensor) -> Tensor:
        """E[lower(v)] of v ~ N(mean, std^2), entry by entry; std > 0, both (..., *event)."""

    def lift(self, x: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
        v, log_slope = self.entries(x)
        return v.float(), -log_slope.flatten(1).sum(1)
