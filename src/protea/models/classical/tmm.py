r"""Student-t mixture: a Gaussian mixture that outliers cannot pull.

    p(x | y) = sum_k w_{y,k} t(x; mu_{y,k}, Sigma_{y,k}, nu_{y,k})

The members are `StudentT` (see there for the density and its EM), everything else is `Mixture`'s. Degrees of freedom
are fitted for every component unless `dof` fixes them; fitted ones of a thousand say that the tails are Gaussian.

Peel & McLachlan 2000, "Robust mixture modelling using the t distribution".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from protea.core import Model
from protea.distributions.priors import conjugate
from protea.distributions.student_t import StudentT
from protea.models.classical.mixture import Mixture
from protea.models.classical.selection import build_lifted, search
from protea.models.entry import Entry
from protea.space import Rows, Space


@dataclass(frozen=True)
class TMMConfig:
    """Settings of `tmm`: those of `gmm`, and dof, the degrees of freedom (None: fitted)."""

    k: int = 8
    covariance: str = "full"
    dof: float | None = None
    reg_covar: float = 1e-6
    prior: str = "none"
    restarts: int = 1


def _inner(event: tuple[int, ...], config: TMMConfig, classes: int) -> Mixture:
    prior, alpha = conjugate(config.prior, math.prod(event))
    members = max(classes, 1) * config.k
    family = StudentT(members, event, config.covariance, config.reg_covar, config.dof, prior)
    return Mixture(family, config.k, classes, alpha, config.restarts)


def build(space: Space, config: TMMConfig) -> Model:
    """A Student-t mixture of the relaxed space."""
    return build_lifted(space, config, _inner)


def suggest(space: Space, rows: Rows, seconds: float) -> TMMConfig:
    """k and the covariance of lowest BIC; see `selection.search`."""
    return search(space, rows, seconds, TMMConfig(), _inner)


ENTRY = Entry(
    name="tmm",
    family="classical",
    title="Student-t mixture",
    source="Peel & McLachlan 2000, Robust mixture modelling using the t distribution",
    suits=frozenset({"vector", "table", "image"}),
    config=TMMConfig,
    build=build,
    suggest=suggest,
    usual=False,
)
