r"""Maximum likelihood of Boltzmann machines by stochastic approximation: the difference of two phases.

    theta <- theta + rate (< -dE/dtheta >_data - < -dE/dtheta >_chains)

The gradient is that of the machine whose units are counted from their centres mu, running averages of the positive
phase: -E = (v - mu_v)^T W (h - mu_h) + b' (v - mu_v) + c' (h - mu_h). It is the same machine, with biases that make up
for the difference, but its gradient keeps the biases' share out of the weights (of digits, 784 units that are on 13 %
of the time): Montavon & Mueller 2012, "Deep Boltzmann machines and the centering trick"; Melchior, Fischer & Wiskott
2016, "How to center deep Boltzmann machines". Told in the machine's own parameters, of which nothing else changes:

    dW' = dW - db mu_h^T - mu_v dc^T,      db' = db - dW' mu_h,      dc' = dc - dW'^T mu_v.

Statistics are sums with counts, added over ranks before they are divided; persistent chains are the same on every
rank. Robbins & Monro 1951; Younes 1989. Weights are averaged along the path (Polyak & Juditsky 1992).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from protea.core import Batch, Learner, Model
from protea.errors import Diverged
from protea.models.boltzmann.boltzmann import Boltzmann
from protea.models.boltzmann.machine import Machine, State
from protea.models.boltzmann.products import ascend, square
from protea.objectives.contrastive_divergence import Negative, PersistentChains
from protea.training import ema as averages
from protea.training import parallel
from protea.training.precision import Precision, autocast, resolve
from protea.training.schedule import Schedule


def fading(step: int, horizon: int | None) -> float:
    """The whole rate at first, linearly to 0 over the second half of the plan."""
    return 1.0 if not horizon else min(1.0, max(2.0 * (1.0 - step / horizon), 0.0))


class Contrast(Learner):
    """Ascend the log-likelihood of a Boltzmann machine by the difference of its two phases.

    Args:
        model: the machine.
        negative: where samples of the model come from; default 100 persistent chains.
        rate: learning rate of plain ascent.
        momentum: of the gradient.
        decay: of the weights between layers, a step of `rate * decay * W` towards 0.
        centre: weight of a batch in the averages that units are counted from; None counts them from 0.
        clip: largest change of a weight in one step before momentum; None for no limit.
        schedule: (step, horizon) to a multiple of `rate`.
        ema: weight of the newest weights in their average; None keeps no average.
        batch_size: rows of a global batch; None lets the loop choose.
        precision: "fp32"; "bf16" or "auto" use bfloat16 products where the hardware has them natively.

    >>> from protea.models.boltzmann.rbm import RBM
    >>> from protea.models.boltzmann.units import Binomial
    >>> from protea.rng import Streams
    >>> model = RBM((4,), Binomial(4, 2))
    >>> learner = Contrast(model)
    >>> sorted(learner.step(Batch(torch.ones(8, 4), None, Streams(0, 8))))
    ['gradient_norm', 'lr']
    """

    def __init__(
        self, model: Boltzmann, negative: Negative | None = None, *,
        rate: float = 0.05,
        momentum: float = 0.5,
        decay: float = 1e-4,
        centre: float | None = 0.01,
        clip: float | None = None,
        schedule: Schedule = fading,
        ema: averages.Weight | None = averages.power(16.0, decay=0.999),  # noqa: B008 (a pure function)
        batch_size: int | None = 100,
        precision: Precision = "fp32",
    ) -> None:  # fmt: skip
        self.model, self.negative = model, negative or PersistentChains()
        self.rate, self.momentum, self.decay, self.clip = rate, momentum, decay, clip
        self.centre, self.centres = centre, dict[str, Tensor]()
        self.schedule, self.batch_size = schedule, batch_size
        self.steps = self.present = 0
        self.dtype, _ = resolve(precision, next(model.parameters()).device)
        parallel.broadcast_(model)
        self.params = dict(model.named_parameters())
        self.velocity = {name: torch.zeros_like(p) for name, p in self.params.items()}
        self.ema = averages.Ema(self.params, ema) if ema else None

    @torch.no_grad()
    def step(self, batch: Batch) -> Mapping[str, float]:
        stage, machine = self.model.stage(self.steps)
        if stage != self.present:
            self.negative.restart()
            self.present = stage
        with autocast(self.dtype, batch.x.device):
            positive = self.model.positive(stage, batch.x, batch.y, batch.rng.child("positive"))
            negative = self.negative(machine, positive, batch.rng)
            difference = self._difference(machine, positive, negative)
        if stage == 0 and isinstance(self.negative, PersistentChains):
            self.model.particles = negative["h"].float()
        rate = self.rate * self.schedule(self.steps, self.horizon)
        norm = math.sqrt(sum(square(g) for g in difference.values()))
        if not math.isfinite(norm):
            raise Diverged(
                f"The phases of the {type(self.model).__name__} differ by {norm} at step {self.steps}.",
                "The weights before this step and the last checkpoint are kept. Lower the learning rate.",
            )
        for name, g in difference.items():
            p = self.params[name]
            ascend(p, g, self.velocity[name], rate, self.momentum, self.decay if p.ndim == 2 else 0.0, self.clip)
        self.steps += 1
        if self.ema:
            self.ema.update()
        return {"gradient_norm": norm, "lr": rate}

    def _difference(self, machine: Machine, positive: State, negative: State) -> dict[str, Tensor]:
        """< -dE/dtheta >_data - < -dE/dtheta >_chains over all ranks, of the centred machine: the two phases are rows
        whose weights have opposite signs."""
        firsts = [next(iter(state.values())) for state in (positive, negative)]
        counts = torch.tensor([len(t) for t in firsts], dtype=torch.float64)
        parallel.add_([counts])  # chains that are shared are on every rank, and counted as often
        dtype = next(iter(self.params.values())).dtype
        plus, minus = (t.new_full((len(t),), sign / float(c), dtype=dtype)
                       for t, c, sign in zip(firsts, counts, (1, -1)))  # fmt: skip
        found = machine.sums((positive, plus), (negative, minus))
        middle = machine.centres(positive, plus) if self.centre is not None else {}
        found = {name: t.to(self.params[name].dtype) for name, t in found.items()}
        parallel.add_([*(found[name] for name in sorted(found)), *(middle[name] for name in sorted(middle))])
        if self.centre is None:
            return found
        for name, mean in middle.items():
            self.centres[name] = mean.lerp(self.centres.get(name, mean), 1 - self.centre)
        return machine.centred(found, self.centres)

    @contextmanager
    def averaged(self) -> Iterator[Model]:
        was_training = self.model.training
        if self.ema and self.ema.updates:
            self.ema.exchange()
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train(was_training)
            if self.ema and self.ema.updates:
                self.ema.exchange()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"velocity/{name}": v.clone() for name, v in self.velocity.items()}
        tensors |= {f"chains/{name}": t.clone() for name, t in self.negative.state().items()}
        tensors |= {f"centre/{name}": t.clone() for name, t in self.centres.items()}
        if self.ema:
            tensors |= {f"ema/{name}": a.clone() for name, a in self.ema.average.items()}
        return tensors, {"steps": self.steps, "stage": self.present, "averaged": self.ema.updates if self.ema else 0}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.steps, self.present = int(values["steps"]), int(values["stage"])
        for name, v in self.velocity.items():
            v.copy_(tensors[f"velocity/{name}"])
        device = next(iter(self.params.values())).device
        self.centres = {n[len("centre/") :]: t.to(device) for n, t in tensors.items() if n.startswith("centre/")}
        chains = {name[len("chains/") :]: t for name, t in tensors.items() if name.startswith("chains/")}
        self.negative.load_state(chains, device)
        if self.ema:
            self.ema.updates = int(values["averaged"])
            for name, a in self.ema.average.items():
                a.copy_(tensors[f"ema/{name}"])
