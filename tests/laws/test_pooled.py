"""Judgements of several seeds become one, and of few rows one without a ceiling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protea.data import open_data
from protea.evaluation import nulls
from protea.evaluation.figure import Figure
from protea.evaluation.judge import Judge, Judgement, pooled
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


def test_ten_held_out_rows_can_be_judged_without_ten_others_as_a_ceiling() -> None:
    data = open_data(np.random.default_rng(4).normal(size=(96, 2)))
    data = replace(data, holdout=data.train[:10], validation=data.train[10:19], train=data.train[19:])
    found = nulls.null_samples(data, 50)
    assert list(found) == [nulls.FLOOR, nulls.COPIER]
    assert "c2st_accuracy" in Judge(data, replicates=20).evaluate(*found[nulls.FLOOR]).metrics
