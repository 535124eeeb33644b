r"""The deep Boltzmann machine of two hidden layers.

    E(v, h1, h2) = -log m(v) - s(v) . (b + W1 h1) + 1/2 lambda v^2 - c1 . h1 - h1 W2 h2 - c2 . h2

Given h1, the layers v and h2 are independent: a bipartite machine seen from h1 (`Bipartite`), which gives block Gibbs
sweeps and annealed importance sampling over h1 with v and h2 summed out. The posterior of h1, h2 is not factorised;
the positive phase takes the mean field q(h1) q(h2) that maximises

    log p(v) >= E_q[-E(v, h1, h2)] + H(q) - log Z        (the variational bound; of log Z an estimate is known).

So the likelihood reported is an estimate: a bound minus an estimated constant. Of machines with at most 16 units in
the first hidden layer both are exact, by enumeration.

All layers learn together, by centred gradients and persistent chains (Montavon & Mueller 2012). Greedy pretraining is
on request: first v - h1 as a restricted machine whose bottom-up input counts twice, then h1 - h2 likewise with
the top-down input twice, which makes up for the input each layer lacks while the other is not there; then all together
with persistent chains. Salakhutdinov & Hinton 2009, "Deep Boltzmann machines".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.models.boltzmann.boltzmann import Boltzmann
from protea.models.boltzmann.enumeration import log_sum, states
from protea.models.boltzmann.machine import Bipartite, Machine, State
from protea.models.boltzmann.rbm import EXACT
from protea.models.boltzmann.units import Binomial, Softmax, Units
from protea.models.estimated import Partition
from protea.rng import Streams
from protea.samplers.gibbs import entropy

MEAN_FIELD = 10  # steps; on digits, twice as many move the bound by less than its error


class DBM(Boltzmann):
    """A deep Boltzmann machine v - h1 - h2, with labels, where there are classes, coupled to h1.

    Args:
        event: shape of one sample.
        visible: units whose centre is h1.
        top: units of h2.
        classes: labels; 0 for none.
        pretrain: steps of greedy learning of each of the two layers.
        sweeps: Gibbs sweeps of a draw.
        dtype: of samples.

    >>> model = DBM((6,), Binomial(6, 3), top=2)
    >>> model.sample(4).shape, model.log_partition().exact
    (torch.Size([4, 6]), True)
    """

    def __init__(
        self, event: tuple[int, ...], visible: Units, top: int, classes: int = 0, *, pretrain: int = 0,
        sweeps: int = 200, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        hidden = visible.weight.shape[1]
        if pretrain < 0:
            raise ConfigError(f"pretrain is {pretrain}.", "It is a number of steps: 0 or more.")
        outer = {"visible": visible, "top": Binomial(top, hidden)} | (
            {"label": Softmax(classes, hidden)} if classes else {}
        )
        super().__init__(event, dtype, outer, sweeps)
        self.bias, self.pretrain, self.tight = nn.Parameter(torch.zeros(hidden)), pretrain, hidden <= EXACT

    @property
    def top(self) -> Binomial:
        units = self.outer["top"]
        assert isinstance(units, Binomial)
        return units

    @property
    def machine(self) -> Bipartite:
        return self._bipartite(*self.outer)

    def _bipartite(self, *names: str, copies: int = 1) -> Bipartite:
        return Bipartite(self.bias, {n: self.outer[n] for n in names}, copies, "outer.")  # type: ignore[misc]

    # ---- learning

    def stage(self, step: int) -> tuple[int, Machine]:
        if step < self.pretrain:
            return 1, self._bipartite(*(name for name in self.outer if name != "top"), copies=2)
        if step < 2 * self.pretrain:
            return 2, self._bipartite("top", copies=2)
        return 0, self.machine

    def positive(self, stage: int, x: Tensor, y: Tensor | None, rng: Streams) -> State:
        state = self._seen(self.flat(x), self.one_hot(y, len(x)), rng)
        if stage == 0:
            return self._mean_field(state)
        first = self._bipartite(*state, copies=2)
        mean = torch.sigmoid(first.field(state))
        if stage == 1:
            return {**state, "mean": mean}
        return {"top": self.top.mean(self.top.pull(mean)), "mean": mean}

    def infer(self, v: Tensor, label: Tensor | None, rng: Streams) -> State:
        return self._mean_field(self._seen(v, label, rng))

    def _seen(self, v: Tensor, label: Tensor | None, rng: Streams) -> State:
        """The visible layers, unknown labels drawn by their bounds."""
        if self.label is None or label is None:
            return {"visible": v}
        unknown = label.sum(1) == 0
        if bool(unknown.any()):
            drawn = nn.functional.one_hot(rng.categorical(self._each_label(v)), self.label.size).to(label)
            label = torch.where(unknown[:, None], drawn, label)
        return {"visible": v, "label": label}

    def _mean_field(self, state: State) -> State:
        """The state with the means of h1 ("mean") and h2 ("top")."""
        below = self._bipartite(*state).field(state)
        mean = torch.sigmoid(2 * below - self.bias)
        for _ in range(MEAN_FIELD):
            top = self.top.mean(self.top.pull(mean))
            mean = torch.sigmoid(below + self.top.push(top))
        return {**state, "top": top, "mean": mean}

    # ---- likelihoods

    def _log_joint(self, state: State) -> Tensor:
        """log sum over h1, h2 of exp(-E): exact for few units, else its variational bound, (B,)."""
        own = self.visible.own(state["visible"])
        if self.label is not None:
            own = own + self.label.own(state["label"])
        below = self._bipartite(*state).field(state)
        if self.tight:
            parts = [below @ h.T + self.top.log_norm(self.top.pull(h)).sum(1)
                     for h in states(len(self.bias), like=self.bias)]  # fmt: skip
            return own + torch.logsumexp(torch.cat(parts, 1), 1)
        found = self._mean_field(state)
        m1, m2 = found["mean"], found["top"]
        average = (m1 * (below + self.top.push(m2))).sum(1) + m2 @ self.top.bias
        return own + average + entropy(m1) + entropy(m2)

    def _each_label(self, v: Tensor) -> Tensor:
        """`_log_joint` of every label, (B, classes)."""
        assert self.label is not None
        one_hot = torch.eye(self.label.size).to(v)
        return torch.stack([self._log_joint({"visible": v, "label": row.expand(len(v), -1)}) for row in one_hot], 1)

    def unnormalised(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams | None = None, k: int = 1) -> Tensor:
        v = self.flat(x)
        self.visible.check(v)
        label = self.one_hot(cond, len(x))
        if self.label is None or label is None:
            return self._log_joint({"visible": v})
        if cond is None:
            return torch.logsumexp(self._each_label(v), 1)
        return self._log_joint({"visible": v, "label": label})

    def log_partition(self, seed: int = 0, *, steps: int = 2000) -> Partition:
        if len(self.bias) <= EXACT:
            with torch.no_grad():
                return Partition(float(self.exact_log_partition()))
        return self.machine.estimate(seed, steps=steps, particles=self.particles)

    def exact_log_partition(self) -> Tensor:
        """log Z by summing over h1, (); differentiable.

        Raises:
            NotSupported: more than 20 units in h1.
        """
        return log_sum(len(self.bias), 2, self.machine.log_centre, like=self.bias)
