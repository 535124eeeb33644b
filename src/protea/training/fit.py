"""The training loop. It knows a learner only by `step` and `end_epoch`.

A run is a function of (model, rows, learner, seed, step): order and noise are recomputed from the step,
so a checkpoint of weights, learner's state and step number resumes exactly.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from protea.core import Learner, Model
from protea.errors import CheckpointError, Diverged
from protea.space import Rows
from protea.training import files, parallel, precision
from protea.training.batches import Batches, Source, default_size
from protea.training.budget import Budget, Pace
from protea.training.checkpoint import Keeper, Saving, load_weights, weights
from protea.training.defaults import default_learner
from protea.training.early import Judgements
from protea.training.gradient import Gradient
from protea.training.judge import HeldOut, Judge, default_judge
from protea.training.lifting import Lifting
from protea.training.progress import Progress
from protea.training.progress import progress as progress_of
from protea.training.run import Metrics, save_model

EPOCHS_BETWEEN_JUDGINGS = 10  # of learners that change only at the ends of epochs


@dataclass(frozen=True)
class FitResult:
    """How a fit ended."""

    steps: int
    epochs: float
    seconds: float
    figure: float | None  # the best judged figure, of the weights that were kept
    figure_name: str | None
    stopped_because: str  # "budget", "converged", "early stop"
    still_improving: bool  # the budget ended it while its figure was still falling
    parameters: int
    batch_size: int
    history: Path | None  # metrics.jsonl

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"history": None if self.history is None else self.history.name}


def fit(
    model: Model, train: Rows | Source, validation: Rows | None = None, *, budget: Budget,
    learner: Learner | None = None,
    run: Saving | Path | str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    judge: Judge | Literal["auto"] | None = "auto",
    patience: int | None = 6,
    progress: Literal["auto", "bar", "plain", "none"] | Progress | None = "auto",
    device: torch.device | None = None,
) -> FitResult:  # fmt: skip
    """Let a model learn from rows until the budget is spent, it converged, or it stopped improving.

    Args:
        model: initialised (`model.initialise`); afterwards it holds the best judged weights, else the averaged ones.
        train, validation: rows in canonical units, those for training perhaps on a disk (see `data.packing`);
            validation rows are for judging only.
        budget: what may be spent. Seconds count from this call, and those spent before it.
        learner: how it learns; None asks `default_learner`.
        run: a folder for weights, checkpoints and metrics, or a `Saving` that says how; None keeps all in memory.
        seed: of order and noise.
        batch_size: rows of a step over all processes; None asks the learner, then `default_size`.
        judge: figures of the model, called about 20 times; the first one, lower is better, picks the weights kept
            and stops early. "auto" is `default_judge`; None never judges.
        patience: judgings without a new best after which it stops; None never stops early.
        progress: what people see.
        device: where; None leaves the model where it is.

    Raises:
        DataError: no rows. ConfigError: the batch size does not fit. CheckpointError: the run cannot be read,
        written, or is of another fit. Diverged: a non-finite loss or gradient; checkpoints are kept.
    """
    saving = run if run is None or isinstance(run, Saving) else Saving(run)
    loop = _Loop(model, train, validation, budget, learner, saving, seed, batch_size, judge,
                 patience, progress_of(progress if parallel.rank() == 0 else None), device)  # fmt: skip
    try:
        loop.begin()
        while loop.stopped is None:
            loop.turn()
        return loop.finish()
    finally:
        loop.close()


class _Loop:
    """The state of one fit."""

    def __init__(
        self, model: Model, train: Rows | Source, validation: Rows | None, budget: Budget, learner: Learner | None,
        saving: Saving | None, seed: int, batch_size: int | None, judge: Judge | Literal["auto"] | None,
        patience: int | None, shown: Progress, device: torch.device | None,
    ) -> None:  # fmt: skip
        self.started, self.before = time.perf_counter(), budget.spent  # seconds of earlier processes count
        if device is None:
            device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        parallel.setup(device)
        if learner is None:
            learner = default_learner(model.to(device), budget=budget, seed=seed)
        self.model, self.learner, self.budget, self.seed, self.shown = model, learner, budget, seed, shown
        self.saving, self.run = saving, Path(saving.folder) if saving else None
        size = batch_size or learner.batch_size or default_size(len(train))
        self.batches = Batches(train, size, seed, device)
        self.judge = default_judge(learner, validation, seed) if judge == "auto" else judge
        self.keeper = Keeper(self.run) if self.run else None
        self.metrics: Metrics | None = None
        self.main = parallel.rank() == 0
        self.step, self.stopped, self.judge_seconds = 0, None, 0.0
        self.figure_name: str | None = None
        steady = not (isinstance(self.judge, HeldOut) and self.judge.noisy)
        self.judgements = Judgements(patience if steady else None)
        self.best: dict[str, Tensor] | None = None
        self.limit = budget.limit(self.batches.per_epoch)
        self.horizon = self.limit if budget.seconds is None or learner.by_epoch else None
        self.judge_every = max(1, (self.horizon or 0) // 20)
        if learner.by_epoch:
            self.judge_every = EPOCHS_BETWEEN_JUDGINGS * self.batches.per_epoch
        self.judge_at = self.judge_every if self.horizon is not None or learner.by_epoch else None
        self.pace = Pace(budget.seconds or float("inf"))
        self.epoch_began = self.saved_at = 0.0
        self.saved_step = 0
        shown.note(_device_line(device, learner))

    # ---- beginning and end

    def begin(self) -> None:
        saved = self.keeper.newest() if self.keeper and self.saving and self.saving.resume else None
        if saved:
            self._restore(*saved)
        elif self.keeper and self.main:
            self.keeper.clear()
        if self.run and self.main:
            self.metrics = Metrics(self.run / "metrics.jsonl", self.step if saved else -1)
        self.learner.horizon = self.horizon
        self.epoch_began = self.saved_at = self.elapsed()
        if saved:
            self.shown.note(f"resumed at step {self.step}")
        self.model.train()

    def finish(self) -> FitResult:
        if self.best is None:
            with self.learner.averaged() as model:
                self.best = weights(model)
        load_weights(self.model, self.best, "the best weights")
        self.model.eval()
        result = FitResult(
            steps=self.step, epochs=round(self.step / self.batches.per_epoch, 4), seconds=round(self.elapsed(), 3),
            figure=self.judgements.best, figure_name=self.figure_name, stopped_because=self.stopped or "budget",
            still_improving=self.stopped == "budget" and self.judgements.still_improving(),
            parameters=sum(p.numel() for p in self.model.parameters()), batch_size=self.batches.size,
            history=self.run / "metrics.jsonl" if self.run else None,
        )  # fmt: skip
        if self.run:
            whole = weights(self.model)  # a collective where sharded
            if self.main:
                save_model(self.run, self.model, whole)
                files.write_json(self.run / "result.json", result.to_json())
        parallel.barrier()
        return result

    def close(self) -> None:
        self.shown.close()
        if self.metrics:
            self.metrics.close()

    # ---- one step

    def turn(self) -> None:
        batch = self.batches(self.step)
        tick = time.perf_counter()
        figures = dict(self.learner.step(batch))
        self.step += 1
        epoch_ends = self.step % self.batches.per_epoch == 0
        if epoch_ends:
            figures |= self.learner.end_epoch()
        self.pace.durations.append(time.perf_counter() - tick)
        planned = False
        if self.judge_at is None:
            planned = self._plan(figures)
        elif self.step >= self.judge_at:
            if self.judge:
                self._judge(figures)
            self.judge_at = self.step + self.judge_every
            planned = self._timed and self._plan(figures)
        self.stopped = self._why_stop(epoch_ends)
        if self.stopped and self.judge:
            self._judge(figures)
        self._log(figures)
        now = self.elapsed()
        if self.keeper and (planned or self._due(now) or self.stopped or self.judgements.best_step == self.step):
            self._save()
            self.saved_at, self.saved_step = now, self.step

    def _due(self, now: float) -> bool:
        """Whether a checkpoint is."""
        assert self.saving is not None
        return now - self.saved_at >= self.saving.seconds or self.step - self.saved_step == self.saving.steps

    @property
    def _timed(self) -> bool:
        """Whether the number of steps is to be planned from the clock."""
        return self.budget.seconds is not None and not self.learner.by_epoch

    def elapsed(self) -> float:
        """Seconds spent, the same on all ranks."""
        return self.before + parallel.agree(time.perf_counter() - self.started)

    def _plan(self, figures: dict[str, float]) -> bool:
        """Turn the seconds left into a number of steps, once enough steps were timed; again at every judging,
        for machines are not equally fast all the time. A changed plan is saved at once."""
        elapsed, first = self.elapsed(), self.horizon is None
        if not parallel.agree(self.pace.ready(elapsed)):
            return False
        if first and isinstance(self.judge, HeldOut):  # a forward pass is about a third of a step; 2 % a judging
            rows = 0.06 * self.pace.seconds * self.batches.size / max(min(self.pace.durations), 1e-9)
            self.judge.limit = int(parallel.agree(min(self.judge.limit, max(64, rows))))
        if first and self.judge:
            self._judge(figures)
        horizon, every = (int(parallel.agree(v)) for v in self.pace.plan(self.step, self.elapsed(), self.judge_seconds))
        self.pace.durations.clear()
        horizon = max(min(horizon, self.limit or horizon), self.step)
        if not first and abs(horizon - (self.horizon or 0)) <= 0.05 * horizon:
            return False
        self.horizon = self.learner.horizon = horizon
        if first:
            self.judge_every = every
            self.judge_at = self.step + every
        return True

    def _judge(self, figures: dict[str, float]) -> None:
        assert self.judge is not None
        if self.judgements.points and self.judgements.points[-1][0] == self.step:
            return
        tick = time.perf_counter()
        with self.learner.averaged() as model:
            with torch.no_grad():
                judged = dict(self.judge(model))
            self.figure_name = next(iter(judged))
            best = self.judgements.add(self.step, judged[self.figure_name])
            if best:
                self.best = weights(model)
        self.judge_seconds = parallel.agree(time.perf_counter() - tick)
        if best and self.keeper and self.main:
            self.keeper.save_best(self.step, self.best or {})
        figures |= judged

    def _why_stop(self, epoch_ends: bool) -> str | None:
        if self.learner.by_epoch and not epoch_ends:
            return None
        if self.learner.converged:
            return "converged"
        if self.judgements.exhausted:
            return "early stop"
        limits = [limit for limit in (self.horizon, self.limit) if limit is not None]
        if limits and self.step >= min(limits):
            return "budget"
        if self.budget.seconds is not None:
            now = self.elapsed()
            ahead = self.judge_seconds + (now - self.epoch_began if self.learner.by_epoch else 0.0)
            if now + ahead >= self.budget.seconds:
                return "budget"
            if epoch_ends:
                self.epoch_began = now
        return None

    def _log(self, figures: Mapping[str, float]) -> None:
        now = self.elapsed()
        shares = [self.step / self.horizon] if self.horizon else []
        shares += [now / self.budget.seconds] if self.budget.seconds else []
        self.shown.update(self.step, 1.0 if self.stopped else min(max(shares, default=0.0), 1.0), now, figures)
        judged = self.figure_name in figures
        if self.metrics and (self.stopped or judged or self.step % max(1, (self.horizon or 0) // 1000) == 0):
            place = {"step": self.step, "epoch": round(self.step / self.batches.per_epoch, 4), "seconds": round(now, 3)}
            self.metrics.add(place | dict(figures))

    # ---- checkpoints

    def _facts(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to belong to this fit."""
        return {"seed": self.seed, "batch_size": self.batches.size, "rows": len(self.batches.rows),
                "learner": type(self.learner).__name__}  # fmt: skip

    def _save(self) -> None:
        tensors = {f"model/{name}": t for name, t in weights(self.model).items()}
        names = [] if self.learner.by_epoch else [name for name, _ in self.model.named_parameters()]
        bad = next((name for name in names if not torch.isfinite(tensors[f"model/{name}"]).all()), None)
        if bad:
            raise Diverged(
                f"At step {self.step} the parameter {bad} is not finite.",
                "The last good checkpoint is kept; lower the rate.",
            )
        learnt, values = self.learner.state()
        tensors |= {f"learner/{name}": t for name, t in learnt.items()}
        state = {
            "fit": self._facts(), "budget": self.budget.to_json(), "step": self.step, "seconds": self.elapsed(),
            "horizon": self.horizon, "judge_every": self.judge_every, "judge_at": self.judge_at,
            "judge_seconds": self.judge_seconds,
            "judge_rows": self.judge.limit if isinstance(self.judge, HeldOut) else None,
            "judgements": self.judgements.to_json(), "figure": self.figure_name, "stopped": self.stopped,
            "learner": values,
        }  # fmt: skip
        if self.main and self.keeper:
            self.keeper.save(self.step, tensors, state)

    def _restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        theirs, ours = state["fit"], self._facts()
        differs = [f"{k} {theirs.get(k)!r} there, {ours[k]!r} here" for k in ours if theirs.get(k) != ours[k]]
        if differs:
            raise CheckpointError(
                f"The checkpoint belongs to another fit ({'; '.join(differs)}).", "Use the same data and settings."
            )
        part = {
            kind: {n[len(kind) :]: t for n, t in tensors.items() if n.startswith(kind)}
            for kind in ("model/", "learner/")
        }
        load_weights(self.model, part["model/"], "the checkpoint")
        self.learner.load_state(part["learner/"], state["learner"])
        self.step, self.before = int(state["step"]), float(state["seconds"])
        self.started = time.perf_counter()
        self.saved_step = self.step
        self.judgements.load(state["judgements"])
        self.figure_name, self.judge_seconds = state["figure"], float(state["judge_seconds"])
        if isinstance(self.judge, HeldOut) and state["judge_rows"]:
            self.judge.limit = int(state["judge_rows"])
        if self.judgements.best_step is not None and self.keeper:
            self.best = self.keeper.best(self.judgements.best_step)
        if state["budget"] == self.budget.to_json():
            self.horizon, self.stopped = state["horizon"], state["stopped"]
            self.judge_every, self.judge_at = int(state["judge_every"]), state["judge_at"]
        else:  # another budget: plan anew, unless more of it adds nothing
            self.stopped = "converged" if state["stopped"] == "converged" else None
            self.judge_at = None if self.judge_at is None else self.step + self.judge_every


def _device_line(device: torch.device, learner: Learner) -> str:
    inner = learner.inner if isinstance(learner, Lifting) else learner
    if isinstance(inner, Gradient):
        return precision.describe(device, inner.dtype, inner.dtype_why)
    return precision.describe(device, None, "")
