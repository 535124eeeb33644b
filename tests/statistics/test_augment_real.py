"""Generated rows for a classifier on real data: digits with 20 labels a class, and Adult."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protea.data import open_data
from protea.inference.augment import Augmented, OnGenerated, augment
from protea.inference.contenders import Discriminative, Generative
from protea.inference.labelling import labelling
from protea.inference.learning_curve import Draws, compare_curves, learning_curves
from protea.training import Budget

pytestmark = pytest.mark.slow


def test_twenty_labels_a_class_of_digits(evidence):
    """One Gaussian a class learns from the same 200 rows. It knows nothing else, so the gain is small: undecided."""
    draws, classifier = Draws(open_data("digits")), Discriminative(1.0)
    model = Generative("gmm", {"k": 1, "covariance": "full"}, Budget(epochs=3))
    fed = [OnGenerated(classifier, model, 100), Augmented(classifier, model, 100)]
    real, synthetic, both = learning_curves(draws, [classifier, *fed], [200], 8)
    gain = compare_curves(both, real, [200]).points[0]
    assert gain.sign >= 0  # not behind, by the interval's account
    evidence(id="TR-21", system="Generated rows for a classifier", claim="digits, 20 labels a class, 8 draws: accuracy "
             "of real + synthetic minus real only", reference="logistic regression on the real rows",
             reached=gain.value, tolerance=0.0, at_least=True)  # fmt: skip
    evidence(id="TR-21", system="Generated rows for a classifier", claim="digits, 20 labels a class: accuracy of "
             "synthetic only (TSTR)", reference="logistic regression", reached=float(synthetic.correct.mean()),
             tolerance=0.88, at_least=True)  # fmt: skip


def test_adult_trained_on_synthetic_rows(shared_data: Path, evidence):
    """8,000 rows of a mixture of 8,000 rows, with the same shares of classes, teach nearly what the real ones do."""
    data = open_data(str(shared_data / "tabular" / "adult.csv"), target="income")
    labelled, test = data.train[:8000], data.holdout[:4000]
    model = Generative("mixture", None, Budget(seconds=10.0)).learn(data.space, labelled).density()
    counts = torch.bincount(labelling(data.space).of(labelled), minlength=2).tolist()
    found = augment(model, data.space, labelled, test, n=counts, seeds=3)
    evidence(id="TR-21", system="Generated rows for a classifier", claim="Adult, 8,000 rows: macro F1 of real only "
             "minus that of synthetic only (TSTR)", reference="logistic regression on the real rows",
             reached=found.f1["real"].value - found.f1["synthetic"].value, tolerance=0.05)  # fmt: skip
    assert found.f1["real"].value > 0.75 and found.gain["both"].value > -0.01
