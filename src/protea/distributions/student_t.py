r"""Multivariate Student-t members: Gaussians with tails that outliers cannot pull.

    p(x | k) = Gamma((nu + D) / 2) / (Gamma(nu / 2) (nu pi)^{D/2} |Sigma|^{1/2}) (1 + delta / nu)^{-(nu + D) / 2}

with delta = (x - mu)^T Sigma^-1 (x - mu). It is a Gaussian of random scale, x | u ~ N(mu, Sigma / u),
u ~ Gamma(nu / 2, nu / 2), and EM takes u as missing:

    expect     u_{bk} = (nu + D) / (nu + delta),  E[log u] = log u_{bk} + psi((nu + D) / 2) - log((nu + D) / 2)
    maximise   mu = sum r u x / sum r u,    Sigma = sum r u (x - mu)(x - mu)^T / sum r,
               log(nu / 2) - psi(nu / 2) + 1 + sum r (E[log u] - u) / sum r = 0

The left of the last falls in nu, so its root, or the nearer end of the allowed interval, is the maximiser. A row of
which D_o entries are known has D_o in place of D, and its conditional covariance needs no u: E[u Cov[x | u]] is
Sigma's.

Peel & McLachlan 2000, "Robust mixture modelling using the t distribution"; Liu & Rubin 1995, "ML estimation of the t
distribution using EM and its extensions" (unknown entries).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions.elliptical import Elliptical
from protea.distributions.family import Density
from protea.distributions.gamma import gamma
from protea.distributions.priors import NormalInverseWishart
from protea.errors import ConfigError
from protea.rng import Streams

LOWEST, HIGHEST = 0.5, 1e3  # degrees of freedom that are fitted; at the upper end the tails are Gaussian


class StudentT(Elliptical):
    """K Student-t distributions over the D = prod(event) entries of an observation; NaN means unknown.

    Args:
        members: K.
        event: shape of one observation.
        covariance: of the scale matrix Sigma: "full", "tied", "diag" or "spherical".
        floor: of Sigma's eigenvalues, in squared units of x.
        dof: degrees of freedom nu of every member; None to fit them, from 10 on.
        prior: of means and scale matrices; None for maximum likelihood.

    Parameters, which may be set: `means` (K, D), `covariances` (Sigma, as of `Gaussian`), `nu` (K,). The covariance
    of a member is Sigma nu / (nu - 2), where nu > 2.

    Raises:
        ConfigError: an unknown covariance, no members, or a floor or dof that is not positive.

    >>> family = StudentT(1, (1,), dof=1.0)  # Cauchy
    >>> round(float(family.log_prob(torch.zeros(1, 1)).exp()), 4)
    0.3183
    """

    def __init__(
        self,
        members: int,
        event: tuple[int, ...],
        covariance: str = "full",
        floor: float = 1e-6,
        dof: float | None = None,
        prior: NormalInverseWishart | None = None,
    ) -> None:
        super().__init__(members, event, covariance, floor, prior)
        if dof is not None and not dof > 0:
            raise ConfigError(f"{dof} degrees of freedom make no sense.", "Give a positive number, or None to fit it.")
        self.fixed = dof is not None
        start = torch.full((members,), 10.0 if dof is None else float(dof), dtype=torch.float64)
        self.nu = nn.Parameter(start, requires_grad=False)
        self.width = max(self.width, 4)

    def density(self, own: slice | None = None) -> Density:
        distance = self.distance(own)
        nu = self.nu if own is None else self.nu[own]
        constant = -torch.lgamma(0.5 * nu)

        def log_prob(x: Tensor, observed: Tensor | None = None) -> Tensor:
            delta, half, count = distance(*self._flat(x, observed))
            power = 0.5 * (nu + count)
            scale = half + 0.5 * count * (math.pi * nu).log()
            return torch.lgamma(power) + constant - scale - power * torch.log1p(delta.clamp(min=0) / nu)

        return log_prob

    @torch.no_grad()
    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        x, known = self._flat(x, observed)
        delta, _, count = self.distance(own)(x, known)
        nu = self.nu if own is None else self.nu[own]
        u = (nu + count) / (nu + delta.clamp(min=0))
        half = 0.5 * (nu + count)
        log_u = u.log() + torch.digamma(half) - half.log()
        stats = self._moments(x, known, r * u, r, own)
        stats["tail"] = x.new_zeros(self.members)
        stats["tail"][slice(None) if own is None else own] = (r * (log_u - u)).sum(0)
        return stats

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        super().maximise(stats)
        live = stats["n"] > 1e-10
        if not self.fixed:
            target = 1 + stats["tail"][live] / stats["n"][live]
            self.nu[live] = solve_dof(target)

    @torch.no_grad()
    def expected(self, stats: Stats) -> Tensor:
        half = 0.5 * self.nu
        scales = stats["n"] * (torch.xlogy(half, half) - torch.lgamma(half)) + half * stats["tail"]
        return super().expected(stats) + scales.sum()

    def _noise(self, rng: Streams, which: Tensor) -> Tensor:
        z = rng.child("noise").normal(self.dim, dtype=torch.float64).to(self.means.device)
        half = 0.5 * self.nu[which]
        return z * (half / gamma(rng.child("scale"), half)).sqrt()[:, None]

    @torch.no_grad()
    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        """u given x_o is Gamma((nu + D_o) / 2, (nu + delta_o) / 2); given u all is Gaussian."""
        observed = observed.reshape(len(x), self.dim)
        known = torch.where(observed, x.reshape(len(x), self.dim).to(torch.float64), 0.0)
        about = torch.where(observed, known - self.origin, 0.0)
        delta, _, count = self.distance()(about, observed)
        nu, row = self.nu[which], torch.arange(len(x), device=which.device)
        u = gamma(rng.child("scale"), 0.5 * (nu + count[:, 0])) / (0.5 * (nu + delta[row, which].clamp(min=0)))
        noise = rng.child("noise").normal(self.dim, dtype=torch.float64).to(u.device) / u.sqrt()[:, None]
        z = self.means[which] + self.kind.colour(noise, self.scale, which)
        return self._condition(z, known, observed, which)

    def free(self) -> int:
        return super().free() + (0 if self.fixed else self.members)

    @torch.no_grad()
    def split(self, heavy: int, empty: int, length: float) -> bool:
        if self.prior is not None:
            return False  # a member without rows is then where the prior wants it
        nu = float(self.nu[heavy])
        self._displace(heavy, empty, length * math.sqrt(nu / (nu + self.dim)))  # u is at most (nu + D) / nu
        self.nu[empty] = self.nu[heavy]
        return True


def solve_dof(target: Tensor) -> Tensor:
    """The root nu of log(nu / 2) - psi(nu / 2) + target = 0 within [LOWEST, HIGHEST], by bisection of log nu.

    >>> nu = torch.tensor([3.0], dtype=torch.float64)
    >>> bool(torch.isclose(solve_dof(torch.digamma(nu / 2) - (nu / 2).log()), nu))
    True
    """
    low, high = torch.full_like(target, math.log(LOWEST / 2)), torch.full_like(target, math.log(HIGHEST / 2))
    for _ in range(60):
        middle = 0.5 * (low + high)
        right = middle - torch.digamma(middle.exp()) + target > 0  # the function falls: its root is to the right
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    return 2 * (0.5 * (low + high)).exp()
