r"""What Gaussians and their scale mixtures share: means, covariances of four kinds, entries unknown, a conjugate prior.

A member is elliptical: its density depends on x through delta = (x - mu_k)^T Sigma_k^-1 (x - mu_k) alone. Moments are
taken about `origin`, the data's mean, which keeps second moments from cancelling. Unknown entries are integrated out
exactly (`distributions/partial.py`), so the likelihood never falls however much is missing. With a prior the
maximiser is that of the posterior (`distributions/priors.py`).

Statistics of responsibilities r and weights w (w = r for a Gaussian): n_k = \sum_b r_{bk}, w_k = \sum_b w_{bk},
s1_k = \sum_b w_{bk} E[x_b], s2_k = \sum_b w_{bk} E[x_b] E[x_b]^T + r_{bk} Cov[x_b].
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions import partial
from protea.distributions.covariance import COVARIANCES
from protea.distributions.family import Family
from protea.distributions.priors import NormalInverseWishart
from protea.errors import ConfigError, DataError, nearest
from protea.rng import Streams

EMPTY = 1e-10  # rows: a member with less is not used by any row


class Elliptical(Family):
    """K members in D = prod(event) dimensions; see `Gaussian` for the arguments.

    Parameters, which may be set: `means` (K, D), and `covariances` (Sigma; of a Student-t its scale matrix).
    """

    origin: Tensor

    def __init__(
        self,
        members: int,
        event: tuple[int, ...],
        covariance: str = "full",
        floor: float = 1e-6,
        prior: NormalInverseWishart | None = None,
    ) -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise ConfigError(f"There is no covariance {covariance!r}.", nearest(covariance, COVARIANCES))
        if members < 1 or not floor > 0:
            raise ConfigError(f"{members} members with a floor of {floor} make no sense.", "Both must be positive.")
        self.members, self.event, self.floor, self.dim = members, tuple(event), floor, math.prod(event)
        self.kind, self.prior = COVARIANCES[covariance], prior
        self.width = self.dim if covariance == "full" else 1

        def parameter(*shape: int, value: float) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, value, dtype=torch.float64), requires_grad=False)

        self.means = parameter(members, self.dim, value=0.0)
        self.scale = parameter(*self.kind.shape(members, self.dim), value=1.0)
        if self.dense:
            self.scale.copy_(torch.eye(self.dim, dtype=torch.float64).expand_as(self.scale))
        self.register_buffer("origin", torch.zeros(self.dim, dtype=torch.float64))

    @property
    def dense(self) -> bool:
        """Whether coordinates may depend on one another."""
        return self.kind.name in ("full", "tied")

    @property
    def covariances(self) -> Tensor:
        """Sigma in the shapes of scikit-learn; settable."""
        return self.scale @ self.scale.mT if self.dense else self.scale.square()

    @covariances.setter
    def covariances(self, value: Tensor) -> None:
        value = torch.as_tensor(value, dtype=torch.float64).to(self.scale.device)
        if value.shape != self.scale.shape:
            raise DataError(f"Covariances of shape {tuple(value.shape)} do not fit {tuple(self.scale.shape)}.",
                            f"Give those of {self.kind.name!r} covariances.")  # fmt: skip
        factor, bad = torch.linalg.cholesky_ex(value) if self.dense else (value.sqrt(), ~(value > 0))
        if bool(bad.any()):
            raise DataError("A covariance is not positive definite.", "Add a small multiple of the identity to it.")
        self.scale.copy_(factor)

    # ---- density ----

    def _flat(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x (B, D) about the origin, and which entries are known: None for all; the others are 0."""
        x = x.reshape(len(x), self.dim).to(self.origin.dtype) - self.origin
        known = None if observed is None else observed.reshape(len(x), self.dim)
        if bool(x.isnan().any()):
            known = ~x.isnan() if known is None else known & ~x.isnan()
        if known is None or bool(known.all()):
            return x, None
        return torch.where(known, x, 0.0), known

    def _members(self, own: slice | None) -> tuple[slice, Tensor, Tensor]:
        """The members in `own`, their means about the origin and their scale."""
        own = slice(0, self.members) if own is None else own
        return own, self.means[own] - self.origin, self.kind.select(self.scale, own)

    def _spread(self, means: Tensor, scale: Tensor) -> Tensor:
        """What `partial` needs of the covariances: (K, D, D), (1, D, D) where shared, or variances (K, D)."""
        if self.dense:
            sigma = scale @ scale.mT
            return sigma if sigma.ndim == 3 else sigma[None]
        return scale.square().view(len(means), -1).expand_as(means)

    # ---- what depends on the pattern of known entries ----

    def distance(self, own: slice | None = None) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]:
        """The function from x (B, D) about the origin and what is known of it to delta, log|Sigma_oo| / 2 and |o|.

        The last two broadcast with delta (B, members).
        """
        own, means, scale = self._members(own)
        prepared = self.kind.prepare(means, scale)
        half = self.kind.half_log_det(scale, self.dim)
        marginal = partial.distance if self.dense else partial.distance_diagonal
        spread: list[Tensor] = []  # of the members, once it is needed

        def distance(x: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            if known is None:
                return self.kind.quad(x, *prepared), half, x.new_tensor(float(self.dim))
            if not spread:
                spread.append(self._spread(means, scale))
            return *marginal(x, known, means, spread[0]), known.sum(1, keepdim=True).to(x.dtype)

        return distance

    def _moments(self, x: Tensor, known: Tensor | None, w: Tensor, r: Tensor, own: slice | None) -> Stats:
        """The statistics of weights w and responsibilities r."""
        stats: Stats = {
            "n": x.new_zeros(self.members),
            "w": x.new_zeros(self.members),
            "s1": x.new_zeros(self.members, self.dim),
            "s2": x.new_zeros(self.kind.packed(self.members, self.dim)),
        }
        own, means, scale = self._members(own)
        stats["n"][own], stats["w"][own] = r.sum(0), w.sum(0)
        s2 = self.kind.select(stats["s2"], own)
        if known is not None:
            spread = self._spread(means, scale)
            if not self.dense:
                stats["s1"][own], square = partial.moments_diagonal(x, known, w, r, means, spread)
                s2 += square if s2.ndim == 2 else square.sum(1)
                return stats
            part = ~known.all(1)
            stats["s1"][own], square = partial.moments(x[part], known[part], w[part], r[part], means, spread)
            s2 += square if s2.ndim == 3 else square.sum(0)
            x, w = x[~part], w[~part]
        stats["s1"][own] += w.T @ x
        s2 += self.kind.scatter(w, x)
        return stats

    # ---- EM ----

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        n, w, s1, s2 = stats["n"], stats["w"], stats["s1"], stats["s2"]
        live = n > EMPTY if self.prior is None else n >= 0
        if not bool(live.any()):
            return
        n, w, s1, s2 = n[live], w[live], s1[live], self.kind.select(s2, live)
        weight = self.kind.weight(n, self.dim)
        if self.prior is not None:
            pseudo = self.prior.pseudo(self.kind, len(n), self.origin)
            w, s1, s2, weight = w + pseudo.n, s1 + pseudo.s1, s2 + pseudo.s2, weight + pseudo.weight
        means = s1 / w[:, None]
        fitted = self.kind.fit(weight, self.kind.centre(w, s1, s2, means), self.floor)
        self.means[live] = self.origin + means
        if self.kind.name == "tied":
            self.scale.copy_(fitted)
        else:
            self.scale[live] = fitted

    @torch.no_grad()
    def expected(self, stats: Stats) -> Tensor:
        scatter = self.kind.centre(stats["w"], stats["s1"], stats["s2"], self.means - self.origin)
        half = self.kind.half_log_det(self.scale, self.dim)
        return -(stats["n"] * half).sum() - 0.5 * self.kind.spent(scatter, self.scale)

    @torch.no_grad()
    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """Means and covariances of the weights; unknown entries count as their column's mean, and each covariance is
        averaged with that of all rows, which weighs as many rows as there are entries."""
        x = x.reshape(len(x), self.dim).to(torch.float64)
        known = ~x.isnan() if observed is None else observed.reshape(x.shape) & ~x.isnan()
        count = known.sum(0)
        self.origin.copy_(torch.where(known, x, 0.0).sum(0) / count.clamp(min=1))
        x = torch.where(known, x - self.origin, 0.0)
        # Filling with the mean shrinks the variance; a column never seen starts as N(0, 1).
        square = x.square().sum(0)
        missing = torch.where(count > 0, square / count.clamp(min=1) - square / len(x), 1.0)
        spread = torch.diag(missing) + x.T @ x / len(x)
        if self.prior is not None:
            self.prior.fit(self.origin, spread, self.members)
        n = r.sum(0)
        s1 = r.T @ x
        means = s1 / n.clamp(min=EMPTY)[:, None]
        within = self.kind.centre(n, s1, self.kind.scatter(r, x), means) / self.kind.weight(n.clamp(min=1), self.dim)
        within = within + self.kind.narrow(torch.diag(missing))
        share = n.sum() / (n.sum() + self.dim) if self.kind.name == "tied" else n / (n + self.dim)
        share = share.view(-1, *[1] * (within.ndim - 1)) if share.ndim else share
        mixed = share * within + (1 - share) * self.kind.narrow(spread)
        self.means.copy_(self.origin + means)
        self.scale.copy_(self.kind.fit(torch.ones_like(n[0]), mixed, self.floor))

    # ---- drawing and conditioning ----

    @abstractmethod
    def _noise(self, rng: Streams, which: Tensor) -> Tensor:
        """Draws of the members `which` about their means before their scale, (B, D)."""

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        z = self._noise(rng, which)
        return (self.means[which] + self.kind.colour(z, self.scale, which)).reshape(len(which), *self.event)

    def _condition(self, z: Tensor, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        """Draws z (B, D) of the members turned into draws given the observed entries of x, (B, *event)."""
        if self.dense:
            sigma = self._spread(self.means, self.scale)
            sigma = sigma[which] if self.kind.name == "full" else sigma.expand(len(x), -1, -1)
            z = partial.conditioned(z, x, observed, sigma)
        return torch.where(observed, x, z).reshape(len(x), *self.event)

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        x, known = self._flat(x, observed)
        known = torch.ones_like(x, dtype=torch.bool) if known is None else known
        means = self.means - self.origin
        if self.dense:
            out = partial.expectation(x, known, means, self._spread(means, self.scale))
        else:
            out = torch.where(known[:, None], x[:, None], means)
        return (out + self.origin).reshape(len(x), self.members, *self.event)

    # ---- the rest ----

    def free(self) -> int:
        return self.members * self.dim + self.kind.free(self.members, self.dim)

    def log_prior(self) -> Tensor:
        if self.prior is None:
            return super().log_prior()
        return self.prior.log_prob(self.kind, self.means, self.scale)

    @torch.no_grad()
    def _displace(self, heavy: int, empty: int, length: float) -> None:
        """Copy `heavy` to `empty` and move them apart by +-length (Mahalanobis) along a widest direction."""
        one = self.kind.select(self.scale, slice(heavy, heavy + 1))
        delta = length * self.kind.axis(one, 1, self.dim)[0]
        self.means[empty] = self.means[heavy] - delta
        self.means[heavy] += delta
        if self.kind.name != "tied":
            self.scale[empty] = self.scale[heavy]
