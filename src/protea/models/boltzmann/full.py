r"""The Boltzmann machine: every unit may be coupled to every other, visible and hidden.

    -E(v, h) = log m(v) + b . v + c . h + v^T W h + sum_{i<j} L_ij v_i v_j + sum_{k<l} J_kl h_k h_l

W couples visible to hidden, L visible to visible, J hidden to hidden units. (An energy with L alone would leave the
hidden units independent of the data.) Learning needs two averages of s_i s_j (Ackley, Hinton & Sejnowski 1985, "A
learning algorithm for Boltzmann machines"): with v at the data, by Gibbs sampling of h or by a mean field; and free
running, from persistent chains (Younes 1989). Where the visible units are binomial with n > 1 trials this is Besag's
auto-binomial model (1974); where they are Gaussian there is no L, and p(v) is a mixture of Gaussians whose members'
weights are a Boltzmann machine.

Of up to 12 hidden units log p*(v) is an exact sum over h; beyond, the mean-field bound. log Z is exact where all states
can be summed over, else by annealed importance sampling.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from protea.errors import ConfigError, NotSupported
from protea.models.boltzmann.boltzmann import Boltzmann
from protea.models.boltzmann.enumeration import MOST, log_sum, states
from protea.models.boltzmann.machine import Bipartite, Clamp, Machine, Phase, State
from protea.models.boltzmann.products import less, outer
from protea.models.boltzmann.units import Beta, Binomial, Softmax, Units
from protea.models.estimated import Partition
from protea.rng import Streams, fold
from protea.samplers.ais import Step
from protea.samplers.gibbs import entropy, gibbs, mean_field
from protea.samplers.sandwich import sandwich

SUMMED = 12  # hidden units up to which their states are summed over for every row


def symmetric(upper: Tensor) -> Tensor:
    """The couplings (n, n) of which the entries above the diagonal are the parameters."""
    upper = upper.triu(1)
    return upper + upper.T


class General(Machine):
    """A bipartite machine with couplings inside its visible and inside its hidden layer."""

    def __init__(self, bipartite: Bipartite, lateral: Tensor | None, inner: Tensor) -> None:
        self.bipartite, self.outer = bipartite, bipartite.outer
        self.lateral, self.inner = None if lateral is None else symmetric(lateral), symmetric(inner)

    def start(self, rng: Streams) -> State:
        return self.bipartite.start(rng)

    def sweep(self, state: State, rng: Streams, beta: Beta = 1.0, clamp: Clamp | None = None) -> State:
        h, new, clamp = state["h"], {}, clamp or {}
        for name, units in self.outer.items():
            held = clamp.get(name)
            pull = units.pull(h)
            if name == "visible" and self.lateral is not None and isinstance(units, Binomial):
                s = state[name] if held is None else torch.where(held[1], held[0], state[name])
                new[name] = gibbs(s, units.bias + pull, self.lateral, rng, beta, base=units.base, trials=units.trials,
                                  held=None if held is None else held[1])  # fmt: skip
                continue
            u = units.draw(pull, rng, beta)
            new[name] = u if held is None else torch.where(held[1], held[0], u)
        return {**new, "h": self.hidden(h, self.bipartite.field(new), rng, beta)}

    def hidden(self, h: Tensor, field: Tensor, rng: Streams, beta: Beta = 1.0) -> Tensor:
        """One sweep over the hidden units."""
        return gibbs(h, field, self.inner, rng, beta)

    def awaken(self, state: State, rng: Streams) -> State:
        return state if "h" in state else {**state, "h": rng.bernoulli(state["mean"])}

    def sums(self, *phases: Phase) -> dict[str, Tensor]:
        phases = tuple(({"mean": state["h"], **state}, weight) for state, weight in phases)
        found = self.bipartite.sums(*phases)
        found["inner"] = outer(*((state["mean"], state["mean"], weight) for state, weight in phases)).triu(1)
        if self.lateral is not None:
            v = [(state["visible"], weight) for state, weight in phases]
            found["lateral"] = outer(*((u, u, weight) for u, weight in v)).triu(1)
        return found

    def centres(self, state: State, weight: Tensor) -> dict[str, Tensor]:
        return self.bipartite.centres(state, weight)

    def centred(self, gradient: dict[str, Tensor], centres: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new = self.bipartite.centred(gradient, centres)
        within = {"inner": "bias"} | (
            {} if self.lateral is None else {"lateral": f"{self.bipartite.prefix}visible.bias"}
        )
        for name, bias in within.items():
            change, mu = gradient[bias], centres[bias]
            new[name] = less(gradient[name], change, mu, mu, change).triu(1)
            new[bias] = new[bias] - symmetric(new[name]) @ mu
        return new

    def within(self, state: State) -> Tensor:
        """What the couplings inside the layers add to -E, (B,)."""
        h, v = state["h"], state["visible"]
        total = 0.5 * ((h @ self.inner) * h).sum(1)
        return total if self.lateral is None else total + 0.5 * ((v @ self.lateral) * v).sum(1)

    def energy(self, state: State) -> Tensor:
        """E of all units, (B,)."""
        return self.bipartite.energy(state) - self.within(state)

    def tilt(self, state: State) -> Tensor:
        return self.bipartite.tilt(state) - self.within(state)

    @torch.no_grad()
    def estimate(self, seed: int, *, chains: int = 128, steps: int = 2000) -> Partition:
        """log Z by annealed importance sampling over all units, forward only: sweeps are not reversible."""

        def start(rng: Streams) -> State:
            return {name: value for name, value in self.start(rng).items() if name != "mean"}

        def annealing(rng: Streams) -> Step[State]:
            return lambda state, b0, b1: (-(b1 - b0) * self.tilt(state).double(), self.sweep(state, rng, b1))

        found = sandwich(start, annealing, fold(seed, "ais"), chains=chains, steps=steps, device=self.inner.device)
        return Partition.of(self.bipartite.log_base(), found)


class BoltzmannMachine(Boltzmann):
    """A Boltzmann machine over all pairs of units.

    Args:
        event: shape of one sample.
        visible: units whose centre are the hidden ones.
        classes: labels; 0 for none. One-hot label units are coupled to the hidden ones.
        couplings: "all" pairs of visible units, or "none" of them (as with Gaussian units).
        posterior: the positive phase, "gibbs" or "mean-field".
        settle: sweeps of the positive phase.
        sweeps: Gibbs sweeps of a draw.
        dtype: of samples.

    >>> model = BoltzmannMachine((4,), Binomial(4, 2))
    >>> model.sample(3).shape, model.log_partition().exact
    (torch.Size([3, 4]), True)
    """

    def __init__(
        self, event: tuple[int, ...], visible: Units, classes: int = 0, *, couplings: str = "all",
        posterior: str = "gibbs", settle: int = 10, sweeps: int = 200, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        hidden = visible.weight.shape[1]
        if couplings not in ("all", "none") or (couplings == "all" and not isinstance(visible, Binomial)):
            raise ConfigError(f"couplings is {couplings!r} of {type(visible).__name__} units.",
                              'Choose "all" (binomial units) or "none".')  # fmt: skip
        if posterior not in ("gibbs", "mean-field"):
            raise ConfigError(f"posterior is {posterior!r}.", 'Choose "gibbs" or "mean-field".')
        outer = {"visible": visible} | ({"label": Softmax(classes, hidden)} if classes else {})
        super().__init__(event, dtype, outer, sweeps)
        self.posterior, self.settle, self.tight = posterior, settle, hidden <= SUMMED
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.inner = nn.Parameter(torch.zeros(hidden, hidden))  # J, of which the upper triangle counts
        self.lateral = nn.Parameter(torch.zeros(visible.size, visible.size)) if couplings == "all" else None

    @property
    def machine(self) -> General:
        bipartite = Bipartite(self.bias, self.outer, prefix="outer.")  # type: ignore[arg-type]
        return General(bipartite, self.lateral, self.inner)

    def infer(self, v: Tensor, label: Tensor | None, rng: Streams) -> State:
        machine, state = self.machine, {"visible": v}
        if self.label is not None and label is not None:
            unknown = label.sum(1) == 0
            if bool(unknown.any()):
                drawn = nn.functional.one_hot(rng.categorical(self._joint(v)), self.label.size).to(label)
                label = torch.where(unknown[:, None], drawn, label)
            state["label"] = label
        field = machine.bipartite.field(state)
        if self.posterior == "mean-field":
            return {**state, "mean": mean_field(field, machine.inner, steps=self.settle)}
        h = rng.bernoulli(torch.sigmoid(field))
        for _ in range(self.settle):
            h = machine.hidden(h, field, rng)
        return {**state, "h": h}

    # ---- likelihoods

    def _log_joint(self, state: State) -> Tensor:
        """log sum_h exp(-E): exact for few hidden units, else the mean-field bound, (B,)."""
        machine, v = self.machine, state["visible"]
        own = self.visible.own(v)
        if self.label is not None:
            own = own + self.label.own(state["label"])
        if machine.lateral is not None:
            own = own + 0.5 * ((v @ machine.lateral) * v).sum(1)
        field = machine.bipartite.field(state)
        if self.tight:
            chunks = states(len(self.bias), like=self.bias)
            parts = [field @ h.T + 0.5 * ((h @ machine.inner) * h).sum(1) for h in chunks]
            return own + torch.logsumexp(torch.cat(parts, 1), 1)
        m = mean_field(field, machine.inner)
        return own + (m * (field + 0.5 * m @ machine.inner)).sum(1) + entropy(m)

    def _joint(self, v: Tensor) -> Tensor:
        """`_log_joint` of every label, (B, classes); (B, 1) without labels."""
        if self.label is None:
            return self._log_joint({"visible": v})[:, None]
        one_hot = torch.eye(self.label.size).to(v)
        return torch.stack([self._log_joint({"visible": v, "label": y.expand(len(v), -1)}) for y in one_hot], 1)

    def unnormalised(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams | None = None, k: int = 1) -> Tensor:
        v = self.flat(x)
        self.visible.check(v)
        label, joint = self.one_hot(cond, len(x)), self._joint(v)
        return torch.logsumexp(joint, 1) if cond is None or label is None else (joint * label).sum(1)

    def log_partition(self, seed: int = 0, *, steps: int = 2000) -> Partition:
        try:
            with torch.no_grad():
                return Partition(float(self.exact_log_partition()))
        except NotSupported:
            return self.machine.estimate(seed, steps=steps)

    def exact_log_partition(self) -> Tensor:
        """log Z by summing over the hidden states where nothing couples the visible ones, else over those; ().

        Raises:
            NotSupported: too many states.
        """
        machine, visible = self.machine, self.visible
        if machine.lateral is None and len(self.bias) <= MOST:
            log_f = lambda h: machine.bipartite.log_centre(h) + 0.5 * ((h @ machine.inner) * h).sum(1)  # noqa: E731
            return log_sum(len(self.bias), 2, log_f, like=self.bias)
        if not (self.tight and isinstance(visible, Binomial)):
            raise NotSupported(f"{visible.size} visible and {len(self.bias)} hidden units have too many states.",
                               "Use log_partition(), which estimates.")  # fmt: skip
        levels = visible.trials + 1
        return log_sum(visible.size, levels, lambda v: torch.logsumexp(self._joint(v), 1), like=self.bias)
