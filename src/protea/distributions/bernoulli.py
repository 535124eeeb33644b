r"""K vectors of independent Bernoulli variables.

    log p(x | k) = sum_j x_j log theta_kj + (1 - x_j) log(1 - theta_kj)

    theta_kj = (n_kj + alpha) / (n_k + alpha + beta)

is the posterior mode under Beta(alpha + 1, beta + 1), with n_k the weight of the rows seen and n_kj of those in which
entry j is 1. alpha = beta = 1 is Laplace's rule of succession, other values Lidstone's.

NaN is an unknown entry: it is integrated out, and neither n_kj nor n_k counts it. Laplace 1814, "Essai philosophique
sur les probabilites"; Lidstone 1920; McCallum & Nigam 1998, "A comparison of event models for naive Bayes".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions.family import Density, Family, placed
from protea.errors import ConfigError, DataError
from protea.rng import Streams


class Bernoulli(Family):
    """K members over vectors of 0 and 1.

    Args:
        members: K.
        event: shape of one observation.
        alpha, beta: pseudo-counts of 1 and of 0, not negative; beta None: as alpha. With 0 the maximum of the
            likelihood itself, under which a value never seen has probability 0.

    Raises:
        ConfigError: a negative pseudo-count.
        DataError: (`expect`) a value other than 0, 1 and NaN. (Its log_prob is -inf.)

    >>> family = Bernoulli(1, (2,), alpha=1.0)
    >>> family.maximise(family.expect(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.ones(2, 1)))
    >>> family.theta.tolist()
    [[0.75, 0.5]]
    """

    def __init__(self, members: int, event: tuple[int, ...], alpha: float = 1.0, beta: float | None = None) -> None:
        super().__init__()
        beta = alpha if beta is None else beta
        if not (alpha >= 0 and beta >= 0):
            raise ConfigError(f"Pseudo-counts alpha={alpha} and beta={beta} must not be negative.", "Try 1.0.")
        self.members, self.event, self.dim = members, tuple(event), math.prod(event)
        self.alpha, self.beta, self.width = float(alpha), float(beta), 1 + math.prod(event) // members
        self.theta = nn.Parameter(torch.full((members, self.dim), 0.5, dtype=torch.float64), requires_grad=False)

    def _flat(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Values with 0 where unknown (B, D), and which are known (None: all)."""
        x = x.reshape(len(x), self.dim).to(torch.float64)
        known = ~x.isnan()
        if observed is not None:
            known &= observed.reshape(len(x), self.dim)
        return (x, None) if bool(known.all()) else (torch.where(known, x, 0.0), known)

    def density(self, own: slice | None = None) -> Density:
        theta = self.theta if own is None else self.theta[own]
        one, nil = theta.log().T, torch.log1p(-theta).T
        sure = bool(((theta == 0) | (theta == 1)).any())  # 0 * log 0 = 0 needs care

        def log_p(x: Tensor, observed: Tensor | None) -> Tensor:
            x, known = self._flat(x, observed)
            zero = 1 - x if known is None else torch.where(known, 1 - x, 0.0)
            if sure:
                out = torch.xlogy(x[..., None], theta.T).sum(1) + torch.xlogy(zero[..., None], 1 - theta.T).sum(1)
            else:
                out = x @ one + zero @ nil
            return torch.where(((x == 0) | (x == 1)).all(1, keepdim=True), out, -math.inf)

        return log_p

    @torch.no_grad()
    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        """n_kj of ones and of zeros, (members, D) each."""
        x, known = self._flat(x, observed)
        bad = (x != 0) & (x != 1)
        if bool(bad.any()):
            row, j = bad.nonzero()[0].tolist()
            raise DataError(
                f"Row {row} holds {x[row, j].item()} in entry {j}, but a Bernoulli variable is 0 or 1.",
                "Binarise the data (x > threshold), or use a categorical or Gaussian family.",
            )
        r = r.to(torch.float64)
        ones = r.T @ x
        seen = r.sum(0)[:, None].expand_as(ones) if known is None else r.T @ known.double()
        return {"ones": placed(ones, own, self.members), "zeros": placed(seen - ones, own, self.members)}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        up, down = stats["ones"] + self.alpha, stats["zeros"] + self.beta
        total = up + down
        self.theta.copy_(torch.where(total > 0, up / total.clamp(min=1e-300), self.theta).clamp(0, 1))

    def expected(self, stats: Stats) -> Tensor:
        return (torch.xlogy(stats["ones"], self.theta) + torch.xlogy(stats["zeros"], 1 - self.theta)).sum()

    def log_prior(self) -> Tensor:
        alpha, beta = self.theta.new_tensor(self.alpha), self.theta.new_tensor(self.beta)
        return (torch.xlogy(alpha, self.theta) + torch.xlogy(beta, 1 - self.theta)).sum()

    @torch.no_grad()
    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """One M-step, each member joined by two rows' weight of the average row, so that none starts at 0 or 1."""
        stats = self.expect(x, r, None, observed)
        ones, zeros = stats["ones"].sum(0), stats["zeros"].sum(0)
        mean = (ones + 1) / (ones + zeros + 2)
        self.theta.copy_((stats["ones"] + 2 * mean) / (stats["ones"] + stats["zeros"] + 2))

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        u = rng.child("bernoulli").uniform(self.dim, dtype=torch.float64)
        return (u < self.theta[which]).double().reshape(len(rng), *self.event)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        return torch.where(observed, x.to(torch.float64), self.draw(rng, which))

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        mean = self.theta.reshape(1, self.members, *self.event)
        return torch.where(observed[:, None], x.to(torch.float64)[:, None], mean)

    def free(self) -> int:
        return self.members * self.dim
