r"""What mixtures, hidden Markov models and naive Bayes share: K distributions of one kind, computed together.

A family holds K *members* p(x | k), k = 0 .. K-1, over observations of one shape. It is the components of a mixture,
the emissions of a Markov chain's states, the class-conditional densities of a Bayes classifier. All members are
computed at once: log-densities are (B, K), and so are the responsibilities r that statistics are weighted by.

    expect     S_k = \sum_b r_{bk} E[s(x_b) | x_b observed, k]            additive over batches and ranks
    maximise   \theta = \argmax \sum_k \langle S_k, \eta(\theta_k) \rangle + log prior(\theta)

Entries of x may be unknown: `observed` (B, *event) is True where an entry counts, and the others are integrated out
exactly. Whether NaN itself means unknown, or is a value that a member gives a probability to, is the family's to say:
its docstring does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.rng import Streams

Density = Callable[[Tensor, Tensor | None], Tensor]  # (x (B, *event), observed or None) -> log p(x | k), (B, members)


class Linear(NamedTuple):
    """An exponential family: log p(x | k) = <eta_k, phi(x)>, with statistics sum_b r_bk phi(x_b).

    eta is (members, F); phi maps rows (B, *event) to (F, B), or to None where it cannot be trusted (rounding, unknown
    entries) and `density` and `expect` must be used. phi ends in 1, and may overwrite what it returned before.
    """

    eta: Tensor
    phi: Callable[[Tensor], Tensor | None]


class Fused(ABC):
    """Shares, likelihood and statistics of some members of a mixture in one compiled pass over rows x (B, *event).

    log_w (members,) are the logarithms of the members' weights; rows, numbers of the rows meant, are all by default.
    What a pass cannot do (entries unknown, no finite density) it leaves out, and names: use `density` and `expect`.
    """

    @abstractmethod
    def expect(self, x: Tensor, log_w: Tensor, rows: Tensor | None = None) -> tuple[Stats, Tensor, Tensor | None]:
        """The family's statistics, the sum of log p, and the numbers of rows left out (None: none)."""

    @abstractmethod
    def log_prob(self, x: Tensor, log_w: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """log sum_k w_k p(x | k), (rows,), and the numbers of rows left out."""

    @abstractmethod
    def shares(self, x: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor | None]:
        """w_k p(x | k) / p(x), (B, members), and the numbers of rows left out."""


class Family(nn.Module, ABC):
    """K members of one kind of distribution, in float64.

    `own`, where a method takes it, is a slice of the members: a labelled row looks at its class's members only.
    """

    members: int
    event: tuple[int, ...]  # shape of one observation
    width: int = 1  # entries of the largest temporary for each row and member, by which callers choose their chunks
    nan_is_value: bool = False  # True where NaN has a probability of its own; otherwise it means unknown

    @abstractmethod
    def density(self, own: slice | None = None) -> Density:
        """log p(x_observed | k) of the members in `own`, prepared once for many chunks of rows; differentiable."""

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(x_observed | k) in nats, (B, members)."""
        return self.density()(x, observed)

    @abstractmethod
    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        """Expected sufficient statistics of rows x (B, *event) of weights r (B, len(own)); additive.

        Every entry has the shape it has for all members, with zeros for those outside `own`.
        """

    def linear(self, own: slice | None = None) -> Linear | None:
        """The members in `own` as an exponential family, where that is faster than `density` and `expect`."""
        return None

    def gathered(self, sums: Tensor, own: slice | None = None) -> Stats:
        """What `expect` returns, from sums_k = sum_b r_bk phi(x_b), (len(own), F); of families with `linear`."""
        raise NotImplementedError

    def fused(self, x: Tensor, own: slice | None = None) -> Fused | None:
        """The compiled pass for rows like x of members `own`; None where there is none, or a gradient is asked."""
        return None

    def by_code(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Where observations are single codes: log p(code | k), (M, members), and the code of each row (B,)."""
        return None

    def counted(self, n: Tensor) -> Stats:
        """What `expect` returns, from sums of the weights of each code (M, members); of families with `by_code`."""
        raise NotImplementedError

    @abstractmethod
    def maximise(self, stats: Stats) -> None:
        """Set every member to the maximiser; a member without weight, and without a prior, keeps what it has."""

    @abstractmethod
    def expected(self, stats: Stats) -> Tensor:
        """\\sum_{b,k} r_{bk} log p(x_b | k) of the present parameters, from the statistics alone, up to a constant."""

    @abstractmethod
    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """Start from weights r (B, members), usually of a clustering. Clusters of few rows must not start as spikes."""

    def coordinates(self, x: Tensor) -> Tensor:
        """(B, F) float64 points among which a start's clusters are sought; by default the entries, unknown ones at
        their column's mean. Of categories, distances of codes mean nothing: such families give indicators."""
        x = x.reshape(len(x), -1).to(torch.float64)
        known = x.isfinite()
        mean = torch.where(known, x, 0.0).sum(0) / known.sum(0).clamp(min=1)
        return torch.where(known, x, mean)

    @abstractmethod
    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        """One observation of the member `which` (B,) of each row, (B, *event)."""

    @abstractmethod
    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        """x with its unobserved entries drawn from p(x_u | x_o, member which), (B, *event)."""

    @abstractmethod
    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        """E[x | x_o, k] of every member, (B, members, *event); of a category, its probabilities' mode is not a mean:
        such families return the most probable value."""

    def deviations(self, observed: Tensor) -> Tensor | None:
        """Of members that are normal given x_o, the deviation of each entry, (B, members, *event); 0 where observed."""
        return None

    def blend(self, x: Tensor, observed: Tensor, r: Tensor) -> Tensor:
        """E[x | x_o] of the mixture with weights r (B, members), (B, *event); of categories the most probable code."""
        weights = r.view(*r.shape, *(1,) * len(self.event))
        return (weights * self.fill(x, observed)).sum(1).to(x.dtype)

    @abstractmethod
    def free(self) -> int:
        """Number of free parameters, for BIC."""

    def log_prior(self) -> Tensor:
        """log prior of the present parameters, up to a constant; 0 without one."""
        return torch.zeros((), dtype=torch.float64)

    def allows(self, x: Tensor) -> Tensor | None:
        """(B, members) booleans: the members that may have made a row, by what they are and not by what they learnt.

        Starts keep to it. None, the default: all may.
        """
        return None

    def split(self, heavy: int, empty: int, length: float) -> bool:
        """Make `empty` a second copy of `heavy`, the two displaced by +-length so that the expected log-likelihood
        falls by at most n length^2 / 2 nats; False where the family knows no such displacement."""
        return False


def placed(value: Tensor, own: slice | None, members: int) -> Tensor:
    """A statistic of the members in `own` as one of all members, with zeros for the others.

    >>> placed(torch.ones(1, 2), slice(1, 2), 3).tolist()
    [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """
    if own is None or len(value) == members:
        return value
    out = value.new_zeros(members, *value.shape[1:])
    out[own] = value
    return out
