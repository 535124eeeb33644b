"""A non-finite loss or gradient stops the fit, names its place, and keeps the last good checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from protea.core import Batch, Loss, Model, Normalised, Phase
from protea.errors import Diverged
from protea.rng import Streams
from protea.space import Rows
from protea.training import Budget, Gradient, Saving, fit
from protea.training.checkpoint import Keeper


class Normal(Normalised):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def draw(self, rng, cond=None):
        return self.mean + self.log_scale.exp() * rng.normal(2)

    def log_prob(self, x, cond=None):
        z = (x - self.mean) * (-self.log_scale).exp()
        return (-0.5 * z * z - self.log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def rows(n: int = 64) -> Rows:
    return Rows(torch.randn(n, 2, generator=torch.Generator().manual_seed(0)), None, torch.arange(1000, 1000 + n))


def test_non_finite_loss_names_step_phase_rows_and_tensor(tmp_path: Path) -> None:
    bad = rows()
    bad.x[5, 1] = float("nan")
    with pytest.raises(Diverged) as caught:
        fit(Normal(), bad, budget=Budget(epochs=3), batch_size=8, run=Saving(tmp_path, steps=1), progress=None)
    said = str(caught.value)
    assert "phase 'nll'" in said and "loss of nll (nan)" in said and "non-finite alone: 1005" in said
    step = int(said.split("at step ")[1].split(",")[0])
    assert 0 <= step < 8
    if step:
        tensors, state = Keeper(tmp_path).newest()  # the state before the bad step
        assert state["step"] == step and all(torch.isfinite(t).all() for t in tensors.values())
    else:
        assert Keeper(tmp_path).newest() is None


def test_weights_before_the_bad_step_are_kept() -> None:
    model = Normal()
    learner = Gradient(model, [Phase("nll", list(model.parameters()), lambda b: Loss(-model.log_prob(b.x).sum(), 8))])
    good = rows(8)
    learner.step(Batch(good.x, None, Streams(0, good.ids)))
    held = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(Diverged, match="at step 1"):
        learner.step(Batch(good.x * math.inf, None, Streams(0, good.ids)))
    assert all(torch.equal(a, b) for a, b in zip(held, model.parameters()))


class Cusp(Model):
    """A finite loss whose gradient is not: sqrt at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.w = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def draw(self, rng, cond=None):
        return self.w.expand(len(rng), 1)

    def loss(self, batch: Batch) -> Loss:
        return Loss(self.w.sqrt().sum() + self.fine.sum(), 1)


def test_non_finite_gradient_names_its_parameter() -> None:
    model = Cusp()
    learner = Gradient(model, [Phase("cusp", list(model.parameters()), model.loss)])
    with pytest.raises(Diverged, match="first bad tensor: gradient of w;"):
        learner.step(Batch(torch.zeros(2, 1), None, Streams(0, 2)))
