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
