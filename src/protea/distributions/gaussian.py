r"""Gaussians, full, tied, diagonal or spherical, with any entries unknown.

    log p(x | k) = -(x - mu_k)^T Sigma_k^-1 (x - mu_k) / 2 - log|Sigma_k| / 2 - D log(2 pi) / 2

    expect     n_k = \sum_b r_{bk},  s1_k = \sum_b r_{bk} E[x_b],  s2_k = \sum_b r_{bk} E[x_b x_b^T]
    maximise   mu_k = s1_k / n_k,    Sigma_k = argmax over Sigma >= floor I

Dempster, Laird & Rubin 1977; Ghahramani & Jordan 1994; Bishop 2006, "Pattern recognition and machine learning", ch. 9.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protea.core import Stats
from protea.distributions import partial
from protea.distributions.elliptical import Elliptical
from protea.distributions.family import Density, Fused, Linear, placed
from protea.distributions.fused import FusedGaussians
from protea.distributions.natural import NATURAL, features
from protea.rng import Streams

LOG_2PI = math.log(2 * math.pi)


class Gaussian(Elliptical):
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

    def density(self, own: slice | None = None) -> Density:
        distance = self.distance(own)

        def log_prob(x: Tensor, observed: Tensor | None = None) -> Tensor:
            delta, half, count = distance(*self._flat(x, observed))
            return torch.add(-half - 0.5 * LOG_2PI * count, delta, alpha=-0.5)

        return log_prob

    @torch.no_grad()
    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        x, known = self._flat(x, observed)
        return self._moments(x, known, r, r, own)

    def linear(self, own: slice | None = None) -> Linear | None:
        if self.kind.name not in NATURAL:
            return None
        own, means, scale = self._members(own)
        kind = NATURAL[self.kind.name]
        square, cross, norm = kind.precision(means, scale)
        constant = -0.5 * (cross * means).sum(1) - self.kind.half_log_det(scale, self.dim) - 0.5 * LOG_2PI * self.dim
        phi = features(kind, self.origin, float(norm.amax()))
        return Linear(torch.cat((square, cross, constant[:, None]), 1), lambda x: phi(x.reshape(len(x), self.dim)))

    def gathered(self, sums: Tensor, own: slice | None = None) -> Stats:
        kind = NATURAL[self.kind.name]
        terms = kind.terms(self.dim)
        n = placed(sums[:, -1], own, self.members)
        s1 = placed(sums[:, terms:-1], own, self.members)
        s2 = placed(kind.unpack(sums[:, :terms], self.dim), own, self.members)
        return {"n": n, "w": n.clone(), "s1": s1, "s2": s2}

    def fused(self, x: Tensor, own: slice | None = None) -> Fused | None:
        own, means, scale = self._members(own)
        return FusedGaussians.of(x, self.kind, self.origin, means, scale, own, self.members)

    def _noise(self, rng: Streams, which: Tensor) -> Tensor:
        return rng.child("noise").normal(self.dim, dtype=torch.float64).to(self.means.device)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        z = self.draw(rng, which).reshape(len(x), self.dim)
        observed = observed.reshape(z.shape)
        return self._condition(z, torch.where(observed, x.reshape(z.shape).to(z.dtype), 0.0), observed, which)

    def deviations(self, observed: Tensor) -> Tensor:
        known = observed.reshape(len(observed), self.dim)
        spread = self._spread(self.means, self.scale)
        if self.dense:
            out = partial.deviations(known, self.means, spread)
        else:
            out = torch.where(known[:, None], 0.0, spread.sqrt())
        return out.reshape(len(observed), self.members, *self.event)

    def split(self, heavy: int, empty: int, length: float) -> bool:
        if self.prior is not None:
            return False  # a member without rows is then where the prior wants it
        self._displace(heavy, empty, length)
        return True
