"""Between generative and discriminative: both ends are the classifiers they should be, and the middle can beat them."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import BernoulliNB
from torch import Tensor

from protea.errors import ConfigError, DataError
from protea.inference.hybrid import fit_hybrid
from protea.rng import permutation


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    order = permutation(len(bunch.target), 0, "hybrid")
    return torch.from_numpy((bunch.data > 7).astype(float))[order], torch.from_numpy(bunch.target)[order].long()


def test_the_generative_end_is_naive_bayes(digits, evidence):
    x, y = digits[0][:200], digits[1][:200]
    got = fit_hybrid(x, y, 10, 0.0, alpha=1.0, l2=0.0).generative
    want = BernoulliNB(alpha=1.0).fit(x.numpy(), y.numpy()).predict_proba(digits[0][200:400].numpy())
    evidence(
        id="TR-19", system="Hybrid of two sets of parameters", claim="sigma = 0: p(y | x) of digits, 200 labels",
        reference="sklearn.naive_bayes.BernoulliNB",
        reached=float((got.log_posterior(digits[0][200:400]).exp() - torch.from_numpy(want)).abs().max()),
        tolerance=1e-4, unit="max abs",
    )  # fmt: skip


def test_the_discriminative_end_is_logistic_regression(digits, evidence):
    """Rows without labels change nothing there."""
    x, y = digits[0][:200], digits[1][:200]
    got = fit_hybrid(x, y, 10, math.inf, digits[0][400:600], l2=1.0).discriminative
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(x.numpy(), y.numpy())
    want = torch.from_numpy(peer.predict_proba(digits[0][200:400].numpy()))
    evidence(
        id="TR-19", system="Hybrid of two sets of parameters", claim="sigma = inf: p(y | x) of digits, 200 labels",
        reference="sklearn.linear_model.LogisticRegression",
        reached=float((got.log_posterior(digits[0][200:400]).exp() - want).abs().max()), tolerance=1e-4, unit="max abs",
    )  # fmt: skip


def test_a_weak_tie_changes_little_and_a_strong_one_binds(digits):
    x, y = digits[0][:100], digits[1][:100]
    ends = [fit_hybrid(x, y, 10, sigma, digits[0][100:200]) for sigma in (0.01, 1.0, 100.0)]
    gaps = [float((h.discriminative.w - h.generative.w).abs().max()) for h in ends]
    assert gaps[0] < 0.05 < gaps[1] < gaps[2]
    assert ends[0].objective < ends[1].objective < ends[2].objective  # a weaker tie can only help


def test_bad_input_is_refused(digits):
    x, y = digits[0][:20], digits[1][:20]
    with pytest.raises(ConfigError, match="sigma -1"):
        fit_hybrid(x, y, 10, -1.0)
    with pytest.raises(DataError, match="not 0 and 1"):
        fit_hybrid(x / 2, y, 10, 1.0)
    with pytest.raises(DataError, match="labels"):
        fit_hybrid(x, y, 5, 1.0)


@pytest.mark.slow
def test_the_middle_with_few_labels_and_many_rows_without(digits, evidence):
    """Five labels a class and 1,000 rows without, three draws: accuracy on the rest, at each sigma (none is chosen)."""
    grid = (0.0, 3.0, 10.0, 30.0, math.inf)
    test_x, test_y = digits[0][1300:], digits[1][1300:]
    found = torch.zeros(3, len(grid))
    for draw in range(3):
        order = permutation(1300, draw, "draw")
        labels = digits[1][order]
        labelled = torch.cat([order[labels == c][:5] for c in range(10)])
        rest = order[~torch.isin(order, labelled)][:1000]
        for i, sigma in enumerate(grid):
            h = fit_hybrid(digits[0][labelled], digits[1][labelled], 10, sigma, digits[0][rest], l2=0.1)
            found[draw, i] = (h.discriminative.log_posterior(test_x).argmax(1) == test_y).double().mean()
    mean = found.mean(0)
    evidence(
        id="TR-19", system="Hybrid of two sets of parameters",
        claim="digits, 50 labels and 1,000 rows without: accuracy at sigma = 10 over the better end; "
        + ", ".join(f"{s:g}: {m:.3f}" for s, m in zip(grid, mean.tolist())),
        reference="sigma = 0 and sigma = inf", reached=float(mean[2] - max(mean[0], mean[-1])), tolerance=0.0,
        unit="accuracy", at_least=True,
    )  # fmt: skip
