r"""Independent marginals: the floor that every other model has to beat, with an exact likelihood.

    p(x | y) = prod_f p_f(x_f | y),        p(x) = sum_y p(y) p(x | y)

Every field f is a histogram, learnt by counting with Lidstone's pseudo-count (`distributions/histogram.py` says what a
bin is): mass = (count + alpha) / (total + alpha * bins). With labels there is one histogram a class, which is a naive
Bayes classifier. Lidstone 1920; Scott 1992, "Multivariate density estimation".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from protea.core import Model
from protea.distributions.histogram import Histogram
from protea.errors import ConfigError
from protea.models.classical.mixed import in_space
from protea.models.classical.mixture import Mixture
from protea.models.entry import Entry
from protea.models.labels import class_shares
from protea.rng import permutation
from protea.space import Rows, Space


class Marginals(Mixture):
    """Independent fields, for each class; exact probability (mass x density) in the space's own units.

    log_prob is -inf for values the schema rules out, and finite for all others.

    Args:
        space: vector, table or image.
        bins: bins of each real or unbounded field, between its extremes.
        smoothing: pseudo-count alpha > 0 of every bin.

    Raises:
        ConfigError: a setting that is not positive, or a space of tokens.
    """

    def __init__(self, space: Space, bins: int = 64, smoothing: float = 1.0) -> None:
        if space.kind not in ENTRY.suits:
            raise ConfigError(f"Independent marginals do not describe a {space.kind} space.", "Use ngram for text.")
        histogram = Histogram(max(len(space.classes), 1), space.fields, bins=bins, smoothing=smoothing)
        super().__init__(in_space(histogram, space), 1, len(space.classes))
        self.space = space

    @property
    def histogram(self) -> Histogram:
        """The family of all fields, one member a class."""
        return next(part for part in self.family.modules() if isinstance(part, Histogram))

    @torch.no_grad()
    def initialise(self, rows: Rows, seed: int = 0) -> None:
        """Set the edges from the rows' quantiles, the class frequencies, and masses that are the prior's."""
        if self.classes and rows.y is not None:
            self.class_prior.copy_(class_shares(rows.y, self.classes))
        self.histogram.place(rows.x)


@dataclass(frozen=True)
class MarginalsConfig:
    """Settings of `marginals`; see `Marginals`."""

    bins: int = 64
    smoothing: float = 1.0


def build(space: Space, config: MarginalsConfig) -> Model:
    """Independent marginals, in the space's own units."""
    return Marginals(space, config.bins, config.smoothing)


def suggest(space: Space, rows: Rows, seconds: float) -> MarginalsConfig:
    """Bins by the rows' number, 2 n^(2/5); the pseudo-count of greatest leave-one-out likelihood, which is exact:
    sum over bins of c log((c - 1 + alpha) / (n - 1 + alpha K))."""
    n = max(len(rows), 1)
    config = MarginalsConfig(bins=int(min(max(2 * n**0.4, 8), 128)))
    rows = rows[permutation(n, 0, "marginals suggest")[:5000]]
    model = Marginals(space, config.bins, 1.0)
    model.initialise(rows)
    counts = model.expect(rows.x, rows.y if space.classes else None)["member.counts"]
    family, alive = model.histogram, model.histogram.living().double()
    totals = counts.new_zeros(model.groups, family.n_fields).index_add_(1, family.field, counts)[:, family.field]
    size = alive.new_zeros(family.n_fields).index_add_(0, family.field, alive)[family.field]

    def left_out(alpha: float) -> float:
        p = (counts - 1 + alpha).clamp(min=1e-300) / (totals - 1 + alpha * size).clamp(min=1e-300)
        return float(torch.where(counts > 0, counts * p.log(), 0.0).sum())

    return replace(config, smoothing=max((1.0, 0.3, 0.1, 0.03, 0.01, 0.003), key=left_out))


ENTRY = Entry(
    name="marginals",
    family="classical",
    title="Independent marginals",
    source="Lidstone 1920, Note on the general case of the Bayes-Laplace formula for inductive probabilities",
    suits=frozenset({"vector", "table", "image"}),
    config=MarginalsConfig,
    build=build,
    suggest=suggest,
)
