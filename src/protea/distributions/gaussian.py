r"""Gaussians, full, tied, diagonal or spherical, with any entries unknown.

    log p(x | k) = -(x - mu_k)^T Sigma_k^-1 (x - mu_k) / 2 - log|Sigma_k| / 2 - D log(2 pi) / 2

    expect     n_k = \sum_b r_{bk},  s1_k = \sum_b r_{bk} E[x_b],  s2_k = \sum_b r_{bk} E[x_b x_b^T]
    maximise   mu_k = s1_k / n_k,    Sigma_k = argmax over Sigma >= floor I

Moments are taken about `origin`, the data's mean, which keeps second moments from cancelling. Unknown entries are
integrated out exactly (`distributions/partial.py`), so the likelihood never falls however much is missing. With a prior
the maximiser is that of the posterior (`distributions/priors.py`).

Dempster, Laird & Rubin 1977; Ghahramani & Jordan 1994; Bishop 2006, "Pattern recognition and machine learning", ch. 9.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions import partial
from protea.distributions.covariance import COVARIANCES
from protea.distributions.family import Density, Family
from protea.distributions.priors import NormalInverseWishart
from protea.errors import ConfigError, DataError, nearest
from protea.rng import Streams

EMPTY = 1e-10  # rows: a member with less is not used by any row


class Gaussian(Family):
    """K Gaussians over the D = prod(event) entries of an observation; NaN means unknown.

    Args:
        members: K.
        event: shape of one observation.
        covariance: "full", "tied", "diag" or "spherical".
        floor: of every covariance's eigenvalues, in squared units of x.
        prior: of means and covariances; None for maximum likelihood.

    Parameters, which may be set: `means` (K, D), and `covariances` in scikit-learn's shapes: full (K, D, D),
    tied (D, D), diag (K, D), spherical (K,).

    A column that is unknown in every row keeps its start, N(0, 1); a row unknown in every entry has log p = 0.

    Raises:
        ConfigError: an unknown covariance, no members, or a floor that is not positive.

    >>> family = Gaussian(2, (3,), "diag")
    >>> x = torch.tensor([[0.0, 1.0, float("nan")]], dtype=torch.float64)
    >>> round(float(family.log_prob(x)[0, 0]), 4)  # two standard normals
    -2.3379
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
            raise ConfigError(f"{members} Gaussians with a floor of {floor} make no sense.", "Both must be positive.")
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
        x = x.reshape(len(x), self.dim).to(torch.float64) - self.origin
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

    def density(self, own: slice | None = None) -> Density:
        own, means, scale = self._members(own)
        prepared = self.kind.prepare(means, scale)
        constant = -self.kind.half_log_det(scale, self.dim) - 0.5 * self.dim * math.log(2 * math.pi)
        marginal = partial.log_density if self.dense else partial.log_density_diagonal
        spread: list[Tensor] = []  # of the members, once it is needed

        def log_prob(x: Tensor, observed: Tensor | None = None) -> Tensor:
            x, known = self._flat(x, observed)
            if known is None:
                return torch.add(constant, self.kind.quad(x, *prepared), alpha=-0.5)
            if not spread:
                spread.append(self._spread(means, scale))
            return marginal(x, known, means, spread[0])

        return log_prob

    # ---- EM ----

    @torch.no_grad()
    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        x, known = self._flat(x, observed)
        stats: Stats = {
            "n": x.new_zeros(self.members),
            "s1": x.new_zeros(self.members, self.dim),
            "s2": x.new_zeros(self.kind.packed(self.members, self.dim)),
        }
        own, means, scale = self._members(own)
        stats["n"][own] = r.sum(0)
        s2 = self.kind.select(stats["s2"], own)
        if known is not None:
            spread = self._spread(means, scale)
            if self.dense:
                part = ~known.all(1)
                s1, square = partial.moments(x[part], known[part], r[part], means, spread)
                s2 += square if s2.ndim == 3 else square.sum(0)
                stats["s1"][own] = s1
                x, r = x[~part], r[~part]
            else:
                stats["s1"][own], square = partial.moments_diagonal(x, known, r, means, spread)
                s2 += square if s2.ndim == 2 else square.sum(1)
                return stats
        stats["s1"][own] += r.T @ x
        s2 += self.kind.scatter(r, x)
        return stats

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        n, s1, s2 = stats["n"], stats["s1"], stats["s2"]
        live = n > EMPTY if self.prior is None else n >= 0
        if not bool(live.any()):
            return
        n, s1, s2 = n[live], s1[live], self.kind.select(s2, live)
        weight = self.kind.weight(n, self.dim)
        if self.prior is not None:
            pseudo = self.prior.pseudo(self.kind, len(n), self.origin)
            n, s1, s2, weight = n + pseudo.n, s1 + pseudo.s1, s2 + pseudo.s2, weight + pseudo.weight
        means = s1 / n[:, None]
        fitted = self.kind.fit(weight, self.kind.centre(n, s1, s2, means), self.floor)
        self.means[live] = self.origin + means
        if self.kind.name == "tied":
            self.scale.copy_(fitted)
        else:
            self.scale[live] = fitted

    @torch.no_grad()
    def expected(self, stats: Stats) -> Tensor:
        n = stats["n"]
        scatter = self.kind.centre(n, stats["s1"], stats["s2"], self.means - self.origin)
        return -(n * self.kind.half_log_det(self.scale, self.dim)).sum() - 0.5 * self.kind.spent(scatter, self.scale)

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
        share = n.sum() / (n.sum() + self.dim) if self.kind.name == "tied" else n / (n + self.dim)
        share = share.view(-1, *[1] * (within.ndim - 1)) if share.ndim else share
        mixed = share * within + (1 - share) * self.kind.narrow(spread)
        self.means.copy_(self.origin + means)
        self.scale.copy_(self.kind.fit(torch.ones_like(n[0]), mixed, self.floor))

    # ---- drawing and conditioning ----

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        z = rng.child("noise").normal(self.dim, dtype=torch.float64).to(self.means.device)
        return (self.means[which] + self.kind.colour(z, self.scale, which)).reshape(len(which), *self.event)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        z = self.draw(rng, which).reshape(len(x), self.dim)
        observed = observed.reshape(z.shape)
        x = torch.where(observed, x.reshape(z.shape).to(z.dtype), 0.0)
        if self.dense:
            sigma = self._spread(self.means, self.scale)
            sigma = sigma[which] if self.kind.name == "full" else sigma.expand(len(x), -1, -1)
            out = partial.conditioned(z, x, observed, sigma)
        else:
            out = torch.where(observed, x, z)
        return out.reshape(len(x), *self.event)

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
    def split(self, heavy: int, empty: int, length: float) -> bool:
        if self.prior is not None:
            return False  # a member without rows is then where the prior wants it
        one = self.kind.select(self.scale, slice(heavy, heavy + 1))
        delta = length * self.kind.axis(one, 1, self.dim)[0]
        self.means[empty] = self.means[heavy] - delta
        self.means[heavy] += delta
        if self.kind.name != "tied":
            self.scale[empty] = self.scale[heavy]
        return True
