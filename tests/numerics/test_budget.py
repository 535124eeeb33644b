"""Budgets: what is refused, how seconds become steps, and that the clock is kept."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from protea.core import Batch, Loss, Model, Phase
from protea.errors import ConfigError
from protea.space import Rows
from protea.training import Budget, Gradient, fit
from protea.training.budget import Pace


@pytest.mark.parametrize("text", ["0s", "-3s", "s", "90 parsecs", "1.5 epochs", "inf", "nan", ""])
def test_bad_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Budget.parse(text)


def test_an_empty_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Budget()


@pytest.mark.parametrize(
    ("text", "budget"),
    [("90s", Budget(seconds=90)), ("90", Budget(seconds=90)), ("3m", Budget(seconds=180)), ("1h", Budget(seconds=3600)),
     ("500 steps", Budget(steps=500)), ("10epochs", Budget(epochs=10)), (" 250MS ", Budget(seconds=0.25))],
)  # fmt: skip
def test_budgets_are_read(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


def test_the_smaller_limit_holds() -> None:
    assert Budget(steps=50, epochs=3).limit(10) == 30
    assert Budget(seconds=1).limit(10) is None


def test_a_plan_fills_the_time() -> None:
    pace = Pace(10.0, [1.0, 1.0] + [0.01] * 18)  # slow first steps (imports, compilation) do not count
    assert pace.ready(0.0)
    horizon, every = pace.plan(step=20, elapsed=2.2, judge_seconds=0.02)
    assert 0.9 < (horizon - 20) * 0.01 / 7.8 < 0.98
    assert 19 <= horizon / every <= 20
    horizon, every = pace.plan(step=20, elapsed=2.2, judge_seconds=2.0)  # dear judging: once, at the end
    assert every == horizon


class Sleeper(Model):
    """Every step takes at least a millisecond, or more once it is tired."""

    def __init__(self, tired: float = 0.001) -> None:
        super().__init__()
        self.w, self.steps, self.tired = nn.Parameter(torch.ones(1)), 0, tired

    def draw(self, rng, cond=None):
        return self.w.expand(len(rng), 1)

    def loss(self, batch: Batch) -> Loss:
        self.steps += 1
        time.sleep(0.001 if self.steps < 40 else self.tired)
        return Loss((self.w**2).sum(), 1)


@pytest.mark.parametrize("tired", [0.001, 0.004])
def test_the_clock_is_kept_and_the_schedule_completes(tired: float) -> None:
    model = Sleeper(tired)
    learner = Gradient(model, [Phase("rest", [model.w], model.loss)])
    rows = Rows(torch.zeros(64, 1), None, torch.arange(64))
    began = time.perf_counter()
    result = fit(model, rows, rows, learner=learner, budget=Budget(seconds=1.5), judge=None, progress=None)
    assert time.perf_counter() - began < 1.8
    assert result.stopped_because == "budget" and learner.horizon is not None
    assert result.steps >= 0.7 * learner.horizon  # also where it got four times slower: it plans anew


def test_a_slow_step_does_not_overrun() -> None:
    model = Sleeper(0.1)
    rows = Rows(torch.zeros(64, 1), None, torch.arange(64))
    began = time.perf_counter()
    learner = Gradient(model, [Phase("rest", [model.w], model.loss)])
    fit(model, rows, rows, learner=learner, budget=Budget(seconds=1.0), judge=None, progress=None)
    assert time.perf_counter() - began < 1.4
