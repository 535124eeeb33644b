"""Softmax regression against scikit-learn's, and its figures on real data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from protea.errors import ConfigError, DataError
from protea.inference.logistic import SoftmaxRegression


def problem(k: int, seed: int = 0, n: int = 300, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(n, d)), rng.normal(size=(d, k))
    logits = x @ w + rng.gumbel(size=(n, k)) * 1.5
    return x, logits.argmax(1)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("l2", [0.0, 1e-3, 1.0, 30.0])
def test_probabilities_are_scikit_learns(k: int, l2: float, evidence):
    x, y = problem(k)
    ours = SoftmaxRegression(k, l2).fit(torch.from_numpy(x), torch.from_numpy(y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LogisticRegression(C=np.inf if l2 == 0 else 1 / l2, tol=1e-10, max_iter=5000).fit(x, y)
    error = np.abs(ours.log_posterior(torch.from_numpy(x)).exp().numpy() - theirs.predict_proba(x)).max()
    evidence(id="TR-05", system="Logistic regression", claim=f"probabilities of {k} classes, l2={l2:g}",
             reference="sklearn.linear_model.LogisticRegression", reached=error, tolerance=1e-5,
             unit="max abs")  # fmt: skip


@pytest.mark.parametrize("solver", ["_newton", "_lbfgs"])
def test_both_solvers_reach_a_zero_of_the_gradient(solver: str):
    """The gradient by finite differences of the objective, not by the code's own formula."""
    from protea.inference import logistic

    x, y = problem(3, seed=2, n=80)
    x1 = np.concatenate((x, np.ones((80, 1))), 1)
    penalty = np.full((3, 5), 0.7)
    penalty[:, -1] = 0
    w, _ = getattr(logistic, solver)(x1, np.eye(3)[y], penalty, 500, 1e-9)

    def objective(w: np.ndarray) -> float:
        logits = x1 @ w.T
        return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(80), y]).sum() + 0.5 * (penalty * w * w).sum())

    for i in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[i] = 1e-5
        assert abs(objective(w + step) - objective(w - step)) / 2e-5 < 1e-4


def test_separable_classes_without_a_penalty_end_and_stay_finite():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    model = SoftmaxRegression(2, l2=0.0).fit(x, (x[:, 0] > 0).long())
    assert torch.isfinite(model.weight).all() and (model.log_posterior(x).argmax(1) == (x[:, 0] > 0)).all()


def test_a_class_that_never_occurs_is_improbable():
    x, y = problem(2)
    model = SoftmaxRegression(3, l2=1e-3).fit(torch.from_numpy(x), torch.from_numpy(y))
    assert float(model.log_posterior(torch.from_numpy(x)).exp()[:, 2].max()) < 0.01


def test_bad_input_is_refused():
    x = torch.zeros(4, 2, dtype=torch.float64)
    with pytest.raises(ConfigError, match="1 classes"):
        SoftmaxRegression(1)
    with pytest.raises(DataError, match="one class only"):
        SoftmaxRegression(2).fit(x, torch.zeros(4).long())
    with pytest.raises(DataError, match="not whole numbers"):
        SoftmaxRegression(2).fit(x, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    with pytest.raises(DataError, match="NaN"):
        SoftmaxRegression(2).fit(x * torch.nan, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(DataError, match=r"must lie in 0 \.\. 1"):
        SoftmaxRegression(2).fit(x, torch.tensor([0, 1, 2, 1]))
