r"""Missing as a value: every member has its own probability that an entry is NaN.

    p(x | k) = prod_{d: NaN} rho_kd  prod_{d: not NaN} (1 - rho_kd)  f_k(x_there)

where f_k is a family that integrates unknown entries out. That a value is missing then says something about the
member (who does not state an income may well have another one), and draws are missing as often as the data are.

    rho_kd = (n_kd + alpha) / (n_k + 2 alpha)

Little & Rubin 2019, "Statistical analysis with missing data", chapter 15 (pattern-mixture models).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions.bernoulli import Bernoulli
from protea.distributions.family import Density, Family
from protea.rng import Streams


class Optional(Family):
    """A family whose entries may be NaN, which is a value: not unknown. Unknown is what `observed` says.

    Args:
        inner: the family of values that are there; it is given NaN entries as not observed.
        alpha: pseudo-count of missing and of present, for each entry of each member.

    >>> from protea.distributions.gaussian import Gaussian
    >>> family = Optional(Gaussian(1, (1,), "diag"), alpha=0.0)
    >>> x = torch.tensor([[0.0], [2.0], [4.0], [float("nan")]], dtype=torch.float64)
    >>> family.maximise(family.expect(x, torch.ones(4, 1, dtype=torch.float64)))
    >>> family.log_prob(x[3:]).exp().item()
    0.25
    """

    nan_is_value = True

    def __init__(self, inner: Family, alpha: float = 1.0) -> None:
        super().__init__()
        self.inner, self.members, self.event = inner, inner.members, inner.event
        self.width, self.dim = inner.width + 1, math.prod(inner.event)
        self.gone = Bernoulli(inner.members, inner.event, alpha)

    @property
    def rates(self) -> nn.Parameter:
        """rho, (members, D)."""
        return self.gone.theta

    def _there(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Whether each entry is missing (float), and which values the inner family sees."""
        nan = x.isnan()
        return nan.to(torch.float64), ~nan if observed is None else observed & ~nan

    def density(self, own: slice | None = None) -> Density:
        inner, gone = self.inner.density(own), self.gone.density(own)

        def log_p(x: Tensor, observed: Tensor | None) -> Tensor:
            nan, there = self._there(x, observed)
            return inner(x, there) + gone(nan, observed)

        return log_p

    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        nan, there = self._there(x, observed)
        rates = self.gone.expect(nan, r, own, observed)
        return {f"missing.{n}": t for n, t in rates.items()} | self.inner.expect(x, r, own, there)

    def _split(self, stats: Stats) -> tuple[Stats, Stats]:
        rates = {n[8:]: t for n, t in stats.items() if n.startswith("missing.")}
        return rates, {n: t for n, t in stats.items() if not n.startswith("missing.")}

    def maximise(self, stats: Stats) -> None:
        rates, rest = self._split(stats)
        self.gone.maximise(rates)
        self.inner.maximise(rest)

    def expected(self, stats: Stats) -> Tensor:
        rates, rest = self._split(stats)
        return self.gone.expected(rates) + self.inner.expected(rest)

    def log_prior(self) -> Tensor:
        return self.gone.log_prior() + self.inner.log_prior()

    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        nan, there = self._there(x, observed)
        self.gone.initialise(nan, r, observed)
        self.inner.initialise(x, r, there)

    def coordinates(self, x: Tensor) -> Tensor:
        """The inner family's, and whether each entry is missing, on the scale of a column's standard deviation."""
        inner = self.inner.coordinates(x)
        gone = x.reshape(len(x), -1).isnan().to(torch.float64)
        return torch.cat((inner, gone[:, gone.any(0)] * inner.std(0, correction=0).mean()), 1)

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        x = self.inner.draw(rng.child("value"), which)
        return torch.where(self.gone.draw(rng.child("missing"), which) > 0, math.nan, x)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        _, there = self._there(x, observed)
        filled = self.inner.complete(rng.child("value"), x, there, which)
        nan = self.gone.draw(rng.child("missing"), which) > 0
        return torch.where(observed, x.to(filled.dtype), torch.where(nan, math.nan, filled))

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        """The mean of a value that is there; an observed NaN stays one."""
        _, there = self._there(x, observed)
        return torch.where(observed[:, None], x.to(torch.float64)[:, None], self.inner.fill(x, there))

    def free(self) -> int:
        return self.inner.free() + self.members * self.dim
