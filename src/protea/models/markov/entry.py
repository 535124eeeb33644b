"""The line of the registry: hidden Markov models of texts, and of series of real vectors."""

from __future__ import annotations

from dataclasses import dataclass

from protea.core import Model
from protea.distributions.categorical import Categorical
from protea.distributions.family import Family
from protea.distributions.gaussian import Gaussian
from protea.distributions.nested import Nested
from protea.models.classical.mixture import Mixture
from protea.models.entry import Entry
from protea.models.markov.chain import Chain
from protea.models.markov.family import MarkovFamily
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.lengths import Lengths
from protea.models.markov.topology import topology
from protea.space import Rows, Space
from protea.spaces import Series, Tokens

OPERATIONS_PER_SECOND, ROUNDS = 5e9, 30  # of the scan on one core; EM steps to allow for
SHARE = 0.7  # of the budget, for these steps
MOST = 64  # states that are suggested


@dataclass(frozen=True)
class HMMConfig:
    """Settings of `hmm`.

    Args:
        states: K.
        topology: "ergodic", "left-to-right", "banded" or "cyclic".
        covariance: of the Gaussians of series: "full", "tied", "diag" or "spherical".
        mixtures: Gaussians a state emits from.
        chains: hidden Markov models in a mixture (for each class, where there are labels).
        prior: pseudo-counts of every symbol and of every step of the chain.
        reg_covar: floor of the covariances' eigenvalues, in squared units of the series.
    """

    states: int = 8
    topology: str = "ergodic"
    covariance: str = "diag"
    mixtures: int = 1
    chains: int = 1
    prior: float = 0.01
    reg_covar: float = 1e-6


def build(space: Space, config: HMMConfig) -> Model:
    """One chain, or a mixture of them: `chains` for each class."""

    def chain() -> HiddenMarkov:
        k = config.states
        lengths = None
        if isinstance(space, Tokens):
            emission: Family = Categorical(k, space.vocabulary, (), config.prior)
        else:
            assert isinstance(space, Series)
            event, lengths = (len(space.names),), Lengths(space.steps)
            emission = Gaussian(k * config.mixtures, event, config.covariance, config.reg_covar)
            emission = emission if config.mixtures == 1 else Nested(emission, k, config.prior)
        return HiddenMarkov(emission, Chain(topology(config.topology, k), config.prior), space.event[0], lengths)

    classes = len(space.classes)
    many = config.chains * max(classes, 1)
    if many == 1:
        model: Model = chain()
    else:
        model = Mixture(MarkovFamily([chain() for _ in range(many)]), config.chains, classes)
    model.space = space
    return model


def suggest(space: Space, rows: Rows, seconds: float) -> HMMConfig:
    """As many states as the budget affords for thirty steps of EM, with no fewer than 100 steps of data each.

    Series of up to 8 channels get full covariances, others diagonal ones.
    """
    steps = int((~rows.x.isnan()).any(2).sum()) if isinstance(space, Series) else rows.x.numel()
    share = max(len(space.classes), 1)
    k = 2
    while 2 * k <= MOST and 2 * k * 100 * share <= steps:
        if ROUNDS * steps * (2 * k) ** 2 * 6 > SHARE * seconds * OPERATIONS_PER_SECOND:
            break
        k *= 2
    full = isinstance(space, Series) and len(space.names) <= 8
    floor = 1e-6
    if isinstance(space, Series):
        known = rows.x[~rows.x.isnan()]
        floor = max(1e-12, 1e-4 * float(known.var())) if len(known) > 1 else 1e-6
    return HMMConfig(states=k, covariance="full" if full else "diag", reg_covar=floor)


ENTRY = Entry(
    name="hmm",
    family="classical",
    title="Hidden Markov model",
    source="Baum, Petrie, Soules & Weiss 1970, A maximization technique occurring in the statistical analysis of "
    "probabilistic functions of Markov chains",
    suits=frozenset({"tokens", "series"}),
    config=HMMConfig,
    build=build,
    suggest=suggest,
)
