r"""Conjugate priors that keep members of a family from collapsing on a few rows.

The normal-inverse-Wishart prior of a Gaussian's mean and covariance is

    p(Sigma) = |Psi|^{nu/2} |Sigma|^{-(nu+D+1)/2} exp(-tr(Psi Sigma^-1) / 2) / (2^{nu D/2} Gamma_D(nu/2))
    mu | Sigma ~ N(m, Sigma / kappa)

It weighs as rows do: kappa rows at m, and a scatter of Psi. The maximiser of likelihood times prior of n rows with mean
xbar and scatter S about it is (Gelman et al., "Bayesian data analysis", section 3.6)

    mu = (kappa m + n xbar) / (kappa + n)
    Sigma = (Psi + S + kappa n / (kappa + n) (xbar - m)(xbar - m)^T) / (nu + D + 2 + n)

For diagonal covariances every entry has its one-dimensional case, with Psi's diagonal; for spherical ones the variance
is inverse-gamma(nu / 2, psi / 2) with psi the mean of Psi's diagonal; a tied covariance is drawn once.

Where Psi and m are not given they are those of Fraley & Raftery 2007, "Bayesian regularization for normal mixture
estimation and model-based clustering": m the rows' mean, Psi their covariance / K^{2/D}, kappa = 0.01, nu = D + 2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from protea.distributions.covariance import Covariance
from protea.errors import ConfigError, DataError, nearest


class Pseudo(NamedTuple):
    """A prior as rows: added to the statistics of data. `weight` divides the scatter and differs from `n`."""

    n: Tensor | float
    s1: Tensor
    s2: Tensor
    weight: float


class NormalInverseWishart(nn.Module):
    """The prior of every member's mean and covariance.

    Args:
        dim: D.
        kappa: rows that the prior mean weighs.
        nu: degrees of freedom of the covariance, above D - 1; D + 2 if not given, where E[Sigma] = Psi.
        mean: m (D,); the data's if not given.
        psi: Psi (D, D); from the data if not given.

    >>> prior = NormalInverseWishart(2)
    >>> prior.nu
    4.0
    """

    mean: Tensor
    psi: Tensor

    def __init__(
        self,
        dim: int,
        kappa: float = 0.01,
        nu: float | None = None,
        mean: Tensor | None = None,
        psi: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kappa, self.nu = float(kappa), float(dim + 2 if nu is None else nu)
        if not self.kappa > 0 or not self.nu > dim - 1:
            raise ConfigError(f"A prior of kappa={kappa} and nu={self.nu:g} in {dim} dimensions is improper.",
                              f"kappa must be positive and nu above {dim - 1}.")  # fmt: skip
        self.given = (mean is not None, psi is not None)
        eye, zero = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
        self.register_buffer("mean", zero if mean is None else torch.as_tensor(mean, dtype=torch.float64).clone())
        self.register_buffer("psi", eye if psi is None else torch.as_tensor(psi, dtype=torch.float64).clone())
        if self.mean.shape != (dim,) or self.psi.shape != (dim, dim) or bool(torch.linalg.cholesky_ex(self.psi)[1]):
            raise DataError(
                f"A prior of {dim} dimensions got a mean {tuple(self.mean.shape)} and a psi {tuple(self.psi.shape)}.",
                f"Give ({dim},) and a positive definite ({dim}, {dim}).",
            )

    @torch.no_grad()
    def fit(self, mean: Tensor, covariance: Tensor, members: int) -> None:
        """Take what was not given from the rows' mean (D,) and covariance (D, D)."""
        d = len(mean)
        if not self.given[0]:
            self.mean.copy_(mean)
        if not self.given[1]:
            value, vector = torch.linalg.eigh(covariance)
            least = max(1e-6 * float(value[-1]), 1e-12)  # rows may not span the space
            self.psi.copy_((vector * value.clamp(min=least)) @ vector.T / members ** (2 / d))

    def pseudo(self, kind: Covariance, k: int, origin: Tensor) -> Pseudo:
        """The prior of k members as statistics about `origin`."""
        m = (self.mean - origin).expand(k, -1)
        n = m.new_full((k,), self.kappa)
        s2 = kind.scatter(n.diag(), m) + kind.narrow(self.psi)
        return Pseudo(self.kappa, self.kappa * m, s2, kind.pull(self.nu, k, len(origin)))

    def log_prob(self, kind: Covariance, means: Tensor, scale: Tensor) -> Tensor:
        """log p(mu, Sigma) of all members, in nats."""
        k, d = means.shape
        half = kind.half_log_det(scale, d).expand(k)
        away = means - self.mean
        tilt = kind.spent(kind.scatter(torch.eye(k, dtype=means.dtype, device=means.device), away), scale)
        normal = -0.5 * k * d * math.log(2 * math.pi / self.kappa) - half.sum() - 0.5 * self.kappa * tilt
        return normal + kind.log_prior(self.psi, self.nu, scale)


def conjugate(name: str, dim: int) -> tuple[NormalInverseWishart | None, float]:
    """The priors of a setting, of members and of weights: "none", or "conjugate", that of the module's docstring with
    a Dirichlet of alpha = 2 for the weights (one row more for every member).

    Raises:
        ConfigError: another name.
    """
    if name not in ("none", "conjugate"):
        raise ConfigError(f"There is no prior {name!r}.", nearest(name, ("none", "conjugate")))
    return (NormalInverseWishart(dim), 2.0) if name == "conjugate" else (None, 1.0)
