"""The learner of a lifted model: its inner model's learner, fed with lifted batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from protea.core import Batch, Learner, Model
from protea.models.lifted import Lifted
from protea.rng import Streams


class Lifting(Learner):
    """Lift each batch to the inner model's units, then let the inner learner learn.

    Args:
        model: the lifted model.
        inner: a learner of `model.inner`.
        seed: None draws fresh noise at every step (gradients); a seed fixes the noise of a row for the whole
            run, as EM needs: its likelihood rises on data that stay as they are.
    """

    def __init__(self, model: Lifted, inner: Learner, *, seed: int | None = None) -> None:
        self.model, self.inner, self.seed = model, inner, seed
        self.batch_size, self.by_epoch = inner.batch_size, inner.by_epoch

    def lift(self, batch: Batch) -> Batch:
        """The same rows in the inner model's units."""
        if self.seed is None:
            rng = batch.rng.child("lift")
        else:
            rng = Streams(self.seed, batch.rng.ids, batch.rng.device)
        with torch.no_grad():
            v, _ = self.model.relaxation.lift(batch.x, rng)
        return batch._replace(x=v)

    def step(self, batch: Batch) -> Mapping[str, float]:
        self.inner.horizon = self.horizon
        return self.inner.step(self.lift(batch))

    def end_epoch(self) -> Mapping[str, float]:
        return self.inner.end_epoch()

    @property
    def converged(self) -> bool:
        return self.inner.converged

    @contextmanager
    def averaged(self) -> Iterator[Model]:
        with self.inner.averaged():
            was_training = self.model.training
            self.model.eval()
            yield self.model
            self.model.train(was_training)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.inner.state()

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.inner.load_state(tensors, values)
