"""A continuous model of relaxed data, seen from the canonical units of a space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protea.core import Bounded, Conditionable, Model, Normalised
from protea.errors import NotSupported
from protea.models.classical.conditional import ConditionalMixture
from protea.models.conditional import Conditional
from protea.rng import Streams
from protea.space import Rows, Space
from protea.transforms.relaxation import Entrywise, Relaxation
from protea.transforms.relaxations import Standardise


class Lifted(Model):
    """Draws from `inner`, a model of v in R^D, and lowers to canonical units. Use `lift` to make one."""

    def __init__(self, space: Space, relaxation: Relaxation, inner: Model) -> None:
        super().__init__()
        self.space, self.relaxation, self.inner, self.block = space, relaxation, inner, inner.block

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        return self.relaxation.lower(self.inner.draw(rng, cond))

    @torch.no_grad()
    def raise_rows(self, rows: Rows, seed: int) -> Rows:
        """The same rows in the inner model's units, with noise that depends on the row alone."""
        v, _ = self.relaxation.lift(rows.x, Streams(seed, rows.ids, rows.x.device))
        return Rows(v, rows.y, rows.ids)

    def initialise(self, rows: Rows, seed: int = 0) -> None:
        self.relaxation.fit(rows.x)
        self.inner.initialise(self.raise_rows(rows, seed), seed)


class LiftedDensity(Lifted, Normalised):
    """Exact: the relaxation is a bijection and the inner density is exact."""

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        v, log_q = self.relaxation.lift(x, Streams(0, len(x), x.device))
        assert isinstance(self.inner, Normalised)
        return self.inner.log_prob(v, cond) - log_q


class LiftedConditionable(LiftedDensity, Conditionable):
    """Exact, and conditioned exactly: the relaxation scales each entry by itself, so what is observed stays so."""

    def given(self, x: Tensor, observed: Tensor) -> Model:
        """p(. | x[observed]) in canonical units, exact where the inner model's is."""
        assert isinstance(self.inner, Conditionable) and isinstance(self.relaxation, Entrywise)
        v, _ = self.relaxation.lift(x.reshape(-1, *self.relaxation.event), Streams(0, 1, x.device))
        v = v.reshape(x.shape)
        inner = self.inner.given(v, observed)
        return LiftedConditional(self.relaxation, inner, x, observed) if isinstance(inner, Conditional) else inner


class LiftedConditional(Conditional):
    """A conditional of entries that are scaled one by one, in the entries' own units."""

    def __init__(self, relaxation: Entrywise, inner: Conditional, x: Tensor, observed: Tensor) -> None:
        super().__init__()
        event = relaxation.event
        self.relaxation, self.inner, self.block = relaxation, inner, inner.block
        if hasattr(inner, "space"):
            self.space = inner.space
        self.x, self.observed = x.reshape(-1, *event), observed.reshape(-1, *event)

    def _log_slope(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Sum over the chosen entries of log |dv / dx|, (B,)."""
        return torch.where(chosen, self.relaxation.entries(x)[1], 0.0).flatten(1).sum(1)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        row = (rng.ids % len(self.x)).to(self.x.device)
        return torch.where(self.observed[row], self.x[row], self.relaxation.lower(self.inner.draw(rng, cond)))

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        v, _ = self.relaxation.lift(x, Streams(0, 1, x.device))
        row = torch.arange(len(x), device=x.device) % len(self.x)
        return self.inner.log_prob(v, cond) + self._log_slope(x, ~self.observed[row])

    @property
    def evidence(self) -> Tensor:
        return self.inner.evidence + self._log_slope(self.x, self.observed)

    @property
    def mean(self) -> Tensor:
        if isinstance(self.relaxation, Standardise):  # affine: a mean becomes a mean
            return torch.where(self.observed, self.x, self.relaxation.lower(self.inner.mean))
        if not isinstance(self.inner, ConditionalMixture):
            raise NotSupported(
                f"{type(self.inner).__name__} has no mean through a change of units.", "Draw instead: draws=M."
            )
        return torch.where(self.observed, self.x, self.inner.mean_through(self.relaxation.expected))


class LiftedBound(Lifted, Bounded):
    """A bound: dequantisation, or an inner model that is itself bounded, over k draws.

    Draws are importance weights and combine by log-mean-exp, unless the inner bound's are not: the noise of a
    diffusion's bound is that of a Monte Carlo integral, whose log-mean-exp would exceed log p.
    """

    def log_prob_bound(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams, k: int = 1) -> Tensor:
        inner = self.inner
        if self.relaxation.exact and isinstance(inner, Bounded):
            v, log_q = self.relaxation.lift(x, rng)
            return inner.log_prob_bound(v, cond, rng=rng.child("inner"), k=k) - log_q
        terms = []
        for draw in range(k):
            v, log_q = self.relaxation.lift(x, rng.child("lift", draw))
            if isinstance(inner, Normalised):
                log_p = inner.log_prob(v, cond)
            else:
                assert isinstance(inner, Bounded)
                log_p = inner.log_prob_bound(v, cond, rng=rng.child("inner", draw))
            terms.append(log_p - log_q)
        if isinstance(inner, Bounded) and not inner.importance:
            return torch.stack(terms).mean(0)
        return torch.logsumexp(torch.stack(terms), 0) - math.log(k)


def lift(space: Space, relaxation: Relaxation, inner: Model) -> Lifted:
    """Wrap `inner` so that it models `space`; the type says which likelihood survives."""
    inner.space = space
    if isinstance(relaxation, Entrywise) and isinstance(inner, Normalised) and isinstance(inner, Conditionable):
        return LiftedConditionable(space, relaxation, inner)
    if relaxation.exact and isinstance(inner, Normalised):
        return LiftedDensity(space, relaxation, inner)
    if isinstance(inner, (Normalised, Bounded)):
        return LiftedBound(space, relaxation, inner)
    return Lifted(space, relaxation, inner)
