"""Schedules agree with torch's own, and depend on the step and the horizon alone."""

from __future__ import annotations

import pytest
import torch

from protea.training.schedule import constant, warmup_cosine, warmup_stable_decay


def test_cosine_agrees_with_torch(evidence) -> None:
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200, eta_min=0.1)
    ours, worst = warmup_cosine(warmup=0, floor=0.1), 0.0
    for step in range(200):
        worst = max(worst, abs(ours(step, 200) - optimizer.param_groups[0]["lr"]))
        optimizer.step()
        reference.step()
    evidence(id="TS-02", system="SGD variants", claim="cosine schedule", reference="torch CosineAnnealingLR",
             reached=worst, tolerance=1e-12, unit="max abs")  # fmt: skip


def test_warmup_is_linear_and_at_most_a_tenth() -> None:
    rise = [constant(9)(step, 1000) for step in range(12)]
    assert rise == pytest.approx([min(1.0, (k + 1) / 10) for k in range(12)])
    assert [constant(100)(step, 20) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_unknown_horizon_only_warms_up() -> None:
    assert warmup_cosine(10)(50, None) == 1.0
    assert warmup_stable_decay(10)(50, None) == 1.0


def test_stable_then_linear_decay() -> None:
    s = warmup_stable_decay(warmup=0, decay=0.2, floor=0.0)
    assert s(79, 100) == 1.0
    assert [s(step, 100) for step in (80, 90, 95, 100)] == pytest.approx([1.0, 0.5, 0.25, 0.0])
