"""The registered Boltzmann machines, and the visible units by which each kind of data enters them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from protea.core import Model
from protea.errors import ConfigError
from protea.models.boltzmann.boltzmann import Boltzmann, Learning
from protea.models.boltzmann.dbm import DBM
from protea.models.boltzmann.full import BoltzmannMachine
from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial, Gaussian, Levels, Units
from protea.models.entry import Entry
from protea.models.estimated import LiftedEstimate
from protea.space import Rows, Space
from protea.transforms.relaxations import relaxation_for

MOST_LEVELS = 32  # of pixels with a weight for each; finer ones are dequantised and Gaussian


def levels(space: Space) -> int | None:
    """Levels of every entry of the space, where all are bounded whole numbers of equally many; else None."""
    found = set()
    for f in space.fields:
        whole = f.kind == "category" or (f.kind == "grid" and f.step == 1 and math.isinf(f.low))
        found.add(f.levels if whole and not f.missing else 0)
    only = found.pop() if len(found) == 1 else 0
    return only if 2 <= only <= MOST_LEVELS else None


def visible_units(space: Space, hidden: int, kind: str = "auto") -> tuple[Units, bool]:
    """Visible units for a space, and whether they see its own units (or those of its relaxation).

    Raises:
        ConfigError: binomial units or those of levels for data that are not whole numbers of few levels.
    """
    n, size = levels(space), math.prod(space.event)
    if kind not in ("auto", "binomial", "levels", "gaussian"):
        raise ConfigError(f"visible is {kind!r}.", 'Choose "auto", "binomial", "levels" or "gaussian".')
    if kind in ("binomial", "levels") and n is None:
        raise ConfigError(f"This {space.kind} space is not made of whole numbers of at most {MOST_LEVELS} levels.",
                          'Choose visible="gaussian".')  # fmt: skip
    if n is None or kind == "gaussian":
        return Gaussian(math.prod(relaxation_for(space).event), hidden), False
    if kind == "binomial" or (kind == "auto" and n == 2):
        return Binomial(size, hidden, n - 1), True
    return Levels(size, hidden, n), True


def placed(space: Space, model: Boltzmann, native: bool) -> Model:
    """The model in its space: directly, or through the space's relaxation."""
    if native:
        model.space = space
        return model
    return LiftedEstimate(space, relaxation_for(space), model)


def event_of(space: Space, native: bool) -> tuple[int, ...]:
    return tuple(space.event) if native else relaxation_for(space).event


@dataclass(frozen=True)
class RBMConfig:
    """A restricted Boltzmann machine.

    Args:
        hidden: binary hidden units.
        visible: "binomial" (binary for two levels), "levels", "gaussian", or "auto" by the space.
        negative: where the negative phase comes from: "pcd", "cd" or "tempering".
        k: Gibbs sweeps a step of the negative phase.
        chains: persistent chains.
        rate: learning rate, falling to 0 over the second half.
        momentum: of the gradient.
        decay: of the weights.
        batch: rows of a step.
        sweeps: Gibbs sweeps of a draw.
    """

    hidden: int = 128
    visible: str = "auto"
    negative: str = "pcd"
    k: int = 1
    chains: int = 100
    rate: float = 0.05
    momentum: float = 0.5
    decay: float = 1e-4
    batch: int = 100
    sweeps: int = 200


@dataclass(frozen=True)
class DBMConfig:
    """A deep Boltzmann machine; see `RBMConfig` for what they share.

    Args:
        hidden: units of h1.
        top: units of h2.
        pretrain: steps of greedy learning of each of the two layers.
    """

    hidden: int = 128
    top: int = 64
    pretrain: int = 0
    visible: str = "auto"
    negative: str = "pcd"
    k: int = 1
    chains: int = 100
    rate: float = 0.05
    momentum: float = 0.5
    decay: float = 1e-4
    batch: int = 100
    sweeps: int = 200


@dataclass(frozen=True)
class BoltzmannConfig:
    """A Boltzmann machine over all pairs of units; see `RBMConfig` for what they share.

    Args:
        hidden: binary hidden units, coupled to each other.
        couplings: of visible units to each other, "all", "none", or "auto": all of binomial ones.
        posterior: the positive phase, "gibbs" or "mean-field".
        settle: sweeps of the positive phase.
    """

    hidden: int = 12
    couplings: str = "auto"
    posterior: str = "gibbs"
    settle: int = 3
    visible: str = "auto"
    negative: str = "pcd"
    k: int = 1
    chains: int = 100
    rate: float = 0.01
    momentum: float = 0.5
    decay: float = 1e-4
    batch: int = 100
    sweeps: int = 200


def _learning(c: RBMConfig | DBMConfig | BoltzmannConfig) -> Learning:
    return Learning(c.negative, c.k, c.chains, c.rate, c.momentum, c.decay, c.batch)


def build_rbm(space: Space, config: RBMConfig) -> Model:
    """An untrained restricted Boltzmann machine of a space."""
    units, native = visible_units(space, config.hidden, config.visible)
    model = RBM(event_of(space, native), units, len(space.classes), sweeps=config.sweeps,
                dtype=space.dtype if native else units.bias.dtype)  # fmt: skip
    model.learning = _learning(config)
    return placed(space, model, native)


def build_dbm(space: Space, config: DBMConfig) -> Model:
    """An untrained deep Boltzmann machine of a space."""
    units, native = visible_units(space, config.hidden, config.visible)
    model = DBM(event_of(space, native), units, config.top, len(space.classes), pretrain=config.pretrain,
                sweeps=config.sweeps, dtype=space.dtype if native else units.bias.dtype)  # fmt: skip
    model.learning = _learning(config)
    return placed(space, model, native)


def build_boltzmann(space: Space, config: BoltzmannConfig) -> Model:
    """An untrained Boltzmann machine of a space."""
    units, native = visible_units(space, config.hidden, config.visible)
    couplings = config.couplings if config.couplings != "auto" else "all" if isinstance(units, Binomial) else "none"
    model = BoltzmannMachine(event_of(space, native), units, len(space.classes), couplings=couplings,
                             posterior=config.posterior, settle=config.settle, sweeps=config.sweeps,
                             dtype=space.dtype if native else units.bias.dtype)  # fmt: skip
    model.learning = _learning(config)
    return placed(space, model, native)


def suggest_rbm(space: Space, train: Rows, seconds: float) -> RBMConfig:
    """Hidden units by the width of the data and the budget; gentler steps for Gaussian units and few rows."""
    units, native = visible_units(space, 1)
    short = seconds <= 20
    hidden = max(16, min(256 if short else 512, 2 * units.size))
    batch = 100 if len(train) >= 2000 else max(16, min(100, len(train) // 20))
    rate = 0.05 if native else 0.005
    if isinstance(units, Binomial):
        rate /= units.trials**0.5
    return RBMConfig(hidden=hidden, rate=float(f"{rate:.2g}"), batch=batch)


def suggest_dbm(space: Space, train: Rows, seconds: float) -> DBMConfig:
    """As for one hidden layer, with a second one half as wide; all of it learns at once, which centring makes work."""
    c = suggest_rbm(space, train, seconds)
    return DBMConfig(hidden=c.hidden, top=max(8, c.hidden // 2), rate=c.rate, batch=c.batch)


def suggest_boltzmann(space: Space, train: Rows, seconds: float) -> BoltzmannConfig:
    """Twelve hidden units, so that likelihoods need no bound; couplings of all pairs up to 100 visible units, since
    a sweep takes a step for each of them."""
    c = suggest_rbm(space, train, seconds)
    units, _ = visible_units(space, 1)
    dense = isinstance(units, Binomial) and units.size <= 100
    return BoltzmannConfig(rate=c.rate / 5, batch=c.batch, couplings="all" if dense else "none")


SUITS = frozenset({"vector", "table", "image"})

RBM_ENTRY = Entry(
    name="rbm",
    family="boltzmann",
    title="Restricted Boltzmann machine",
    source="Smolensky 1986; Hinton 2002, Training products of experts by minimizing contrastive divergence",
    suits=SUITS,
    config=RBMConfig,
    build=build_rbm,
    suggest=suggest_rbm,
)

DBM_ENTRY = Entry(
    name="dbm",
    family="boltzmann",
    title="Deep Boltzmann machine",
    source="Salakhutdinov & Hinton 2009, Deep Boltzmann machines",
    suits=SUITS,
    config=DBMConfig,
    build=build_dbm,
    suggest=suggest_dbm,
    usual=False,
)

BOLTZMANN_ENTRY = Entry(
    name="boltzmann",
    family="boltzmann",
    title="Boltzmann machine",
    source="Ackley, Hinton & Sejnowski 1985, A learning algorithm for Boltzmann machines",
    suits=SUITS,
    config=BoltzmannConfig,
    build=build_boltzmann,
    suggest=suggest_boltzmann,
    usual=False,
)
