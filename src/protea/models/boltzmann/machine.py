r"""What every Boltzmann machine gives its learner and its samplers, and the bipartite one.

    p(s) = exp(-E(s)) / Z over the states s of all units, seen and hidden.

A state is a dict of tensors by layer, each (B, units); "mean" is the mean of the hidden layer "h" given the others,
which stands for it wherever only expectations are wanted (Rao-Blackwell). The gradient of the log-likelihood is the
difference of two phases (Ackley, Hinton & Sejnowski 1985):

    d log p(x) / d theta = < -dE/dtheta >_{p(hidden | x)} - < -dE/dtheta >_{p(s)}
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from protea.models.boltzmann.products import flip, less, total
from protea.models.boltzmann.units import Beta, Units
from protea.models.estimated import Partition
from protea.rng import Streams, fold
from protea.samplers.ais import Step, Weights, ais, spacing
from protea.samplers.sandwich import sandwich

State = dict[str, Tensor]
Phase = tuple[State, Tensor]  # and a weight for each row, (B,)
Clamp = Mapping[str, tuple[Tensor, Tensor]]  # layer to (values, True where they are held), each (B, units)


class Machine(ABC):
    """The mechanics of one Boltzmann machine; see the module."""

    @abstractmethod
    def start(self, rng: Streams) -> State:
        """A state of each stream, drawn from the base distribution (beta = 0)."""

    @abstractmethod
    def sweep(self, state: State, rng: Streams, beta: Beta = 1.0, clamp: Clamp | None = None) -> State:
        """Every unit drawn once given the others, at inverse temperature beta; leaves p_beta(s | clamp) invariant."""

    @abstractmethod
    def tilt(self, state: State) -> Tensor:
        """E(s) - E_base(s), (B,): what the inverse temperature multiplies."""

    @abstractmethod
    def sums(self, *phases: Phase) -> dict[str, Tensor]:
        """Sums over rows of -dE/d(parameter), each row times its weight (B,), by the model's name of the parameter."""

    def statistics(self, state: State, weight: Tensor | None = None) -> dict[str, Tensor]:
        """The sums of one state, whose rows weigh 1 unless told otherwise."""
        h = state["mean"] if "mean" in state else state["h"]
        return self.sums((state, h.new_ones(len(h)) if weight is None else weight))

    @abstractmethod
    def centres(self, state: State, weight: Tensor) -> dict[str, Tensor]:
        """Sums over rows of what every bias multiplies, by the model's name of the bias."""

    @abstractmethod
    def centred(self, gradient: dict[str, Tensor], centres: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The step that this gradient is to the machine whose units are counted from their centres (see `contrast`)."""

    @abstractmethod
    def awaken(self, state: State, rng: Streams) -> State:
        """The state with units in the place of means, from which chains can go on."""


class Bipartite(Machine):
    """A binary layer h of H units and outer layers coupled to it alone.

        -E(u, h) = c . h + sum_g [log m(u_g) + s(u_g) . (b_g + W_g h) - 1/2 lambda_g u_g^2]

    Given h the outer layers are independent; given them the units of h are. A restricted Boltzmann machine has the
    outer layers "visible" (and "label"); a deep one with two hidden layers is the same thing seen from its first hidden
    layer, with the second one as a third outer layer "top".

    Args:
        bias: c, (H,).
        outer: the outer layers by name.
        copies: how often the outer layers ask of h (2 in the greedy training of a deep machine).
        prefix: of the outer layers' parameters in the model.
    """

    def __init__(self, bias: Tensor, outer: Mapping[str, Units], copies: int = 1, prefix: str = "") -> None:
        self.bias, self.outer, self.copies, self.prefix = bias, dict(outer.items()), copies, prefix

    def field(self, state: State, beta: Beta = 1.0) -> Tensor:
        """Log-odds of h given the outer layers, (B, H)."""
        total = self.bias
        for name, units in self.outer.items():
            pushed = units.push(state[name])
            total = total + (pushed if self.copies == 1 else self.copies * pushed)
        return total if isinstance(beta, float) and beta == 1.0 else beta * total

    def start(self, rng: Streams) -> State:
        h = rng.bernoulli(self.bias.new_full((len(rng), len(self.bias)), 0.5))
        return self.sweep({"h": h}, rng, 0.0)

    def sweep(self, state: State, rng: Streams, beta: Beta = 1.0, clamp: Clamp | None = None) -> State:
        h, new = state["h"], {}
        for name, units in self.outer.items():
            held = clamp.get(name) if clamp else None
            if held is not None and bool(held[1].all()):
                new[name] = held[0]
                continue
            u = units.draw(units.pull(h), rng, beta)
            new[name] = u if held is None else torch.where(held[1], held[0], u)
        mean, h = flip(self.field(new, beta), rng)
        return {**new, "mean": mean, "h": h}

    def awaken(self, state: State, rng: Streams) -> State:
        return {**state, "h": rng.bernoulli(state["mean"])}

    def sums(self, *phases: Phase) -> dict[str, Tensor]:
        found = {"bias": total(weight @ state["mean"] for state, weight in phases)}
        for name, units in self.outer.items():
            each = units.sums(*((state[name], state["mean"], weight) for state, weight in phases))
            found |= {f"{self.prefix}{name}.{key}": value for key, value in each.items()}
        return found

    def centres(self, state: State, weight: Tensor) -> dict[str, Tensor]:
        outer = {f"{self.prefix}{n}.bias": weight @ units.seen(state[n]) for n, units in self.outer.items()}
        return {**outer, "bias": weight @ (state["mean"] if "mean" in state else state["h"])}

    def centred(self, gradient: dict[str, Tensor], centres: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """dW' = dW - db mu_h^T - mu dc^T,  db' = db - dW' mu_h,  dc' = dc - sum of mu dW'."""
        new, middle, change = dict(gradient), centres["bias"], gradient["bias"]
        for name in self.outer:
            weight, bias = f"{self.prefix}{name}.weight", f"{self.prefix}{name}.bias"
            new[weight] = less(gradient[weight], gradient[bias], middle, centres[bias], change)
            new[bias] = gradient[bias] - new[weight] @ middle
            new["bias"] = new["bias"] - centres[bias] @ new[weight]
        return new

    def energy(self, state: State) -> Tensor:
        """E(s) of all units, (B,)."""
        h = state["h"]
        total = h @ self.bias
        for name, units in self.outer.items():
            total = total + units.own(state[name]) + (units.push(state[name]) * h).sum(1)
        return -total

    def tilt(self, state: State) -> Tensor:
        base = sum((units.own(state[name], 0.0) for name, units in self.outer.items()), torch.zeros(()))
        return self.energy(state) + base

    # ---- the partition function

    @torch.no_grad()
    def log_base(self) -> float:
        """log Z of beta = 0."""
        none = self.bias.new_zeros(1, len(self.bias))
        outer = sum(float(units.log_norm(units.pull(none), 0.0).double().sum()) for units in self.outer.values())
        return len(self.bias) * math.log(2) + outer

    def log_centre(self, h: Tensor) -> Tensor:
        """log sum over the outer layers of exp(-E(u, h)), (B,)."""
        return h @ self.bias + sum(units.log_norm(units.pull(h)).sum(1) for units in self.outer.values())

    def estimate(
        self, seed: int, *, chains: int = 128, steps: int = 2000, particles: Tensor | None = None
    ) -> Partition:  # fmt: skip
        """log Z by annealed importance sampling from both sides (`samplers/sandwich.py`); a function of the seed.

        Args:
            chains: of each direction.
            steps: of the longest path.
            particles: hidden states (n, H) of a long run of the model, from which chains anneal back; None for forward
                chains alone.
        """
        warm = None if particles is None or len(particles) == 0 else lambda rng: self.settled(particles, rng)
        return Partition.of(self.log_base(), sandwich(
            self.blank, self.annealing, fold(seed, "ais"), target=warm, chains=chains, steps=steps,
            device=self.bias.device,
        ))  # fmt: skip

    @torch.no_grad()
    def weights(self, seed: int, *, chains: int, steps: int) -> Weights:
        """Weights of chains from the base (the data's independent marginals) to the machine, over the states of h:
        the outer layers are summed out, which makes the weights vary less."""
        rng = Streams(fold(seed, "ais"), chains, self.bias.device)
        return ais(self.blank(rng), spacing(steps), self.annealing(rng))[0]

    def blank(self, rng: Streams) -> Tensor:
        """Hidden states of beta = 0, (n, H)."""
        return rng.bernoulli(self.bias.new_full((len(rng), len(self.bias)), 0.5))

    def settled(self, particles: Tensor, rng: Streams, sweeps: int = 100) -> Tensor:
        """Hidden states (n, H) of chains that go on from particles drawn at random."""
        which = (rng.coins(1)[:, 0] * len(particles)).long().to(particles.device)
        state = {"h": particles[which].to(self.bias)}
        for _ in range(sweeps):
            state = self.sweep(state, rng)
        return state["h"]

    def annealing(self, rng: Streams) -> Step[Tensor]:
        """A step of `ais` over hidden states; its moves, h to u to h, are reversible."""

        def step(h: Tensor, b0: float, b1: float) -> tuple[Tensor, Tensor]:
            log_ratio, outer = (b1 - b0) * (h @ self.bias).double(), {}
            for name, units in self.outer.items():
                pull = units.pull(h)
                log_ratio += (units.log_norm(pull, b1) - units.log_norm(pull, b0)).sum(1)
                outer[name] = units.draw(pull, rng, b1)
            return log_ratio, flip(self.field(outer, b1), rng)[1]

        return step
