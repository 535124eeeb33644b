"""Ranks share places, never tie exact with bound, refuse unlike protocols; verdicts say the worst first."""

import pytest

from protea.errors import ProtocolMismatch
from protea.evaluation.figure import Figure
from protea.evaluation.likelihood import Likelihood
from protea.evaluation.rank import gap, likelihood_ranks, shared_ranks
from protea.evaluation.verdict import verdict


def _row(c2st, frechet, precision=0.9, coverage=0.9, width=0.01, **protocol):
    values = {"c2st_accuracy": c2st, "frechet": frechet, "precision": precision, "coverage": coverage}
    return {k: Figure(v, v - width, v + width, {"split": "s", **protocol}) for k, v in values.items()}


REAL, SHUFFLED = _row(0.5, 1.0, 0.95, 0.95), _row(0.9, 100.0, 0.15, 0.15)


def test_overlapping_intervals_share_places():
    figures = [Figure(1, 0.9, 1.1), Figure(1.15, 1.05, 1.3), Figure(2, 1.25, 3), None, Figure(9, 8, 10)]
    assert shared_ranks(figures) == [(1, 2), (1, 3), (2, 3), None, (4, 4)]
    assert shared_ranks([Figure(1, 0.9, 1.1), Figure(2, 1.9, 2.1)], better="high") == [(2, 2), (1, 1)]


def test_gap_is_zero_at_the_ceiling_and_one_at_the_floor():
    assert gap(REAL, REAL, SHUFFLED, "image").value == pytest.approx(0)
    assert gap(SHUFFLED, REAL, SHUFFLED, "image").value == pytest.approx(1)
    middle = gap(_row(0.7, 10.0, 0.55, 0.55), REAL, SHUFFLED, "image")
    assert middle.value == pytest.approx(0.5)  # halfway on every metric; the Fréchet distance on logarithms
    assert middle.low < 0.5 < middle.high


def test_a_row_worse_than_the_floor_is_capped_and_a_lucky_one_is_not_below_zero():
    assert gap(_row(1.0, 1e9, 0, 0), REAL, SHUFFLED, "image").value <= 2
    assert gap(_row(0.4, 0.1, 1, 1), REAL, SHUFFLED, "image").value == 0


def test_metrics_that_separate_nothing_are_left_out():
    same = {**SHUFFLED, "frechet": REAL["frechet"]}
    found = gap(_row(0.7, 1e6, 0.55, 0.55), REAL, same, "image")
    assert found.value == pytest.approx(0.5) and "frechet" not in found.protocol["metrics"]
    assert gap(REAL, REAL, REAL, "image") is None


def test_gap_refuses_unlike_protocols():
    with pytest.raises(ProtocolMismatch):
        gap(_row(0.7, 10.0, features="pca"), REAL, SHUFFLED, "image")


def test_exact_and_bound_are_never_tied():
    def of(value, exactness):
        return Likelihood(Figure(value, value - 0.1, value + 0.1), "bits per dimension", exactness)

    ranks = likelihood_ranks([of(3.0, "exact"), of(2.0, "bound"), of(4.0, "exact"), None, of(5.0, "bound")])
    assert ranks == [(1, 1), (1, 1), (2, 2), None, (2, 2)]  # two ladders


def test_verdicts_in_plain_words():
    fair = {"c2st_accuracy": Figure(0.68, 0.64, 0.72)}
    said = verdict(fair, {"passed": False, "copies": 0.12, "modes": [3, 8]}, improving=True)
    parts = said.split("; ")
    assert parts[0] == "memorises: 12 % of samples closer to train than 99 % of holdout"
    assert parts[1] == "collapsing: 3 of 8 modes"
    assert parts[2].startswith("fair") and parts[3] == "budget-limited: still improving"
    assert verdict({"c2st_accuracy": Figure(0.97, 0.95, 0.99)}, {}).startswith("poor: a classifier tells")
    assert verdict({"c2st_accuracy": Figure(0.52, 0.47, 0.56)}, {"passed": True}).startswith("good")
    assert verdict({}, {}, failed="loss was NaN at step 7") == "failed: loss was NaN at step 7"
