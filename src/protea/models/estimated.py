r"""Models whose density is known up to a constant that has to be estimated: log p(x) = log p*(x) - log Z.

The estimate of log Z has an error of its own, which all rows share. Such a likelihood is an *estimate*: it is not a
bound, it may err either way, and it is never called `log_prob`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from protea.core import Model
from protea.models.lifted import Lifted
from protea.rng import Streams
from protea.samplers.sandwich import Ratio
from protea.space import Space
from protea.transforms.relaxation import Relaxation


class Partition(NamedTuple):
    """log Z and how well it is known."""

    value: float  # nats
    error: float = 0.0  # one standard error of `value`, nats; 0 where it is exact
    exact: bool = True  # by enumeration
    effective: float = float("inf")  # effective number of the chains behind an estimate
    lower: float = -math.inf  # of chains from the base: above log Z + t with probability below exp(-t)
    upper: float = math.inf  # of chains back from the model's particles: below log Z - t likewise; inf without any
    steps: int = 0  # temperatures of the path
    converged: bool = True  # enough effective chains, and half as long a path said the same

    def interval(self, errors: float = 1.96) -> tuple[float, float]:
        """log Z within so many standard errors."""
        return self.value - errors * self.error, self.value + errors * self.error

    @classmethod
    def of(cls, log_base: float, ratio: Ratio) -> Partition:
        """From the constant of the base and an estimated ratio to it."""
        value, error, lower, upper, effective, steps, converged = ratio
        return cls(
            log_base + value, error, False, effective, log_base + lower, log_base + upper, steps, converged
        )  # fmt: skip


class Estimated(Model):
    """A model with log p(x) = `unnormalised(x)` - `log_partition().value`, up to the error of the latter."""

    tight: bool = True  # `unnormalised` is exact; if not, a lower bound

    @abstractmethod
    def unnormalised(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams, k: int = 1) -> Tensor:
        """log p*(x), or of the joint log p*(x, cond) with labels, (B,) nats; k draws where it is a stochastic bound."""

    @abstractmethod
    def log_partition(self, seed: int = 0, *, steps: int = 2000) -> Partition:
        """log Z, exact where that is affordable, else an estimate by paths of up to `steps` temperatures."""


class LiftedEstimate(Lifted, Estimated):
    """An estimated density of relaxed data, seen from canonical units: exact scale, or k draws of dequantisation."""

    def __init__(self, space: Space, relaxation: Relaxation, inner: Estimated) -> None:
        inner.space = space
        super().__init__(space, relaxation, inner)
        self.tight = relaxation.exact and inner.tight

    def unnormalised(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams, k: int = 1) -> Tensor:
        assert isinstance(self.inner, Estimated)
        terms = []
        for draw in range(1 if self.relaxation.exact else k):
            v, log_q = self.relaxation.lift(x, rng.child("lift", draw))
            terms.append(self.inner.unnormalised(v, cond, rng=rng.child("inner", draw)) - log_q)
        return torch.logsumexp(torch.stack(terms), 0) - math.log(len(terms))

    def log_partition(self, seed: int = 0, *, steps: int = 2000) -> Partition:
        assert isinstance(self.inner, Estimated)
        return self.inner.log_partition(seed, steps=steps)
