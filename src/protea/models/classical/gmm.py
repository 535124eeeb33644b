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
from dataclasses import dataclass, replace

from torch import Tensor

from protea.core import Model
from protea.distributions.covariance import Covariance
from protea.distributions.gaussian import Gaussian
from protea.distributions.priors import NormalInverseWishart
from protea.models.classical.mixture import Mixture
from protea.models.entry import Entry
from protea.models.lifted import lift
from protea.rng import Streams, permutation
from protea.space import Rows, Space
from protea.transforms.relaxations import relaxation_for

SEARCH_ROWS, SEARCH_STEPS = 10_000, 10  # of the search for k
OPERATIONS_PER_SECOND = 8e9  # of EM in float64 on one core, by which the search is kept within its share


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

    Raises:
        ConfigError: an unknown covariance, k < 1, a floor that is not positive, or alpha < 1.

    >>> import torch
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
    ) -> None:
        super().__init__(Gaussian(max(classes, 1) * k, event, covariance, reg_covar, prior), k, classes, weight_prior)

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

    @property
    def scale(self) -> Tensor:
        """Square roots of the covariances of all groups * k components (see `distributions/covariance.py`)."""
        return self.family.scale


@dataclass(frozen=True)
class GMMConfig:
    """Settings of `gmm`; see `GaussianMixture`."""

    k: int = 8
    covariance: str = "full"
    reg_covar: float = 1e-6


def build(space: Space, config: GMMConfig) -> Model:
    """A Gaussian mixture of the relaxed space."""
    relaxation = relaxation_for(space)
    inner = GaussianMixture(relaxation.event, config.k, config.covariance, len(space.classes), config.reg_covar)
    return lift(space, relaxation, inner)


def suggest(space: Space, rows: Rows, seconds: float) -> GMMConfig:
    """k and the covariance of lowest BIC after a few EM steps on a subsample, k = 1, 2, 4 ... while BIC falls.

    The search may cost about a tenth of the budget, shared by the kinds of covariance. It counts operations rather
    than time, so that the same data and budget give the same mixture on every machine. A tied covariance is tried up
    to 1,024 dimensions and full ones up to 100; beyond that diagonal ones are all that is affordable.
    """
    classes = len(space.classes)
    relaxation = relaxation_for(space)
    rows = rows[permutation(len(rows), 0, "gmm suggest")[:SEARCH_ROWS]]
    relaxation.fit(rows.x)
    v, _ = relaxation.lift(rows.x, Streams(0, rows.ids))
    lifted = Rows(v, rows.y if classes else None, rows.ids)
    d = math.prod(relaxation.event)
    kinds = ["diag"] + ["tied"] * (d <= 1024) + ["full"] * (d <= 100)
    best, lowest = GMMConfig(k=1, covariance="diag"), math.inf
    for kind in kinds:
        left = 0.1 * seconds * OPERATIONS_PER_SECOND / len(kinds)
        k, previous = 1, math.inf
        while k <= max(1, min(256, len(v) // (2 * max(classes, 1)))):
            left -= SEARCH_STEPS * len(v) * k * d * (8 if kind == "diag" else 4 * d)
            if left < 0 and k > 1:
                break
            config = replace(best, k=k, covariance=kind)
            bic = _short_fit(config, lifted, classes)
            if bic < lowest:
                best, lowest = config, bic
            if bic >= previous:
                break
            k, previous = 2 * k, bic
    return best


def _short_fit(config: GMMConfig, rows: Rows, classes: int) -> float:
    model = GaussianMixture(tuple(rows.x.shape[1:]), config.k, config.covariance, classes, config.reg_covar)
    model.initialise(rows)
    for _ in range(SEARCH_STEPS):
        model.maximise(model.expect(rows.x, rows.y))
    return model.bic(rows.x, rows.y)


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
