r"""Gaussian mixture, learnt by expectation-maximisation.

    p(x | y) = sum_k w_{y,k} N(x; mu_{y,k}, Sigma_{y,k}),        p(x) = sum_y p(y) p(x | y)

    E-step   r_{b,k} = w_k N(x_b; mu_k, Sigma_k) / p(x_b)
    M-step   w_k = N_k / N,  mu_k = sum_b r x_b / N_k,  Sigma_k = argmax over Sigma >= floor I,   N_k = sum_b r_{b,k}

Everything but the Gaussians is `Mixture`'s (see there for labels and for what is guaranteed). `reg_covar` is a floor of
the eigenvalues, part of the maximisation (see `distributions/covariance.py`), so the plain log-likelihood of the rows
never falls, at any step.

Dempster, Laird & Rubin 1977, "Maximum likelihood from incomplete data via the EM algorithm";
Arthur & Vassilvitskii 2007, "k-means++"; Schwarz 1978, "Estimating the dimension of a model" (BIC).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from protea.core import Model
from protea.distributions.covariance import Covariance
from protea.distributions.gaussian import Gaussian
from protea.distributions.priors import NormalInverseWishart, conjugate
from protea.models.classical.mixture import Mixture
from protea.models.classical.selection import build_lifted, search
from protea.models.entry import Entry
from protea.space import Rows, Space


class GaussianMixture(Mixture):
    """A mixture of k Gaussians for each class, in float64: `Mixture` of `Gaussian`, with names for their parameters.

    Args:
        event: shape of one sample; the Gaussians live in its D = prod(event) entries. NaN means unknown.
        k: components for each class.
        covariance: "full", "tied", "diag" or "spherical".
        classes: number of labels; 0 for none.
        reg_covar: floor of every covariance's eigenvalues, in squared units of x.
        prior: of means and covariances; None for maximum likelihood.
        weight_prior: alpha >= 1 of the weights' Dirichlet prior; 1 is none.
        restarts: starts that `initialise` tries; see `Mixture`.

    Raises:
        ConfigError: an unknown covariance, k < 1, a floor that is not positive, or alpha < 1.

    >>> import torch
    >>> from protea.rng import Streams
    >>> x = Streams(0, 400).normal(2, dtype=torch.float64)
    >>> model = GaussianMixture((2,), k=2)
    >>> model.initialise(Rows(x, None, torch.arange(400)))
    >>> model.maximise(model.expect(x))
    >>> model.log_prob(x[:5]).shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 2]))
    """

    family: Gaussian

    def __init__(
        self,
        event: tuple[int, ...],
        k: int,
        covariance: str = "full",
        classes: int = 0,
        reg_covar: float = 1e-6,
        prior: NormalInverseWishart | None = None,
        weight_prior: float = 1.0,
        restarts: int = 1,
    ) -> None:
        family = Gaussian(max(classes, 1) * k, event, covariance, reg_covar, prior)
        super().__init__(family, k, classes, weight_prior, restarts)

    @property
    def kind(self) -> Covariance:
        """How components are stretched."""
        return self.family.kind

    @property
    def reg_covar(self) -> float:
        """The floor of the covariances' eigenvalues."""
        return self.family.floor

    @property
    def means(self) -> Tensor:
        """(groups, k, D), a view that may be written to."""
        return self.family.means.view(self.groups, self.k, self.dim)

    @means.setter
    def means(self, value: Tensor) -> None:
        self.family.means.copy_(value.reshape(self.family.means.shape))

    @property
    def scale(self) -> Tensor:
        """Square roots of the covariances of all groups * k components (see `distributions/covariance.py`)."""
        return self.family.scale


@dataclass(frozen=True)
class GMMConfig:
    """Settings of `gmm`; see `GaussianMixture`. `prior` is "none", or "conjugate" for `priors.conjugate`."""

    k: int = 8
    covariance: str = "full"
    reg_covar: float = 1e-6
    prior: str = "none"
    restarts: int = 1


def _inner(event: tuple[int, ...], config: GMMConfig, classes: int) -> GaussianMixture:
    prior, alpha = conjugate(config.prior, math.prod(event))
    return GaussianMixture(
        event, config.k, config.covariance, classes, config.reg_covar, prior, alpha, restarts=config.restarts
    )


def build(space: Space, config: GMMConfig) -> Model:
    """A Gaussian mixture of the relaxed space."""
    return build_lifted(space, config, _inner)


def suggest(space: Space, rows: Rows, seconds: float) -> GMMConfig:
    """k and the covariance of lowest BIC; see `selection.search`."""
    return search(space, rows, seconds, GMMConfig(), _inner)


ENTRY = Entry(
    name="gmm",
    family="classical",
    title="Gaussian mixture",
    source="Dempster, Laird & Rubin 1977, Maximum likelihood from incomplete data via the EM algorithm",
    suits=frozenset({"vector", "table", "image"}),
    config=GMMConfig,
    build=build,
    suggest=suggest,
)
