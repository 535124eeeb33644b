"""Figures: protocols, intervals, seeds."""

import math

import pytest
import torch

from protea.errors import ProtocolMismatch
from protea.evaluation.figure import Figure, comparable, mean_figure, over_seeds, recentred_interval, resample_weights
from protea.evaluation.metrics import METRICS, ranking


def test_unlike_protocols_are_refused_and_seeds_are_not():
    a = Figure(1, 0, 2, {"features": "raw", "n": 10, "seed": 0})
    comparable(a, Figure(3, 2, 4, {"features": "raw", "n": 10, "seed": 1}))
    for other in ({"features": "pca", "n": 10}, {"features": "raw"}, {"features": "raw", "n": 10, "k": 5}):
        with pytest.raises(ProtocolMismatch, match="Measured differently"):
            comparable(a, Figure(1, 0, 2, other))
    with pytest.raises(ProtocolMismatch):
        over_seeds([a, Figure(1, 0, 2, {"features": "raw", "n": 11})])


def test_the_same_seed_gives_the_same_interval():
    x = torch.arange(50).double().sin()
    assert mean_figure(x, seed=3) == mean_figure(x, seed=3) != mean_figure(x, seed=4)
    w = resample_weights(50, 20, 0)
    assert bool((w.sum(1) == 50).all()) and bool((w >= 0).all())


def test_intervals_hold_the_value_and_stay_in_range():
    low, high = recentred_interval(0.1, torch.linspace(3, 9, 100).double(), floor=0.0)
    assert low == 0.0 and high > 0.1
    f = mean_figure(torch.tensor([0.0, 1.0] * 20))
    assert f.low <= f.value <= f.high


def test_seeds_widen_by_their_variance():
    figures = [Figure(v, v - 0.1, v + 0.1, {"seed": i}) for i, v in enumerate((1.0, 2.0, 3.0))]
    found = over_seeds(figures)
    assert found.value == pytest.approx(2.0) and found.protocol["seeds"] == 3
    assert found.high - 2 == pytest.approx(math.sqrt(0.01 + 1.96**2 / 3))


def test_json_holds_no_infinity():
    assert Figure(math.inf, 0.0, math.nan).to_json() == {"value": None, "low": 0.0, "high": None, "protocol": {}}


def test_the_contract_names_are_there():
    promised = {
        "c2st_accuracy", "mmd", "sliced_wasserstein", "frechet", "kernel_distance", "precision", "recall", "density",
        "coverage", "vendi", "duplicates", "tstr_accuracy", "trtr_accuracy", "column_error", "association_error",
        "bits_per_byte_ngram", "self_bleu", "distinct_n", "copies",
    }  # fmt: skip
    assert promised <= set(METRICS)
    assert all(ranking(kind)[0] == "c2st_accuracy" for kind in ("vector", "table", "image", "tokens"))
