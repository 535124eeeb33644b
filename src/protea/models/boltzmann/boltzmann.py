r"""The part of a Boltzmann machine that its users see: samples, completions, likelihoods; whatever its layers.

A model that was learnt with persistent chains keeps where they are (its *particles*); a sample starts at one of them
and goes on for `sweeps` Gibbs sweeps (Tieleman 2008). They have run for as long as the model learnt, and cover modes
that chains begun anew do not find in thousands of sweeps. Other chains (completions, samples of a given label, models
without particles) are annealed: they start at the base distribution, the independent marginals of the data, the inverse
temperature rises to 1 over the first half of the sweeps, and the other half runs at 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from protea.core import Conditionable, Model
from protea.errors import ConfigError, DataError
from protea.models.boltzmann.machine import Machine, State
from protea.models.boltzmann.units import Softmax, Units
from protea.models.estimated import Estimated
from protea.models.labels import refuse_labels
from protea.rng import Streams
from protea.space import Rows


@dataclass(frozen=True)
class Learning:
    """How a machine learns unless told otherwise; read by its default learner.

    Args:
        negative: "pcd" (persistent chains), "cd" (chains from the data) or "tempering".
        k: Gibbs sweeps a step of the negative phase.
        chains: persistent ones.
        rate: learning rate, falling to 0 over the second half.
        momentum, decay: of the gradient, of the weights.
        batch: rows of a step.
    """

    negative: str = "pcd"
    k: int = 1
    chains: int = 100
    rate: float = 0.05
    momentum: float = 0.5
    decay: float = 1e-4
    batch: int = 100

    def __post_init__(self) -> None:
        if self.negative not in ("pcd", "cd", "tempering"):
            raise ConfigError(f"There is no negative phase {self.negative!r}.", 'Choose "pcd", "cd" or "tempering".')


class Boltzmann(Conditionable, Estimated):
    """A Boltzmann machine over the event, with labels as one more visible layer.

    Args:
        event: shape of one sample.
        dtype: of samples, that of the space.
        outer: its layers beside the hidden ones: "visible" and perhaps "label".
        sweeps: Gibbs sweeps of a draw.
    """

    learning = Learning()
    class_prior: Tensor  # relative frequencies of the labels
    particles: Tensor  # (n, H) hidden states of the persistent chains; none before learning

    def __init__(self, event: tuple[int, ...], dtype: torch.dtype, outer: Mapping[str, Units], sweeps: int) -> None:
        super().__init__()
        self.event, self.dtype, self.sweeps = tuple(event), dtype, sweeps
        self.outer = torch.nn.ModuleDict(dict(outer))
        classes = self.label.size if self.label is not None else 0
        self.register_buffer("class_prior", torch.full((classes,), 1 / max(classes, 1), dtype=torch.float64))
        self.register_buffer("particles", torch.zeros(0, self.visible.weight.shape[1]))
        self.block = 256 if math.prod(event) <= 256 else 64

    @property
    @abstractmethod
    def machine(self) -> Machine:
        """The mechanics of the whole model."""

    @abstractmethod
    def infer(self, v: Tensor, label: Tensor | None, rng: Streams) -> State:
        """The hidden units given the visible ones: their means, exact or of a mean field; unknown labels are drawn."""

    def stage(self, step: int) -> tuple[int, Machine]:
        """Which machine learns at a step, and its number: greedy training has several."""
        return 0, self.machine

    def positive(self, stage: int, x: Tensor, y: Tensor | None, rng: Streams) -> State:
        """The state of a batch in the positive phase of a stage."""
        return self.infer(self.flat(x), self.one_hot(y, len(x)), rng)

    # ---- between users' units and the machine's

    @property
    def visible(self) -> Units:
        units = self.outer["visible"]
        assert isinstance(units, Units)
        return units

    @property
    def label(self) -> Softmax | None:
        units = self.outer["label"] if "label" in self.outer else None  # noqa: SIM401 (no get)
        assert units is None or isinstance(units, Softmax)
        return units

    def flat(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1).to(self.visible.weight)

    def one_hot(self, y: Tensor | None, n: int) -> Tensor | None:
        """(B, classes), rows of zeros where the label is unknown (-1); None without a label layer.

        Raises:
            NotSupported: labels for a model without classes.
        """
        if self.label is None:
            refuse_labels(y)
            return None
        if y is None:
            return self.label.weight.new_zeros(n, self.label.size)
        if int(y.max()) >= self.label.size:
            raise DataError(f"Label {int(y.max())} is not one of {self.label.size} classes.", "Labels start at 0.")
        return F.one_hot(y.clamp(min=0), self.label.size).to(self.label.weight) * (y >= 0)[:, None]

    @torch.no_grad()
    def initialise(self, rows: Rows, seed: int = 0) -> None:
        """Visible biases and base to the marginals of the rows, small random weights, all else to 0.

        Raises:
            DataError: values outside the support of the visible units.
        """
        v = self.flat(rows.x)
        self.visible.check(v)
        self.visible.fit_base(v)
        if self.label is not None:
            y = rows.y if rows.y is None else rows.y.to(v.device)
            label = self.one_hot(y, len(v))
            assert label is not None
            self.label.fit_base(label)
            self.class_prior.copy_(self.label.base.softmax(0))
        for name, units in self.outer.items():
            assert isinstance(units, Units)
            units.redraw(seed, name)
        for own in self.parameters(recurse=False):  # hidden biases, couplings inside layers
            own.zero_()

    # ---- draws

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        label = self.one_hot(cond, len(rng))
        clamp = {} if cond is None or label is None else {"label": (label, torch.ones_like(label, dtype=torch.bool))}
        return self.lower(self.run(rng.child("gibbs"), clamp)["visible"])

    def lower(self, v: Tensor) -> Tensor:
        return v.reshape(len(v), *self.event).to(self.dtype)

    def run(self, rng: Streams, clamp: Mapping[str, tuple[Tensor, Tensor]], sweeps: int | None = None) -> State:
        """A Gibbs chain for each stream, with some units held; the state it ends in."""
        sweeps, machine = sweeps or self.sweeps, self.machine
        state, warm = machine.start(rng), len(self.particles) > 0 and not clamp
        if warm:
            which = (rng.coins(1)[:, 0] * len(self.particles)).long()
            state["h"] = self.particles[which.to(self.particles.device)]
        for t in range(sweeps):
            state = machine.sweep(state, rng, 1.0 if warm else min(1.0, 2 * (t + 1) / sweeps), clamp)
        return state

    def given(self, x: Tensor, observed: Tensor) -> Model:
        """p(. | x[observed]) by Gibbs sampling with the observed units held; see `Clamped`."""
        return Clamped(self, x, observed)


class Clamped(Model):
    """Completions by an annealed Gibbs chain whose observed units are held: in the limit of many sweeps, p(x_u | x_o).

    Draw i completes row i mod B, so `sample(B)` completes every row once and `sample(m * B)` m times. A row that is
    observed entirely comes back as it is.

    Args:
        model: the machine.
        x: (*event) or (B, *event).
        observed: boolean, shaped as x.

    Raises:
        DataError: shapes that do not match, or an observed value outside the support.
    """

    x: Tensor
    seen: Tensor

    def __init__(self, model: Boltzmann, x: Tensor, observed: Tensor) -> None:
        super().__init__()
        event = model.event
        if x.shape != observed.shape or tuple(x.shape[max(x.ndim - len(event), 0) :]) != event:
            raise DataError(
                f"Observed entries of shape {tuple(observed.shape)} do not fit x {tuple(x.shape)} and {event}.",
                "Both are (*event) or (B, *event).",
            )
        if observed.dtype != torch.bool:
            raise DataError(f"Observed entries are of type {observed.dtype}.", "True where observed, else False.")
        x, observed = x.reshape(-1, *event), observed.reshape(-1, *event).flatten(1)
        if len(x) == 0:
            raise DataError("There are no rows to complete.", "Give at least one.")
        self.model, self.block = model, model.block
        if hasattr(model, "space"):
            self.space = model.space
        self.register_buffer("x", torch.where(observed, model.flat(x.nan_to_num() if x.is_floating_point() else x), 0))
        self.register_buffer("seen", observed)
        model.visible.check(self.x)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        row = (rng.ids % len(self.x)).to(self.x.device)
        clamp = {"visible": (self.x[row], self.seen[row])}
        label = self.model.one_hot(cond, len(rng))
        if cond is not None and label is not None:
            clamp["label"] = (label, torch.ones_like(label, dtype=torch.bool))
        return self.model.lower(self.model.run(rng.child("gibbs"), clamp)["visible"])

    @torch.no_grad()
    def mean(self, sweeps: int = 100, *, rng: int = 0) -> Tensor:
        """E[x | x_o] of each row, (B, *event) float64: the mean of E[x | h] over the last sweeps of its chain."""
        model, streams = self.model, Streams(rng, len(self.x), self.x.device).child("gibbs")
        clamp, units, total = {"visible": (self.x, self.seen)}, model.visible, torch.zeros_like(self.x).double()
        state = model.run(streams, clamp)
        for _ in range(sweeps):
            state = model.machine.sweep(state, streams, 1.0, clamp)
            total += units.mean(units.pull(state["h"]))
        return torch.where(self.seen, self.x.double(), total / sweeps).reshape(-1, *model.event)
