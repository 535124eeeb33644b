"""The figure by which a run is judged while it learns: lower is better, and measured on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from protea.core import Batch, Bounded, Denoises, Learner, Model, Normalised
from protea.rng import Streams, fold
from protea.space import Rows
from protea.training.gradient import Gradient
from protea.training.lifting import Lifting

Judge = Callable[[Model], Mapping[str, float]]

ROWS = 2000  # at most; enough for a figure with an error of a few hundredths of its spread


class HeldOut:
    """Mean of a figure over fixed held-out rows, with noise that belongs to the row.

    Exact models: "validation_nll". Bounded models: "validation_bound", minus one draw of the bound.
    Denoisers and others with one loss: "validation_loss". `limit` is how many rows are used.
    """

    def __init__(self, learner: Learner, rows: Rows, seed: int) -> None:
        self.learner, self.rows, self.seed, self.limit = learner, rows, fold(seed, "judge"), ROWS
        inner = learner.inner if isinstance(learner, Lifting) else learner
        self.name = ""
        if isinstance(inner, Gradient) and len(inner.phases) == 1 and _denoises(learner.model, inner.model):
            self.name = "validation_loss"  # the likelihood of a denoiser costs hundreds of network calls
        elif isinstance(learner.model, Normalised):
            self.name = "validation_nll"
        elif isinstance(learner.model, Bounded):
            self.name = "validation_bound"
        elif isinstance(inner, Gradient) and len(inner.phases) == 1:
            self.name = "validation_loss"

    def __call__(self, model: Model) -> dict[str, float]:
        rows = self.rows[: self.limit]
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        size = min(self.learner.batch_size or 128, 512)
        total = count = 0.0
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            y = None if part.y is None else part.y.to(device)
            batch = Batch(part.x.to(device), y, Streams(self.seed, part.ids, device))
            value, items = self._sum(model, batch)
            total, count = total + value, count + items
        return {self.name: total / count}

    def _sum(self, model: Model, batch: Batch) -> tuple[float, float]:
        if isinstance(model, Normalised) and self.name == "validation_nll":
            return -float(model.log_prob(batch.x, batch.y).double().sum()), len(batch.x)
        if isinstance(model, Bounded) and self.name == "validation_bound":
            return -float(model.log_prob_bound(batch.x, batch.y, rng=batch.rng).double().sum()), len(batch.x)
        learner = self.learner
        if isinstance(learner, Lifting):
            batch, learner = learner.lift(batch), learner.inner
        loss = learner.objective.losses[0](batch)
        return float(loss.total), float(loss.count)


def _denoises(*models: Model) -> bool:
    return any(isinstance(model, Denoises) for model in models)


def default_judge(learner: Learner, validation: Rows | None, seed: int) -> HeldOut | None:
    """The judge a fit uses unless told otherwise; None where nothing fits (several losses, no likelihood)."""
    if validation is None or len(validation) == 0:
        return None
    judge = HeldOut(learner, validation[:ROWS], seed)
    return judge if judge.name else None
