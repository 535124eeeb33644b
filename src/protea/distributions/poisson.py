r"""Counts: K members, each a product of Poisson distributions over d columns.

    p(x | k) = prod_d lambda_{kd}^{x_d} e^{-lambda_{kd}} / x_d!
    lambda_{kd} = (sum_b r_{bk} x_{bd} + a - 1) / (sum_b r_{bk} + b)

under a Gamma(shape a, rate b) prior of every rate (mode; a = 1, b = 0 is none). NaN, and a negative entry, are unknown
and drop out. A rate of zero is a legitimate maximiser: it gives 0 probability one and any other count -inf.

Karlis & Xekalaki 2005, "Mixed Poisson distributions"; Gelman et al. 2013, "Bayesian data analysis", section 2.6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions.family import Density, Family
from protea.errors import ConfigError, DataError
from protea.rng import Streams

WIDEST = 1e15  # beyond it whole numbers and their Poisson quantiles are not exact in float64


class Poisson(Family):
    """K members over counts (event () or (d,)), in float64.

    Args:
        members: K.
        event: () or (d,).
        shape: a >= 1 of the Gamma prior.
        rate: b >= 0 of the Gamma prior.

    Raises:
        ConfigError: a prior outside its range.

    >>> family = Poisson(1, (2,))
    >>> family.maximise(family.expect(torch.tensor([[1.0, 4.0], [3.0, math.nan]]), torch.ones(2, 1).double()))
    >>> family.rates
    tensor([[2., 4.]], dtype=torch.float64)
    """

    def __init__(self, members: int, event: tuple[int, ...] = (), shape: float = 1.0, rate: float = 0.0) -> None:
        super().__init__()
        if shape < 1 or rate < 0:
            raise ConfigError(
                f"A Gamma prior of shape {shape} and rate {rate} has no mode to find.", "Give shape >= 1 and rate >= 0."
            )
        self.members, self.event, self.columns = members, tuple(event), math.prod(event)
        self.shape, self.rate = float(shape), float(rate)
        self.log_rates = nn.Parameter(torch.zeros(members, self.columns, dtype=torch.float64), requires_grad=False)

    @property
    def rates(self) -> Tensor:
        """lambda, (members, d)."""
        return self.log_rates.exp()

    @rates.setter
    def rates(self, value: Tensor) -> None:
        value = torch.as_tensor(value, dtype=torch.float64, device=self.log_rates.device)
        with torch.no_grad():
            self.log_rates.copy_(value.reshape(self.log_rates.shape).log())

    def _known(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Counts (B, d) with 0 for unknown ones, and which are known."""
        x = x.reshape(len(x), self.columns).double()
        known = x >= 0
        if observed is not None:
            known = known & observed.reshape(known.shape)
        x = torch.where(known, x, 0.0)
        if bool((x != x.round()).any()) or bool((x > WIDEST).any()):
            bad = float(x[(x != x.round()) | (x > WIDEST)][0])
            raise DataError(f"{bad} is not a count.", "Poisson distributions are for whole numbers from 0 to 1e15.")
        return x, known.double()

    # ---- density ----

    def density(self, own: slice | None = None) -> Density:
        log_rates = self.log_rates if own is None else self.log_rates[own]
        # 0 * log 0 must be 0: the log of a zero rate is kept apart and counts only where a count is positive.
        zero = torch.isneginf(log_rates)
        safe, rates = torch.where(zero, 0.0, log_rates).T, log_rates.exp().T
        anything = bool(zero.any())

        def score(x: Tensor, observed: Tensor | None) -> Tensor:
            x, known = self._known(x, observed)
            out = x @ safe - known @ rates - torch.lgamma(x + 1).sum(1, keepdim=True)
            if anything:
                out = torch.where((x > 0).double() @ zero.double().T > 0, -math.inf, out)
            return out

        return score

    # ---- learning ----

    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        x, known = self._known(x, observed)
        n, s1 = (x.new_zeros(self.members, self.columns) for _ in range(2))
        n[own or slice(None)], s1[own or slice(None)] = r.double().T @ known, r.double().T @ x
        return {"n": n, "s1": s1}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        above, below = stats["s1"] + (self.shape - 1), stats["n"] + self.rate
        self.log_rates.copy_(torch.where(below > 0, (above / below).log(), self.log_rates))

    def expected(self, stats: Stats) -> Tensor:
        seen = torch.where(stats["s1"] > 0, stats["s1"] * self.log_rates, 0.0)
        return (seen - stats["n"] * self.rates).sum()

    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """One M-step, with one row at the mean of all rows added to each member."""
        stats = self.expect(x, r, observed=observed)
        mean = (stats["s1"].sum(0) / stats["n"].sum(0).clamp(min=1e-300)).clamp(min=1e-3)
        self.maximise({"n": stats["n"] + 1, "s1": stats["s1"] + mean})

    def log_prior(self) -> Tensor:
        above = (self.shape - 1) * self.log_rates if self.shape > 1 else torch.zeros_like(self.log_rates)
        return (above - self.rate * self.rates).sum()

    def free(self) -> int:
        return self.members * self.columns

    # ---- drawing ----

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        """By inverting the distribution function at a uniform number: exact, and one number for each count."""
        from scipy.stats import poisson

        u = rng.uniform(self.columns, dtype=torch.float64)
        counts = poisson.ppf(u.cpu().numpy(), self.rates[which].detach().cpu().numpy())
        return torch.from_numpy(counts).to(self.log_rates).reshape(len(which), *self.event)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        return torch.where(observed, x, self.draw(rng, which).to(x.dtype))

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        mean = self.rates.view(1, self.members, *self.event)
        return torch.where(observed[:, None], x[:, None], mean.to(x.dtype))
