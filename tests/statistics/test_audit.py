"""Tests whose false alarms are controlled: the copy audit and the classifier two-sample test."""

import pytest
import torch
from scipy.stats import binom

from protea.evaluation.copies import ALPHA, copies, equal_to_any
from protea.evaluation.two_sample import c2st, c2st_p_value
from protea.rng import Streams, fold, permutation


def _normal(n, f, *seed):
    return Streams(fold(0, "audit", *seed), n).normal(f, dtype=torch.float64)


def _digits():
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data)


def _split(x, seed, holdout=180):
    order = permutation(len(x), seed, "split")
    return x[order[: -3 * holdout]], *(x[order[-(i + 1) * holdout : len(x) - i * holdout or None]] for i in range(3))


@pytest.mark.slow
def test_false_alarms_over_splits_of_real_data(evidence):
    """Real rows the model never saw play the samples: an honest sampler by construction."""
    x = _digits()
    alarms, low_p, rounds = 0, 0, 200
    for seed in range(rounds):
        train, holdout, fresh, samples = _split(x, seed)
        found = copies(samples, train, holdout, fresh, seed=seed, replicates=50)
        alarms += found.flagged
        low_p += found.p_value <= 0.05
    evidence(
        id="EV-14", system="Copy audit", claim="false alarms over 200 splits of digits (stated level 0.01)",
        reference="binomial 99 % bound", reached=alarms / rounds,
        tolerance=float(binom.ppf(0.99, rounds, ALPHA)) / rounds, unit="share",
    )  # fmt: skip
    evidence(
        id="EV-14", system="Copy audit", claim="p <= 0.05 under the null over 200 splits",
        reference="binomial 99.9 % bound", reached=low_p / rounds,
        tolerance=float(binom.ppf(0.999, rounds, 0.05)) / rounds, unit="share",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sharp", "mean", "far"])
def test_false_alarms_for_bad_but_honest_samplers(case):
    """The audit is of copying, not of quality: samples of another distribution raise no alarm."""
    scale, shift = {"sharp": (0.5, 0.0), "mean": (0.05, 0.0), "far": (1.0, 4.0)}[case]
    alarms = 0
    for seed in range(60):
        train, holdout, fresh = (_normal(n, 6, seed, n) for n in (800, 100, 101))
        alarms += copies(
            shift + scale * _normal(300, 6, seed, "s"), train, holdout, fresh, seed=seed, replicates=50
        ).flagged
    assert alarms <= binom.ppf(0.999, 60, ALPHA)


def test_honest_passes_and_copiers_fail(evidence):
    x = _digits()
    caught = 0
    for seed in range(2):
        train, holdout, fresh, honest = _split(x, seed)
        assert not copies(honest, train, holdout, fresh, seed=seed, replicates=50).flagged
        take = permutation(len(train), seed, "copy")[:400]
        exact = copies(train[take], train, holdout, fresh, replicates=50)
        noisy = copies(train[take] + 0.5 * _normal(400, 64, seed), train, holdout, fresh, replicates=50)
        partial = copies(torch.cat((honest, train[take[:60]])), train, holdout, fresh, replicates=50)
        assert exact.exact_train == 400 and noisy.exact_train == 0
        caught += exact.flagged + noisy.flagged + partial.flagged
    evidence(
        id="EV-14", system="Copy audit", claim="exact, noisy and 25 % copiers caught", reference="planted copiers",
        reached=caught / 6, tolerance=1.0, unit="share", at_least=True,
    )  # fmt: skip


def test_closest_pairs_name_the_copied_rows():
    train, holdout, fresh = (_normal(n, 5, "pairs", n) for n in (300, 60, 61))
    samples = _normal(100, 5, "s")
    samples[[7, 40]] = train[[11, 200]] + 1e-4
    pairs = copies(samples, train, holdout, fresh).pairs
    assert {(p.sample, p.train) for p in pairs[:2]} == {(7, 11), (40, 200)}
    p = pairs[0]
    expected = (samples[p.sample] - holdout).norm(dim=1)
    assert p.holdout == int(expected.argmin()) and p.holdout_distance == pytest.approx(float(expected.min()))


def test_duplicates_in_the_training_rows_do_not_alarm():
    """Rows that the training set repeats are one row: repetition alone is no copying."""
    train, holdout, fresh = (_normal(n, 4, "dup", n) for n in (300, 60, 61))
    found = copies(_normal(300, 4, "dup-s"), train.repeat(5, 1), holdout, fresh)
    assert not found.flagged


@pytest.mark.slow
def test_discrete_data_where_honest_samples_repeat_training_rows():
    """On a small grid every sampler hits rows of the training set: exact copies, yet no alarm."""
    alarms = 0
    for seed in range(10):
        grid = torch.cartesian_prod(*[torch.arange(6.0)] * 3).double()  # 216 distinct rows
        order = permutation(len(grid), seed)
        train, holdout, fresh = grid[order[:150]], grid[order[150:185]], grid[order[185:]]
        samples = grid[(Streams(seed, 400).uniform(1)[:, 0] * 216).long()]
        found = copies(samples, train, holdout, fresh, seed=seed, replicates=50)
        assert found.exact_train > 200
        alarms += found.flagged
    assert alarms <= 1


def test_exact_matches_treat_missing_as_equal():
    a = torch.tensor([[1.0, torch.nan], [2.0, 3.0], [-0.0, 1.0]])
    assert equal_to_any(a, torch.tensor([[1.0, torch.nan], [0.0, 1.0]])).tolist() == [True, False, True]


@pytest.mark.slow
def test_classifier_test_has_its_level_and_power(evidence):
    rounds, alarms, hits = 200, 0, 0
    for seed in range(rounds):
        x, y = _normal(120, 4, seed, "x"), _normal(120, 4, seed, "y")
        alarms += c2st_p_value(x, y, classifier="linear", seed=seed) <= 0.05
        if seed < 50:
            hits += c2st_p_value(x, y + 0.7, classifier="linear", seed=seed) <= 0.05
    evidence(
        id="EV-08", system="Classifier two-sample test", claim="type-I error over 200 simulations (level 0.05)",
        reference="binomial 99.9 % bound", reached=alarms / rounds,
        tolerance=float(binom.ppf(0.999, rounds, 0.05)) / rounds, unit="share",
    )  # fmt: skip
    evidence(
        id="EV-08", system="Classifier two-sample test", claim="power for a shift of 0.7 in 4 dimensions",
        reference="planted shift", reached=hits / 50, tolerance=0.9, unit="share", at_least=True,
    )  # fmt: skip


@pytest.mark.slow
def test_classifier_accuracy_is_half_for_equal_distributions(evidence):
    values = [
        c2st(_normal(150, 5, s, "a"), _normal(150, 5, s, "b"), classifier="linear", seed=s, replicates=20).value
        for s in range(60)
    ]
    mean = sum(values) / len(values)
    evidence(
        id="EV-08", system="Classifier two-sample test", claim="mean accuracy for equal distributions is 0.5",
        reference="theory", reached=abs(mean - 0.5), tolerance=0.03, unit="abs",
    )  # fmt: skip
