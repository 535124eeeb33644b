"""Judgements of several seeds become one: every figure of the likelihood is carried, not only the first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protea.evaluation.figure import Figure
from protea.evaluation.judge import Judgement, pooled
from protea.evaluation.likelihood import Likelihood


def figure(value: float) -> Figure:
    return Figure(value, value - 0.1, value + 0.2, {"split": "one"})


def judgement(seed: float, likelihood: Likelihood | None) -> Judgement:
    return Judgement({"mmd": figure(seed)}, {"passed": True, "p_value": 0.5}, likelihood)


def test_perplexity_and_nats_per_step_are_pooled() -> None:
    told = [Likelihood(figure(v), "bits per byte", "exact", figure(10 * v), figure(-v)) for v in (1.0, 3.0)]
    found = pooled([judgement(i, one) for i, one in enumerate(told)]).likelihood
    assert found is not None and found.perplexity is not None and found.per_step is not None
    means = (found.figure.value, found.perplexity.value, found.per_step.value)
    assert means == pytest.approx((2.0, 20.0, -2.0)) and found.perplexity.protocol["seeds"] == 2
    assert found.perplexity.high - 20 == pytest.approx((0.2**2 + 1.96**2 * 100) ** 0.5)  # within, and between seeds


def test_what_one_seed_lacks_is_left_out() -> None:
    whole = Likelihood(figure(1.0), "nats per row", "exact", None, figure(1.0))
    found = pooled([judgement(0, whole), judgement(1, replace(whole, per_step=None))]).likelihood
    assert found is not None and found.per_step is None and found.perplexity is None
    assert pooled([judgement(0, whole), judgement(1, None)]).likelihood == whole
