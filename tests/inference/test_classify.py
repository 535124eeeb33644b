"""Scores of class probabilities against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from protea.errors import DataError
from protea.inference.classify import auroc, judge_probabilities, reliability


@pytest.mark.parametrize("k", [2, 4])
def test_figures_are_scikit_learns(k: int, evidence):
    rng = np.random.default_rng(k)
    p = rng.dirichlet(np.full(k, 0.7), size=500).round(2) + 1e-3  # rounded: ties
    p /= p.sum(1, keepdims=True)
    y = np.array([rng.choice(k, p=row) for row in p])
    found = judge_probabilities(torch.from_numpy(p).log(), torch.from_numpy(y), replicates=50)
    if k == 2:
        auc, brier = metrics.roc_auc_score(y, p[:, 1]), metrics.brier_score_loss(y, p[:, 1])
    else:
        log_p = np.log(p)  # ties to the last bit are those of what is scored
        auc = np.mean([metrics.roc_auc_score(y == c, log_p[:, c]) for c in range(k)])
        brier = ((p - np.eye(k)[y]) ** 2).sum(1).mean()
    want = {
        "auc": auc,
        "brier": brier,
        "accuracy": metrics.accuracy_score(y, p.argmax(1)),
        "log_loss": metrics.log_loss(y, p),
    }
    error = max(abs(found[name].value - value) for name, value in want.items())
    evidence(id="TR-04", system="Bayes classifier", claim=f"accuracy, AUC, Brier score and log loss of {k} classes",
             reference="sklearn.metrics", reached=error, tolerance=1e-12, unit="max abs")  # fmt: skip
    assert all(f.low <= f.value <= f.high for f in found.values())


def test_calibration_tells_honest_from_overconfident_probabilities():
    rng = np.random.default_rng(0)
    p1 = rng.uniform(size=20_000)
    y = torch.from_numpy((rng.uniform(size=20_000) < p1).astype(np.int64))
    honest = torch.from_numpy(np.stack((1 - p1, p1), 1)).log()
    sharp = torch.log_softmax(4 * honest, 1)
    assert judge_probabilities(honest, y, replicates=20)["calibration_error"].value < 0.02
    assert judge_probabilities(sharp, y, replicates=20)["calibration_error"].value > 0.1
    assert all(abs(b["confidence"] - b["accuracy"]) < 0.05 for b in reliability(honest, y))


def test_auroc_counts_ties_by_half():
    assert auroc(torch.zeros(10), torch.arange(10) < 5, replicates=10).value == 0.5


def test_unlabelled_rows_cannot_be_judged():
    with pytest.raises(DataError, match="outside 0"):
        judge_probabilities(torch.zeros(2, 2), torch.tensor([0, -1]))
