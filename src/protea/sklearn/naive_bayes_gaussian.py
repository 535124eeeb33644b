"""Gaussian naive Bayes with scikit-learn's names; see `naive_bayes.py`."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import validate_data
from torch import Tensor

from protea.distributions.gaussian import Gaussian
from protea.sklearn.base import InputError, array, tensor
from protea.sklearn.naive_bayes_base import BaseNB

TINY = 1e-300  # floor of a variance where no smoothing is asked for


class GaussianNB(BaseNB):
    """Gaussian naive Bayes; see `sklearn.naive_bayes.GaussianNB` for parameters and attributes.

    Args:
        priors: class probabilities; counted if None.
        var_smoothing: share of the largest variance that is added to all.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> round(GaussianNB().fit(X, y).score(X, y), 2)
    0.96
    """

    _parameter_constraints: ClassVar[dict] = {
        "priors": ["array-like", None],
        "var_smoothing": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, *, priors=None, var_smoothing=1e-9):
        self.priors = priors
        self.var_smoothing = var_smoothing

    def _check_X(self, X: Any) -> Any:
        return validate_data(self, X, reset=False)

    def _dtype(self, X: Any) -> Any:
        return np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Learn from rows X (n, d), their classes y (n,) and weights."""
        y = validate_data(self, y=y)
        check_classification_targets(y)
        self.classes_: Any = None
        return self._learn(X, y, np.unique(y), sample_weight)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Learn from more rows; the first call needs all `classes`."""
        return self._learn(X, y, classes, sample_weight)

    def _learn(self, X: Any, y: Any, classes: Any, sample_weight: Any) -> GaussianNB:
        first = _check_partial_fit_first_call(self, classes)
        X, y = validate_data(self, X, y, reset=first)
        dtype = np.float32 if X.dtype == np.float32 else np.float64
        k, d = len(self.classes_), X.shape[1]
        if first:
            self.class_count_ = np.zeros(k, dtype)
            self.theta_, self.var_ = np.zeros((k, d), dtype), np.zeros((k, d), dtype)
            self.class_prior_ = self._given_prior(dtype)
        unknown = ~np.isin(y, self.classes_)
        if unknown.any():
            raise InputError(f"The target label(s) {np.unique(y[unknown])} in y do not exist in the initial classes "
                             f"{self.classes_}.", "Name all classes in the first call.")  # fmt: skip
        x, r = tensor(X), self._weights(X, y, sample_weight)
        epsilon = self.var_smoothing * float(x.var(0, correction=0).max())
        n, theta, var = self._moments(x, r, epsilon, 0.0 if first else epsilon)
        self.epsilon_ = dtype(epsilon)
        self.class_count_, self.theta_, self.var_ = array(n, dtype), array(theta, dtype), array(var, dtype)
        if self.priors is None:
            with np.errstate(invalid="ignore"):
                self.class_prior_ = self.class_count_ / self.class_count_.sum()
        return self

    def _given_prior(self, dtype: Any) -> np.ndarray:
        k = len(self.classes_)
        if self.priors is None:
            return np.zeros(k, dtype)
        priors = np.asarray(self.priors, dtype)
        if len(priors) != k:
            raise InputError("Number of priors must match number of classes.", f"Give {k}.")
        if not np.isclose(priors.sum(), 1.0):
            raise InputError("The sum of the priors should be 1.", "Divide them by their sum.")
        if (priors < 0).any():
            raise InputError("Priors must be non-negative.", "")
        return priors

    def _moments(self, x: Tensor, r: Tensor, epsilon: float, held: float) -> tuple[Tensor, Tensor, Tensor]:
        """Counts, means and variances + epsilon of the rows and of what was learnt before, less `held`.

        Each class is counted about its own mean of these rows, so that no digits are lost.
        """
        family = Gaussian(r.shape[1], (x.shape[1],), "diag", floor=TINY)
        family.scale.fill_(epsilon**0.5)  # of a class without rows
        count, before = tensor(self.class_count_), tensor(self.var_) - held
        sums = r.T @ x
        n = r.sum(0)
        about = torch.where(n[:, None] > 0, sums / n.clamp(min=TINY)[:, None], tensor(self.theta_))
        stats = family.expect(x - about[(r > 0).double().argmax(1)], r)
        shift = tensor(self.theta_) - about
        past = {"n": count, "w": count, "s1": count[:, None] * shift, "s2": count[:, None] * (before + shift.square())}
        stats = {name: value + past[name] for name, value in stats.items()}
        stats["s2"] = stats["s2"] + epsilon * stats["n"][:, None]
        family.maximise(stats)
        var = torch.where(family.covariances > 2 * TINY, family.covariances, 0.0)
        return n + count, about + family.means, var

    def _log_prior(self) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(np.asarray(self.class_prior_, np.float64))

    def _family(self) -> Gaussian:
        family = Gaussian(len(self.classes_), (self.theta_.shape[1],), "diag", floor=TINY)
        family.means.copy_(tensor(self.theta_))
        family.origin.copy_(family.means.mean(0))
        family.scale.copy_(tensor(self.var_).clamp(min=TINY).sqrt())
        return family
