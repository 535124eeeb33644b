"""The figure by which a run is judged while it learns: lower is better, and measured on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from protea.core import Batch, Bounded, Denoises, Learner, Model, Normalised
from protea.models.estimated import Estimated
from protea.rng import Streams, fold
from protea.space import Rows, Space
from protea.training.gradient import Gradient
from protea.training.lifting import Lifting

Judge = Callable[[Model], Mapping[str, float]]

PATH = 200  # temperatures of an estimated constant
ROWS = 2000  # at most; enough for a figure with an error of a few hundredths of its spread


class HeldOut:
    """Mean of a figure over fixed held-out rows, with noise that belongs to the row.

    Exact models: "validation_nll". Bounded models: "validation_bound", minus one draw of the bound.
    Densities with an estimated constant: "validation_estimate". Denoisers and others with one loss: "validation_loss".
    Models of several losses (adversarial ones): "validation_sliced_wasserstein" between samples and rows. `limit` is
    how many rows are used.
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
        elif isinstance(learner.model, Estimated):
            self.name = "validation_estimate"
        elif isinstance(inner, Gradient) and len(inner.phases) == 1:
            self.name = "validation_loss"
        elif isinstance(getattr(learner.model, "space", None), Space):
            self.name = "validation_sliced_wasserstein"

    @property
    def noisy(self) -> bool:
        """Whether the figure wanders too much along a run to stop by it."""
        return self.name == "validation_sliced_wasserstein"

    def __call__(self, model: Model) -> dict[str, float]:
        rows = self.rows[: self.limit]
        if self.noisy:
            rows = rows[:1000]
            samples = model.sample(len(rows), rng=self.seed)
            features = model.space.features
            return {self.name: sliced_wasserstein(features(samples), features(rows.x), self.seed)}
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        size = min(self.learner.batch_size or 128, 512)
        total = count = 0.0
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            y = None if part.y is None else part.y.to(device)
            batch = Batch(part.x.to(device), y, Streams(self.seed, part.ids, device))
            value, items = self._sum(model, batch)
            total, count = total + value, count + items
        if self.name == "validation_estimate" and isinstance(model, Estimated):
            return {self.name: total / count + model.log_partition(self.seed, steps=PATH).value}
        return {self.name: total / count}

    def _sum(self, model: Model, batch: Batch) -> tuple[float, float]:
        if isinstance(model, Normalised) and self.name == "validation_nll":
            return -float(model.log_prob(batch.x, batch.y).double().sum()), len(batch.x)
        if isinstance(model, Bounded) and self.name == "validation_bound":
            return -float(model.log_prob_bound(batch.x, batch.y, rng=batch.rng).double().sum()), len(batch.x)
        if isinstance(model, Estimated) and self.name == "validation_estimate":
            return -float(model.unnormalised(batch.x, rng=batch.rng).double().sum()), len(batch.x)
        learner = self.learner
        if isinstance(learner, Lifting):
            batch, learner = learner.lift(batch), learner.inner
        loss = learner.objective.losses[0](batch)
        return float(loss.total), float(loss.count)


def sliced_wasserstein(a: Tensor, b: Tensor, seed: int, directions: int = 64) -> float:
    """Mean over random directions of the 1-Wasserstein distance between as many rows of a and of b, (N, F).

    Both are scaled by the spread of b in each feature; NaN counts as the mean of b.

    >>> a = torch.tensor([[0.0], [1.0]])
    >>> round(sliced_wasserstein(a + 3, a, seed=0), 4)  # shifted by six of b's standard deviations
    6.0
    """
    a, b = (t.double().cpu() for t in (a, b))
    mean = b.nanmean(0)
    spread = (b - mean).square().nanmean(0).sqrt()
    scale = torch.where(spread > 1e-12, spread, torch.ones_like(spread))
    a, b = (((t - mean) / scale).nan_to_num(0.0) for t in (a, b))
    u = Streams(fold(seed, "directions"), directions).normal(a.shape[1], dtype=torch.float64)
    u = (u / u.norm(dim=1, keepdim=True)).T
    return float(((a @ u).sort(0).values - (b @ u).sort(0).values).abs().mean())


def _denoises(*models: Model) -> bool:
    return any(isinstance(model, Denoises) for model in models)


def default_judge(learner: Learner, validation: Rows | None, seed: int) -> HeldOut | None:
    """The judge a fit uses unless told otherwise; None without validation rows."""
    if validation is None or len(validation) == 0:
        return None
    judge = HeldOut(learner, validation[:ROWS], seed)
    return judge if judge.name else None
