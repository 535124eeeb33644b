r"""Learning by gradients: phases, exact accumulation, clipping, averaged weights.

One update of a phase with parameters $\theta$, over a global batch of rows that may be cut into
microbatches m and spread over ranks r:

    g = \nabla_\theta \sum_{r,m} L_{rm} / \sum_{r,m} n_{rm},

with L the loss summed over items and n their true count: so accumulation, several processes and ragged
token counts give the gradient of the one large batch. Losses that layers add are the whole batch's, too
(`protea.training.layer_losses`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from protea.core import Batch, Learner, Loss, Model, Phase
from protea.errors import ConfigError, Diverged
from protea.nn.auxiliary import hearing
from protea.nn.dropout import dropout_noise
from protea.training import ema as averages
from protea.training import parallel
from protea.training.layer_losses import Pass, accumulate, act_on
from protea.training.muon import Muon
from protea.training.optim import AdamW, Optimizer, OptimizerFactory, adamw
from protea.training.precision import Precision, autocast, resolve
from protea.training.schedule import Schedule, warmup_cosine

Prepare = Callable[[nn.Module], Any]


class Objective(nn.Module):
    """The losses of all phases as one module: what FSDP shards and hooks, whatever a loss calls."""

    def __init__(self, model: Model, losses: Sequence[Callable[[Batch], Loss]]) -> None:
        super().__init__()
        self.model, self.losses = model, list(losses)

    def forward(self, phase: int, batch: Batch, counted: bool = True) -> Pass:
        with dropout_noise(batch.rng.child("dropout")), hearing(counted) as heard:
            loss = self.losses[phase](batch)
        return Pass(Loss(*loss), heard.terms, heard.values)


class Gradient(Learner):
    """Minimise the mean loss of each phase that is due.

    Args:
        model: what learns; it must hold every parameter of the phases.
        phases: what is minimised, with respect to which parameters, how often (`every`).
        optimizer: a factory, or one for each phase by name.
        schedule: (step, horizon) to a multiple of the base learning rate.
        clip: largest norm of a phase's gradient; None leaves gradients as they are.
        ema: weight of the newest weights at update t (see `ema`); None keeps no average.
        microbatch: rows of one forward and backward pass; None takes the whole batch at once.
        prepare: functions of the objective called before any optimizer exists: `compiled`, `fsdp(...)`.
        precision: "fp32"; "bf16" or "auto" use bfloat16 products where the hardware has them natively.
        batch_size: rows of a global batch; None lets the loop choose.
        after: called with the model after every step (experts are rebalanced); what they return is logged. What they
            change is the model's, so that a resume needs nothing more.

    A phase's noise is `batch.rng.child(phase.name)`: it belongs to the row and the step.

    >>> from protea.rng import Streams
    >>> class Point(Model):
    ...     def __init__(self): super().__init__(); self.m = nn.Parameter(torch.zeros(1))
    ...     def draw(self, rng, cond=None): return self.m.expand(len(rng), 1)
    >>> model = Point()
    >>> squared = lambda batch: Loss(((batch.x - model.m) ** 2).sum(), len(batch.x))
    >>> learner = Gradient(model, [Phase("fit", [model.m], squared)], ema=None)
    >>> learner.step(Batch(torch.ones(8, 1), None, Streams(0, 8)))["loss"]
    1.0
    """

    def __init__(
        self, model: Model, phases: Sequence[Phase], *,
        optimizer: OptimizerFactory | Mapping[str, OptimizerFactory] | None = None,
        schedule: Schedule | None = None,
        clip: float | None = 1.0,
        ema: averages.Weight | None = averages.power(16.0, decay=0.999),  # noqa: B008 (a pure function)
        microbatch: int | None = None,
        prepare: Prepare | Sequence[Prepare] = (),
        precision: Precision = "fp32",
        batch_size: int | None = None,
        after: Sequence[Callable[[Model], Mapping[str, float]]] = (),
    ) -> None:  # fmt: skip
        self.after = after
        self.model, self.clip, self.microbatch, self.batch_size = model, clip, microbatch, batch_size
        self.schedule = schedule or warmup_cosine()
        self.steps = 0
        names = {id(p): name for name, p in model.named_parameters()}
        parallel.setup(next((p.device for p in model.parameters()), torch.device("cpu")))
        self._names = []
        for phase in phases:
            if not phase.params or any(id(p) not in names for p in phase.params):
                raise ConfigError(
                    f"The phase {phase.name!r} has {'foreign' if phase.params else 'no'} parameters.",
                    "Make them parameters of the model, so that they are saved with it.",
                )
            self._names.append([names[id(p)] for p in phase.params])
        parallel.broadcast_(model)
        self.objective = Objective(model, [phase.loss for phase in phases])
        for act in [prepare] if callable(prepare) else prepare:
            act(self.objective)
        # Preparing may have replaced the parameters (FSDP): find them again by name.
        now = dict(model.named_parameters())
        self.phases = [replace(p, params=[now[n] for n in ns]) for p, ns in zip(phases, self._names)]
        self._learnt = {name: now[name] for names in self._names for name in names}
        self.optimizers = []
        for phase in self.phases:
            make = optimizer.get(phase.name) if isinstance(optimizer, Mapping) else optimizer
            self.optimizers.append((make or adamw())(model, phase.params))
        self._rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.ema = averages.Ema(self._learnt, ema) if ema else None
        self._device = next(iter(self._learnt.values())).device
        self.dtype, self.dtype_why = resolve(precision, self._device)

    def step(self, batch: Batch) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        due = [i for i, phase in enumerate(self.phases) if self.steps % phase.every == 0]
        for index in due:
            figures |= self._update(index, batch)
        self.steps += 1
        if self.ema:
            self.ema.update()
        for act in self.after:
            figures |= act(self.model)
        return figures

    def _update(self, index: int, batch: Batch) -> dict[str, float]:
        phase, optimizer = self.phases[index], self.optimizers[index]
        for p in self._learnt.values():
            p.grad = None
        # The other phases' networks pass gradients on, but need none of their own.
        mine = {id(p) for p in phase.params}
        others = [p for p in self._learnt.values() if id(p) not in mine and not parallel.sharded(p)]
        for p in others:
            p.requires_grad_(False)
        batch = batch._replace(rng=batch.rng.child(phase.name))

        def hear(part: Batch, counted: bool) -> Pass:
            with autocast(self.dtype, self._device):
                return self.objective(index, part, counted)

        total, count, measured = accumulate(hear, list(self._parts(batch)), self._device)
        for p in others:
            p.requires_grad_(True)
        norm = self._reduce(phase, total, count)
        mean = float(total / count)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise self._diverged(index, batch, mean)
        rate = self.schedule(self.steps, self.horizon)
        for group, base in zip(optimizer.param_groups, self._rates[index]):
            group["lr"] = base * rate
        optimizer.step()
        act_on(measured)
        tag = "" if len(self.phases) == 1 else f"{phase.name}_"
        return {f"{tag}loss": mean, f"{tag}gradient_norm": norm, f"{tag}lr": optimizer.param_groups[0]["lr"]}

    def _parts(self, batch: Batch) -> Iterator[tuple[Batch, int]]:
        """Microbatches and their weight. Ranks pass as many (collectives must match): a rank short of rows
        repeats one with weight 0."""
        most = parallel.largest(len(batch.x))
        pieces = 1 if self.microbatch is None else -(-most // self.microbatch)
        if pieces == 1 and len(batch.x):
            yield batch, 1
            return
        for index in torch.arange(len(batch.x)).tensor_split(pieces):
            weight = int(len(index) > 0)
            index = index if weight else torch.zeros(1, dtype=torch.int64)
            here = index.to(batch.x.device)
            yield Batch(batch.x[here], None if batch.y is None else batch.y[here], batch.rng.take(index)), weight

    @torch.no_grad()
    def _reduce(self, phase: Phase, total: Tensor, count: Tensor) -> float:
        """Sum over ranks, divide by the true count, clip; returns the gradient's norm before clipping."""
        managed = parallel.shard_parameters(self.objective)
        learnt = [p for p in phase.params if p.grad is not None]
        summed: list[Tensor] = [total, count]
        for p in learnt:
            parallel.align_grad(p)
            if id(p) not in managed and not parallel.dealt(p):
                summed.append(parallel.local_grad(p))
        parallel.add_(summed)
        n = float(count)
        # FSDP has averaged over data ranks what is to be summed.
        scales = [(parallel.data_world() if id(p) in managed else 1.0) / n for p in learnt]
        norm = float(parallel.squared_norm(zip(learnt, scales), self._device).sqrt())
        shrink = self.clip / norm if self.clip is not None and norm > self.clip else 1.0
        for scale in set(scales):
            same = [parallel.local_grad(p) for p, s in zip(learnt, scales) if s == scale]
            torch._foreach_mul_(same, scale * shrink)
        return norm

    def _diverged(self, index: int, batch: Batch, mean: float) -> Diverged:
        phase, names = self.phases[index], self._names[index]
        named = list(zip(names, phase.params))
        culprits = itertools.chain(
            (f"parameter {n}" for n, p in named if not _finite(p)),
            () if math.isfinite(mean) else (f"loss of {phase.name} ({mean})",),
            (f"gradient of {n}" for n, p in named if p.grad is not None and not _finite(p.grad)),
        )
        ids = batch.rng.ids.tolist()
        shown = ", ".join(map(str, ids[:16])) + (f" ... ({len(ids)} rows)" if len(ids) > 16 else "")
        bad = self._bad_rows(index, batch)
        return Diverged(
            f"Training met a non-finite value at step {self.steps}, phase {phase.name!r}: first bad tensor: "
            f"{next(culprits, 'gradient norm')}; rows of the batch: {shown}{bad}.",
            "The weights before this step and the last checkpoint are kept. "
            "Look at the rows named, or lower the learning rate.",
        )

    def _bad_rows(self, index: int, batch: Batch) -> str:
        """Which rows alone give a non-finite loss (one process only: ranks would wait for each other)."""
        if parallel.active():
            return ""
        bad = []
        for i in range(len(batch.x)):
            row = slice(i, i + 1)
            one = Batch(batch.x[row], None if batch.y is None else batch.y[row], batch.rng.take(row))
            try:
                if not math.isfinite(float(self.objective(index, one).loss.total.detach())):
                    bad.append(int(batch.rng.ids[i]))
            except (RuntimeError, ValueError):
                return ""
        return f"; non-finite alone: {', '.join(map(str, bad[:16]))}" if bad else ""

    @contextmanager
    def averaged(self) -> Iterator[Model]:
        """The model with its averaged weights; under FSDP, gathered meanwhile."""
        was_training = self.model.training
        if self.ema and self.ema.updates:
            self.ema.exchange()
        shards = parallel.shards(self.objective)
        for module in shards:
            module.unshard()
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train(was_training)
            for module in shards:
                module.reshard()
            if self.ema and self.ema.updates:
                self.ema.exchange()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for phase, names, optimizer in zip(self.phases, self._names, self.optimizers):
            for name, p in zip(names, phase.params):
                for key, value in optimizer.state.get(p, {}).items():
                    tensors[f"optimizer/{phase.name}/{name}/{key}"] = parallel.full(torch.as_tensor(value)).clone()
        if self.ema:
            tensors |= {f"ema/{name}": parallel.full(a).clone() for name, a in self.ema.average.items()}
        return tensors, {"steps": self.steps, "averaged": self.ema.updates if self.ema else 0}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.steps = int(values["steps"])

        def counter(value: Tensor, optimizer: Optimizer) -> Tensor:
            beside = (
                isinstance(optimizer, (AdamW, Muon))
                or optimizer.defaults.get("fused")
                or optimizer.defaults.get("capturable")
            )
            return value.clone().to(self._device if beside else "cpu")

        for phase, names, optimizer in zip(self.phases, self._names, self.optimizers):
            for name, p in zip(names, phase.params):
                prefix = f"optimizer/{phase.name}/{name}/"
                held = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
                # Moments are laid out as their parameter; counters stay small tensors on the CPU or beside it.
                if held:
                    optimizer.state[p] = {
                        key: parallel.like(value, p)
                        if value.shape == p.shape and key != "step"
                        else counter(value, optimizer)
                        for key, value in held.items()
                    }
        if self.ema:
            self.ema.updates = int(values["averaged"])
            for name, a in self.ema.average.items():
                a.copy_(parallel.like(tensors[f"ema/{name}"], a))


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(parallel.local(tensor)).all())
