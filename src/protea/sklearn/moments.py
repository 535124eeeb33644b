r"""The M-step of Gaussians under the priors that hmmlearn writes down, by the families' own maximisers.

    mu_k = (lambda_k m_k + sum_b r_bk x_b) / (lambda_k + n_k)
    Sigma_k = (Psi_k + lambda_k (mu_k - m_k)(mu_k - m_k)^T + sum_b r_bk (x_b - a_k)(x_b - a_k)^T) / c_k

with a = mu the maximiser of a normal-inverse-Wishart (or inverse-gamma) posterior. hmmlearn's GMMHMM takes a = the
means before the step, so its covariances are larger by the square of the means' movement until they settle.

Huang, Acero & Hon 2001, "Spoken language processing", p. 443 - 445.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protea.core import Stats
from protea.distributions.elliptical import EMPTY
from protea.distributions.gaussian import Gaussian

FLOOR = 1e-12  # of a fitted covariance's eigenvalues: hmmlearn has none, and fails where they reach zero


class Prior(NamedTuple):
    """lambda (K,) rows at m (K, D), and a scatter Psi in the packing of the covariances."""

    rows: Tensor
    mean: Tensor
    scatter: Tensor


def fitted_means(family: Gaussian, stats: Stats, prior: Prior) -> Tensor:
    """mu (K, D); a member without rows keeps its mean."""
    weight = (stats["w"] + prior.rows)[:, None]
    sums = stats["s1"] + prior.rows[:, None] * (prior.mean - family.origin)
    return torch.where(weight > EMPTY, family.origin + sums / weight.clamp(min=EMPTY), family.means)


def scatters(family: Gaussian, stats: Stats, prior: Prior, means: Tensor, about: Tensor) -> Tensor:
    """The numerators of Sigma, in the packing of the covariances."""
    data = family.kind.centre(stats["w"], stats["s1"], stats["s2"], about - family.origin)
    return data + prior.scatter + family.kind.scatter(prior.rows.diag(), means - prior.mean)


def set_covariances(family: Gaussian, scatter: Tensor, divisor: Tensor) -> None:
    """Sigma = scatter / divisor, for the members whose divisor is positive."""
    live = divisor > EMPTY
    fitted = family.kind.fit(torch.where(live, divisor, 1.0), scatter, family.floor)
    family.scale.copy_(torch.where(live, fitted, family.scale))
