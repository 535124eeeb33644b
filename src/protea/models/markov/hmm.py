r"""Hidden Markov models: a chain of states z that nobody sees, each of which emits an observation.

    p(x, z) = pi_{z_1} b_{z_1}(x_1) \prod_{t=2}^{L} A_{z_{t-1} z_t} b_{z_t}(x_t),        p(x) = p(L) \sum_z p(x, z | L)

The emissions b are any `Family` (categories, Gaussians, mixtures of Gaussians, counts ...), the chain any topology.
log p(x), its gradient and the expected counts come from one forward-backward pass (`scan.py`). Baum-Welch learns:

    E-step   gamma_t(k) = p(z_t = k | x),    n_ij = E[steps from i to j | x]
    M-step   P_ij = n_ij / sum_j n_ij,       emissions maximised under the weights gamma

How long a sequence is, is part of the model, in one of three ways: it is given (all sequences have T steps, as blocks
of text have), it has a histogram of its own (`Lengths`), or the chain decides by stepping to its end. Then a sequence
that is still running after T steps is cut there, so that the probabilities of all sequences of at most T steps sum to
one.

Unknown entries (NaN, or a negative code) are integrated out. Where lengths are modelled, steps after the last known
entry are no steps: the sequence has ended.

Baum et al. 1970, "A maximization technique occurring in the statistical analysis of probabilistic functions of Markov
chains"; Rabiner 1989, "A tutorial on hidden Markov models and selected applications in speech recognition".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from protea.core import Conditionable, Countable, Normalised, Stats
from protea.distributions.family import Family
from protea.errors import ConfigError, DataError
from protea.models.labels import refuse_labels
from protea.models.markov import decode, emitted, scan
from protea.models.markov.chain import Chain
from protea.models.markov.conditional import ConditionalMarkov
from protea.models.markov.dynamics import Dynamics, Posterior
from protea.models.markov.lengths import Lengths
from protea.models.markov.likelihood import log_likelihood
from protea.models.markov.packed import Packed, known
from protea.models.markov.start import begin
from protea.models.markov.viterbi import viterbi
from protea.rng import Streams, fold
from protea.space import Rows

MEMORY = 1 << 22  # entries of alpha, by which sequences of a batch are taken in turn


class Prepared(NamedTuple):
    """What a scan over time is given: the layout, the packed steps, log b as `emitted.table` has it, the chain."""

    packed: Packed
    rows: Tensor
    log_b: Tensor
    index: Tensor | None
    dynamics: Dynamics

    def each(self) -> Tensor:
        """log b of each step, (N, K)."""
        return emitted.look_up(self.log_b, self.index)


class HiddenMarkov(Normalised, Countable, Conditionable):
    """A hidden Markov model of sequences (T, *emission.event), in float64.

    Args:
        emission: a family with one member for each state.
        chain: initial, transition and end probabilities.
        steps: T, the most steps of a sequence.
        lengths: the histogram of lengths; None where every sequence has as many steps as it is given with, or where
            the chain ends by itself.
        precision: of the scan over time. Emissions have their own (`model.emission.float()` where they can); statistics
            are summed in float64 always.

    Raises:
        ConfigError: another number of states than members, or two things that decide about the length.

    >>> from protea.distributions.categorical import Categorical
    >>> from protea.models.markov.topology import ergodic
    >>> model = HiddenMarkov(Categorical(2, 3), Chain(ergodic(2)), 4)
    >>> x = torch.tensor([[0, 0, 2, 1]])
    >>> round(float(model.log_prob(x).exp() * 3**4), 6)  # uniform, before it has learnt anything
    1.0
    """

    def __init__(
        self, emission: Family, chain: Chain, steps: int, lengths: Lengths | None = None,
        precision: torch.dtype = torch.float64,
    ) -> None:  # fmt: skip
        super().__init__()
        if emission.members != chain.states:
            raise ConfigError(f"{chain.states} states cannot share {emission.members} emissions.", "Give one to each.")
        if steps < 1 or (lengths is not None and (chain.ends or lengths.steps != steps)):
            raise ConfigError(f"A chain of {steps} steps whose length two parts decide makes no sense.",
                              "Give lengths of as many steps, or a topology with an end.")  # fmt: skip
        self.emission, self.chain, self.steps, self.lengths, self.precision = emission, chain, steps, lengths, precision
        self.event, self.states = (steps, *emission.event), chain.states

    @property
    def start(self) -> Tensor:
        """pi (K,); settable where there are no silent states and no end."""
        return self.chain.dynamics().start

    @start.setter
    def start(self, value: Tensor) -> None:
        self._set(0, value)

    @property
    def transition(self) -> Tensor:
        """A (K, K), silent states summed out; settable where there are none and no end."""
        return self.chain.dynamics().transition

    @transition.setter
    def transition(self, value: Tensor) -> None:
        self._set(slice(1, None), value)

    def _set(self, rows: int | slice, value: Tensor) -> None:
        if self.chain.silent or self.chain.ends:
            raise ConfigError("A chain with silent states or an end has more probabilities than these.",
                              "Set `chain.probabilities`.")  # fmt: skip
        p = self.chain.probabilities.detach()
        p[rows, :-1] = torch.as_tensor(value, dtype=p.dtype, device=p.device)
        self.chain.probabilities = p

    # ---- densities ----

    def layout(self, x: Tensor, lengths: Tensor | None = None) -> Packed:
        """How the steps of x (B, T', *event) are laid out; lengths (B,) override what the unknown entries say."""
        if x.ndim != 1 + len(self.event) or x.shape[2:] != self.event[1:] or x.shape[1] > self.steps:
            raise DataError(f"Sequences of shape {tuple(x.shape)} were given to a model of {self.event}.",
                            f"Give (B, up to {self.steps}, {', '.join(map(str, self.event[1:]))}).")  # fmt: skip
        if lengths is None:
            t = torch.arange(1, x.shape[1] + 1, device=x.device)
            modelled = self.lengths is not None or self.chain.ends
            lengths = t.new_full((len(x),), len(t))
            if modelled and len(t):
                lengths = (known(x).reshape(*x.shape[:2], math.prod(x.shape[2:])).any(2) * t).amax(1)
        return Packed(lengths, x.shape[1])

    def _log_b(self, rows: Tensor, observed: Tensor | None = None) -> Tensor:
        """log b of packed steps, (N, K)."""
        return emitted.log_b(self.emission, rows, self.precision, observed)

    def _dynamics(self, packed: Packed) -> Dynamics:
        d = self.chain.dynamics(self.precision)
        if d.last is None:
            return d
        cut = packed.lengths[:, None] >= self.steps  # still running where the sequence was cut
        return Dynamics(d.start, d.transition, torch.where(cut, 1.0, d.last))

    def _evidence(self, packed: Packed) -> Tensor:
        """log p(L) (B,), or of an empty sequence where the chain decides; 0 where lengths are given."""
        if self.lengths is not None:
            return self.lengths.log_p[packed.lengths]
        out = torch.zeros(packed.count, dtype=torch.float64, device=packed.lengths.device)
        return torch.where(packed.lengths == 0, self.chain.empty().log(), out) if self.chain.ends else out

    def _prepared(self, x: Tensor, states: Tensor | None, lengths: Tensor | None) -> Prepared:
        packed = self.layout(x, lengths)
        rows = packed.pack(x)
        if states is None:
            log_b, index = emitted.table(self.emission, rows, self.precision)
        else:
            log_b, index = self._known(self._log_b(rows), packed, x, states), None
        return Prepared(packed, rows, log_b, index, self._dynamics(packed))

    def _known(self, log_b: Tensor, packed: Packed, x: Tensor, states: Tensor) -> Tensor:
        """log b with -inf for all states but the one that is known."""
        if states.shape != x.shape[:2] or int(states.max()) >= self.states:
            raise DataError(f"Known states of shape {tuple(states.shape)} up to {int(states.max())} do not fit.",
                            f"Give {tuple(x.shape[:2])} of 0 .. {self.states - 1}, -1 for unknown.")  # fmt: skip
        z = packed.pack(states)[:, None]
        return torch.where((z < 0) | (z == torch.arange(self.states, device=z.device)), log_b, -math.inf)

    def log_prob(
        self, x: Tensor, cond: Tensor | None = None, *, states: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """log p(x) in nats, (B,), or log p(x, z) of those states z that are known.

        Args:
            x: (B, T', *event), T' <= T.
            cond: None; or, as a learner hands labels on, `states`.
            states: (B, T') known states, -1 where unknown.
            lengths: (B,) steps of each sequence, where the unknown entries do not say.
        """
        states = self._known_states(cond, states)
        out: list[Tensor] = []
        for i in self._turns(x):
            given = (None if v is None else v[i] for v in (states, lengths))
            p = self._prepared(x[i], *given)
            if torch.is_grad_enabled():
                log_p = log_likelihood(p.log_b, p.dynamics, p.packed)
            else:
                log_p = scan.evidence(p.log_b, p.dynamics, p.packed, p.index)
            out.append(log_p + self._evidence(p.packed))
        return torch.cat(out)

    def _turns(self, x: Tensor) -> Iterator[slice]:
        step = max(1, MEMORY // max(1, x.shape[1] * self.states))
        for i in range(0, max(len(x), 1), step):
            yield slice(i, i + step)

    def _known_states(self, cond: Tensor | None, states: Tensor | None) -> Tensor | None:
        if cond is not None and cond.ndim == 2 and states is None:
            return cond
        refuse_labels(cond)
        return states

    # ---- the hidden states ----

    @torch.no_grad()
    def posterior(self, x: Tensor, *, states: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """gamma: p(z_t = k | x), (B, T', K); zero beyond the end."""
        p = self._prepared(x, states, lengths)
        log_b = p.each()
        return p.packed.unpack(scan.smooth(log_b, p.dynamics, p.packed, None, log_b).gamma)

    @torch.no_grad()
    def decode(self, x: Tensor, *, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The most probable path (B, T'), -1 beyond the end, and log p(x, path) (B,), by Viterbi.

        Ways through silent states between two states that emit are summed (in a profile there is only one).
        """
        p = self._prepared(x, None, lengths)
        path, log_p = viterbi(p.log_b, p.dynamics, p.packed, p.index)
        return p.packed.unpack(path, -1), log_p + self._evidence(p.packed)

    @torch.no_grad()
    def sample_paths(self, x: Tensor, *, rng: Streams, lengths: Tensor | None = None) -> Tensor:
        """A path drawn from p(z | x), (B, T'), -1 beyond the end; row i uses stream i."""
        p = self._prepared(x, None, lengths)
        u = p.packed.pack(rng.child("path").uniform(x.shape[1], dtype=torch.float64))
        return p.packed.unpack(decode.sample_paths(u, p.each(), p.dynamics, p.packed), -1)

    # ---- Baum-Welch ----

    @torch.no_grad()
    def expect(
        self, x: Tensor, cond: Tensor | None = None, *, states: Tensor | None = None, lengths: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Stats:  # fmt: skip
        """Expected steps of the chain, the emissions' statistics and the lengths; arguments as of `log_prob`.

        `weights` (B,) multiply each sequence's share. One of probability zero counts nothing, and makes log_prob -inf.
        """
        states = self._known_states(cond, states)
        total: Stats = {}
        for i in self._turns(x):
            part = self._expect(x[i], *(None if v is None else v[i] for v in (states, lengths, weights)))
            total = {name: total[name] + v if total else v for name, v in part.items()}
        return total

    def _expect(self, x: Tensor, states: Tensor | None, lengths: Tensor | None, weights: Tensor | None) -> Stats:
        g = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
        packed, rows, log_b, index, dynamics = self._prepared(x, states, lengths)
        share = None if weights is None else g
        if index is None:
            p = scan.smooth(log_b, dynamics, packed, share, log_b)
            found = emitted.statistics(self.emission, rows, p.gamma, self._emission_dtype())
        else:
            p = scan.smooth_table(log_b, index, dynamics, packed, share)
            found = emitted.counted(self.emission, p.gamma, index)
        stats = {"chain": self._steps(p, g, packed), "count": g.sum()}
        log_p = p.log_prob + self._evidence(packed)
        stats["log_prob"] = torch.where(g > 0, g * log_p, 0.0).sum()
        if self.lengths is not None:
            stats["lengths"] = self.lengths.count(packed.lengths, g)
        return stats | {f"emission/{name}": value for name, value in found.items()}

    def _steps(self, p: Posterior, g: Tensor, packed: Packed) -> Tensor:
        running = packed.lengths < self.steps  # their end was seen, not cut
        end = p.last[running].double().sum(0)
        none = torch.where(packed.lengths == 0, g, 0.0).sum() if self.chain.ends else g.new_zeros(())
        none = torch.where(none > 0, none / self.chain.empty(), 0.0)
        return self.chain.counts(p.start.double(), p.transition.double(), end, none)

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        self.chain.maximise(stats["chain"])
        self.emission.maximise(self._emitted(stats))
        if self.lengths is not None:
            self.lengths.maximise(stats["lengths"])

    def _emitted(self, stats: Stats) -> Stats:
        """The emissions' own statistics, in their precision."""
        own = {name.removeprefix("emission/"): v for name, v in stats.items() if name.startswith("emission/")}
        return {name: v.to(self._emission_dtype()) for name, v in own.items()}

    def _emission_dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.emission.parameters()), torch.float64)

    def expected(self, stats: Stats) -> Tensor:
        """The expected complete-data log-likelihood of the present parameters, up to a constant."""
        out = self.chain.expected(stats["chain"]) + self.emission.expected(self._emitted(stats))
        return out if self.lengths is None else out + (stats["lengths"] * self.lengths.log_p).sum()

    def log_prior(self) -> Tensor:
        out = self.chain.log_prior() + self.emission.log_prior()
        return out if self.lengths is None else out + self.lengths.log_prior()

    @torch.no_grad()
    def initialise(self, rows: Rows, seed: int = 0) -> None:
        """Weights of the states for each step (see `start.py`), and one M-step from them."""
        packed = self.layout(rows.x)
        begin(self.emission, self.chain, rows, packed, seed)
        if self.lengths is not None:
            self.lengths.maximise(self.lengths.count(packed.lengths, torch.ones_like(packed.lengths)))

    # ---- drawing and conditioning ----

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        """States step by step, then what they emit; beyond the end NaN, or -1 where observations are whole numbers."""
        refuse_labels(cond)
        z = self._draw_states(rng)
        ids = (rng.ids[:, None] * self.steps + torch.arange(self.steps)).flatten()
        streams = Streams(fold(rng.seed, "emission"), ids, rng.device)
        x = self.emission.draw(streams, z.clamp(min=0).flatten()).reshape(len(rng), *self.event)
        over = (z < 0).view(*z.shape, *(1,) * len(self.emission.event))
        return x.masked_fill(over, math.nan if x.is_floating_point() else -1)

    def _draw_states(self, rng: Streams) -> Tensor:
        """(B, T) states, -1 beyond the end."""
        d = self.chain.dynamics()
        end = torch.zeros_like(d.start) if d.last is None else d.last
        first = torch.cat((d.start, self.chain.empty()[None]))
        rows = torch.cat((first[None], torch.cat((d.transition, end[:, None]), 1)))
        over = torch.zeros_like(rows[:1])
        over[0, -1] = 1.0
        cdf = torch.cat((rows, over)).cumsum(1)  # begin, states, ended
        cdf = cdf / cdf[:, -1:]
        u = rng.child("path").uniform(self.steps, dtype=torch.float64)
        now, path = torch.zeros(len(rng), dtype=torch.int64, device=u.device), []
        for t in range(self.steps):
            now = (cdf[now] < u[:, t, None]).sum(1) + 1
            path.append(now - 1)
        z = torch.stack(path, 1)
        z = torch.where(z == self.states, -1, z)
        if self.lengths is None:
            return z
        length = rng.child("length").categorical(self.lengths.log_p.expand(len(rng), -1))
        return torch.where(torch.arange(self.steps, device=z.device) < length[:, None], z, -1)

    def given(self, x: Tensor, observed: Tensor) -> ConditionalMarkov:
        """The exact conditional p(. | x[observed]): smoothing, filling and prediction; see `ConditionalMarkov`."""
        return ConditionalMarkov(self, x, observed)

    # ---- choice of the number of states ----

    def free_parameters(self) -> int:
        """Number of free parameters, lengths left out."""
        return self.chain.free() + self.emission.free()

    def bic(self, x: Tensor) -> float:
        """Bayesian information criterion, free log(steps) - 2 log p(x): lower is better."""
        return self.free_parameters() * math.log(max(self.layout(x).total, 1)) - 2 * float(self.log_prob(x).sum())
