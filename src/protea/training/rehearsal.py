"""What a fit will take, found by rehearsing it: a few real steps, one judging and one checkpoint, measured.

    seconds  =  begin + steps * pace + judgings * judging + saves * saving
    memory   =  the process's high-water mark after all of these
    disk     =  two states + up to three best weights + the final weights

Nothing is estimated from formulas, so optimizer states, activations, relaxations and the data themselves are all in it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from protea.core import Learner
from protea.training import config as settings
from protea.training.batches import Batches, default_size
from protea.training.budget import Budget, Pace
from protea.training.checkpoint import Keeper, weights
from protea.training.hardware import Hardware
from protea.training.judge import HeldOut, default_judge
from protea.training.memory import high_water_mb
from protea.training.precision import pick_device
from protea.training.run import build, find, save_model
from protea.training.runs import Data, learner_of

STEPS, SECONDS = 24, 6.0  # of the rehearsal: whichever is first, and at least three steps
WARM = 2  # first steps load kernels and fill caches
SAVE_EVERY = 30.0  # seconds between checkpoints of `fit`
LINE = 250  # bytes of a line of metrics.jsonl, of which there are at most about a thousand


@dataclass(frozen=True)
class Forecast:
    """What a fit will take.

    Attributes:
        steps, epochs, seconds: of the whole fit; upper limits where it may converge or stop early.
        memory_mb: peak of the process (resident), and of the accelerator where there is one.
        disk_mb: the finished run folder.
        step_s, judge_s, save_s, begin_s: what each part took in the rehearsal.
        at_most: EM stops as soon as it has converged.
    """

    model: str
    config: dict[str, Any]
    parameters: int
    batch_size: int
    steps: int
    epochs: float
    seconds: float
    memory_mb: float
    gpu_mb: float | None
    disk_mb: float
    step_s: float
    judge_s: float
    save_s: float
    begin_s: float
    at_most: bool
    device: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rehearse(
    model_name: str, overrides: Mapping[str, Any] | None, dataset: Data, budget: Budget, seed: int = 0, *,
    batch_size: int | None = None, hardware: Hardware | None = None, began: float | None = None,
) -> Forecast:  # fmt: skip
    """Measure a few steps of the fit that the same arguments of `fit_run` would run.

    Args:
        began: when this process began to open the data (`time.perf_counter`), so that opening counts.

    Raises:
        ConfigError: unknown model or setting.
    """
    began = time.perf_counter() if began is None else began
    hardware, entry = hardware or Hardware(), find(model_name)
    where, _ = pick_device(hardware.device, require_gpu=hardware.require_gpu)
    suggested = entry.suggest(dataset.space, dataset.train, budget.seconds or 60.0)
    config = settings.from_json(entry.config, overrides or {}, suggested)
    model = build(model_name, dataset.space, config, seed)
    model.initialise(dataset.train, seed)
    learner = learner_of(model.to(where), budget, seed, asdict(hardware))
    batches = Batches(dataset.train, batch_size or learner.batch_size or default_size(len(dataset.train)), seed, where)
    learner.horizon = budget.limit(batches.per_epoch) or 1000
    begin_s = time.perf_counter() - began
    durations, per_epoch = _steps(learner, batches)
    judge = default_judge(learner, dataset.validation, seed)
    judge_s = _timed(lambda: _judge(learner, judge)) if judge else 0.0
    with tempfile.TemporaryDirectory() as folder:
        save_s, state_b, weights_b = _saved(learner, Path(folder))
    steps, judgings = _steps_of(budget, learner, batches, begin_s, durations, judge_s)
    pace = sum(durations[WARM:] or durations) / len(durations[WARM:] or durations) + per_epoch / batches.per_epoch
    seconds = begin_s + steps * pace + judgings * (judge_s + save_s)
    seconds += save_s * seconds / SAVE_EVERY
    return Forecast(
        model=model_name, config=settings.to_json(config), parameters=sum(p.numel() for p in model.parameters()),
        batch_size=batches.size, steps=steps, epochs=round(steps / batches.per_epoch, 2),
        seconds=round(min(seconds, budget.seconds or math.inf), 2), memory_mb=round(high_water_mb(), 1),
        gpu_mb=round(torch.cuda.max_memory_allocated() / 2**20, 1) if where.type == "cuda" else None,
        disk_mb=round((2 * state_b + (min(3, judgings) + 1) * weights_b + LINE * min(steps, 1000)) / 2**20, 2),
        step_s=pace, judge_s=judge_s, save_s=save_s, begin_s=begin_s, at_most=learner.by_epoch, device=where.type,
    )  # fmt: skip


def _timed(work: Any) -> float:
    tick = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - tick


def _steps(learner: Learner, batches: Batches) -> tuple[list[float], float]:
    """Durations of single steps, and of the end of an epoch for those that learn then."""
    learner.model.train()
    durations: list[float] = []
    while len(durations) < 3 or (len(durations) < STEPS and sum(durations) < SECONDS):
        step = len(durations)
        durations.append(_timed(lambda step=step: learner.step(batches(step))))
        if learner.by_epoch and len(durations) == batches.per_epoch:
            break
    return durations, _timed(learner.end_epoch) if learner.by_epoch else 0.0


def _judge(learner: Learner, judge: HeldOut) -> None:
    with learner.averaged() as model, torch.no_grad():
        judge(model)


def _saved(learner: Learner, folder: Path) -> tuple[float, int, int]:
    """Seconds of a checkpoint, bytes of a whole state, bytes of the weights."""

    def save() -> None:
        tensors, values = learner.state()
        tensors = {f"learner/{n}": t for n, t in tensors.items()}
        Keeper(folder).save(0, tensors | {f"model/{n}": t for n, t in weights(learner.model).items()}, values)

    seconds = _timed(save)
    state = sum(p.stat().st_size for p in (folder / "checkpoint").iterdir())
    save_model(folder, learner.model, weights(learner.model))
    return seconds, state, sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def _steps_of(
    budget: Budget, learner: Learner, batches: Batches, begin_s: float, durations: list[float], judge_s: float
) -> tuple[int, int]:
    """(steps, judgings) of the whole fit."""
    limit = budget.limit(batches.per_epoch)
    if budget.seconds is not None:
        pace = Pace(budget.seconds, list(durations))
        steps, every = pace.plan(len(durations), begin_s + sum(durations), judge_s)
        steps = min(steps, limit or steps)
    else:
        assert limit is not None
        steps, every = limit, max(1, limit // 20)
    if learner.by_epoch:
        steps = -(-steps // batches.per_epoch) * batches.per_epoch
        every = 10 * batches.per_epoch
    return steps, max(1, steps // every)
