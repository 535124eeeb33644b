r"""Where the negative phase of a Boltzmann machine's gradient comes from.

    d log p(x) / d theta = < -dE/dtheta >_data - < -dE/dtheta >_model

The second average needs samples of the model. Three ways to get them, cheapest first:

    DataChains        k Gibbs sweeps from the batch itself: contrastive divergence, CD-k. Biased, little noise
                      (Hinton 2002, "Training products of experts by minimizing contrastive divergence").
    PersistentChains  k sweeps of chains that go on from step to step: PCD, stochastic maximum likelihood
                      (Younes 1989; Tieleman 2008, "Training restricted Boltzmann machines using approximations to
                      the likelihood gradient").
    TemperedChains    the same with parallel tempering, where modes are far apart (Desjardins et al. 2010, "Parallel
                      tempering for training of restricted Boltzmann machines").

Chains are state of the learner. Their noise is a function of the seed, the step and the chain, so that a resumed run
goes on to the byte.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from protea.errors import ConfigError
from protea.rng import Streams, fold
from protea.samplers.tempering import State, Tempering, ladder


class Machine(Protocol):
    """What the negative phase needs of a machine."""

    def start(self, rng: Streams) -> State: ...
    def sweep(self, state: State, rng: Streams, beta: float | Tensor = 1.0) -> State: ...
    def tilt(self, state: State) -> Tensor: ...
    def awaken(self, state: State, rng: Streams) -> State: ...


class Negative(ABC):
    """Samples of the model for the negative phase."""

    @abstractmethod
    def __call__(self, machine: Machine, positive: State, rng: Streams) -> State:
        """States of the negative phase, from the batch's positive ones and its streams, one for each row."""

    def restart(self) -> None:  # noqa: B027 (nothing to forget by default)
        """Forget the chains: another machine learns from here on."""

    def state(self) -> dict[str, Tensor]:
        """The chains, for a checkpoint."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:  # noqa: B027
        """Restore what `state` returned."""


class DataChains(Negative):
    """CD-k: k sweeps from the batch."""

    def __init__(self, k: int = 1) -> None:
        if k < 1:
            raise ConfigError(f"Contrastive divergence of {k} sweeps learns nothing.", "Use k of at least 1.")
        self.k = k

    def __call__(self, machine: Machine, positive: State, rng: Streams) -> State:
        rng = rng.child("cd")
        state = machine.awaken(positive, rng)
        for _ in range(self.k):
            state = machine.sweep(state, rng)
        return state


class PersistentChains(Negative):
    """PCD-k: `n` chains go on for k sweeps a step; the same ones on every process."""

    def __init__(self, n: int = 100, k: int = 1) -> None:
        if min(n, k) < 1:
            raise ConfigError(f"{n} persistent chains of {k} sweeps a step learn nothing.", "Both are at least 1.")
        self.n, self.k, self.chains = n, k, None
        self.chains: State | None

    def __call__(self, machine: Machine, positive: State, rng: Streams) -> State:
        rng = Streams(fold(rng.seed, "chains"), self.n, rng.device)
        state = machine.start(rng) if self.chains is None else self.chains
        for _ in range(self.k):
            state = machine.sweep(state, rng)
        self.chains = state
        return state

    def restart(self) -> None:
        self.chains = None

    def state(self) -> dict[str, Tensor]:
        return {} if self.chains is None else dict(self.chains)

    def load_state(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.chains = {name: t.to(device).clone() for name, t in tensors.items()} or None


class TemperedChains(PersistentChains):
    """`n` chains of `replicas` temperatures each; those at beta = 1 are the negative phase."""

    def __init__(self, n: int = 32, replicas: int = 8, k: int = 1) -> None:
        super().__init__(n, k)
        if replicas < 2:
            raise ConfigError(f"Tempering with {replicas} replicas exchanges nothing.", "Use at least 2.")
        self.replicas = replicas

    def __call__(self, machine: Machine, positive: State, rng: Streams) -> State:
        rng = Streams(fold(rng.seed, "chains"), self.n * self.replicas, rng.device)
        tempering = Tempering(machine.sweep, machine.tilt, ladder(self.replicas).to(rng.device))
        state = machine.start(rng) if self.chains is None else self.chains
        for sweep in range(2 * self.k):  # even and odd pairs
            state = tempering.step(state, rng, bool(sweep % 2))
        self.chains = state
        return tempering.coldest(state)
