r"""Naive Bayes with scikit-learn's names, counted and scored by `NaiveBayes` and its families.

    log p(y, x) = log pi_y + sum_j log p(x_j | y)

                      p(x_j | y)                              maximiser, from counts of weight r
    GaussianNB        N(theta_yj, var_yj)                     mean; variance + var_smoothing * the largest variance
    BernoulliNB       theta_yj^x (1 - theta_yj)^(1 - x)       (n_yj + alpha) / (n_y + 2 alpha)
    MultinomialNB     theta_yj^x, without the coefficient     (n_yj + alpha) / sum_j (n_yj + alpha)
    CategoricalNB     theta_yjx                               (n_yjx + alpha) / sum_x (n_yjx + alpha)

Attributes are what is learnt: a prediction reads them, and `partial_fit` adds to their counts. Pseudo-counts enter as
counts, which is what a conjugate prior is. McCallum & Nigam 1998, "A comparison of event models for naive Bayes text
classification"; Chan, Golub & LeVeque 1979 (moments of batches).
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.preprocessing import binarize
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import check_non_negative, validate_data
from torch import Tensor

from protea.distributions.bernoulli import Bernoulli
from protea.distributions.categorical import Categorical
from protea.distributions.multinomial import Multinomial
from protea.models.classical.naive_bayes import NaiveBayes
from protea.sklearn.base import InputError, array, dense, explained, tensor
from protea.sklearn.naive_bayes_base import BaseNB
from protea.sklearn.naive_bayes_gaussian import GaussianNB

__all__ = ["BernoulliNB", "CategoricalNB", "GaussianNB", "MultinomialNB"]
LEAST_ALPHA = 1e-10


class _Discrete(BaseNB):
    """The three that count: pseudo-counts alpha, and log-probabilities as attributes."""

    _parameter_constraints: ClassVar[dict] = {
        "alpha": [Interval(Real, 0, None, closed="left"), "array-like"],
        "fit_prior": ["boolean"],
        "class_prior": ["array-like", None],
        "force_alpha": ["boolean"],
    }

    @abstractmethod
    def _count(self, X: Any, r: Tensor) -> None:
        """Add rows of weights r (rows, classes) to the counts."""

    @abstractmethod
    def _smooth(self, alpha: Any) -> None:
        """Log-probabilities from the counts."""

    def _init_counters(self, classes: int, features: int) -> None:
        self.class_count_ = np.zeros(classes)
        self.feature_count_ = np.zeros((classes, features))

    def _check_X(self, X: Any) -> Any:
        return validate_data(self, X, accept_sparse="csr", reset=False)

    def _check_X_y(self, X: Any, y: Any, reset: bool = True) -> Any:
        return validate_data(self, X, y, accept_sparse="csr", reset=reset)

    def _log_prior(self) -> np.ndarray:
        return self.class_log_prior_

    def _check_alpha(self) -> Any:
        alpha: Any = self.alpha if isinstance(self.alpha, Real) else np.asarray(self.alpha)
        if isinstance(alpha, np.ndarray):
            if alpha.shape[0] != self.n_features_in_:
                raise InputError("When alpha is an array, it should contains `n_features`.",
                                 f"Got {alpha.shape[0]} elements instead of {self.n_features_in_}.")  # fmt: skip
            if alpha.min() < 0:
                raise InputError("All values in alpha must be greater than 0.", f"Got {alpha.min()}.")
        if np.min(alpha) < LEAST_ALPHA and not self.force_alpha:
            warnings.warn(
                f"alpha too small will result in numeric errors, setting alpha = {LEAST_ALPHA:.1e}. "
                "Use `force_alpha=True` to keep alpha unchanged.",
                stacklevel=3,
            )
            return np.maximum(alpha, LEAST_ALPHA)
        return alpha

    def _pseudo(self) -> float:
        """The pseudo-count of the model handed over; 0 where features have their own."""
        return float(self.alpha) if isinstance(self.alpha, Real) else 0.0

    def _update(self, X: Any, y: Any, sample_weight: Any) -> Any:
        r = self._weights(X, y, sample_weight)
        with explained():
            self._count(X, r)
            self.class_count_ += array(r.sum(0))
            self._smooth(self._check_alpha())
        self._update_prior()
        return self

    def _update_prior(self) -> None:
        k = len(self.classes_)
        if self.class_prior is not None:
            if len(self.class_prior) != k:
                raise InputError("Number of priors must match number of classes.", f"Give {k}.")
            self.class_log_prior_ = np.log(self.class_prior)
        elif self.fit_prior:
            with np.errstate(divide="ignore"):
                self.class_log_prior_ = np.log(self.class_count_) - np.log(self.class_count_.sum())
        else:
            self.class_log_prior_ = np.full(k, -np.log(k))

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Learn from rows X (n, d), their classes y (n,) and weights."""
        X, y = self._check_X_y(X, y)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        self._init_counters(len(self.classes_), X.shape[1])
        return self._update(X, y, sample_weight)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Learn from more rows; the first call needs all `classes`."""
        X, y = self._check_X_y(X, y, reset=not hasattr(self, "classes_"))
        if _check_partial_fit_first_call(self, classes):
            self._init_counters(len(self.classes_), X.shape[1])
        return self._update(X, y, sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.poor_score = True
        return tags


class BernoulliNB(_Discrete):
    """Naive Bayes of binary features; see `sklearn.naive_bayes.BernoulliNB` for parameters and attributes.

    Args:
        alpha: pseudo-count, one or one a feature.
        force_alpha: whether to keep an alpha below 1e-10.
        binarize: threshold above which an entry is 1; None for entries that are 0 and 1 already.
        fit_prior: whether class probabilities are counted.
        class_prior: class probabilities.

    >>> X = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [1, 1, 1]])
    >>> BernoulliNB().fit(X, ["a", "a", "b", "b"]).predict([[0, 0, 0]]).tolist()
    ['a']
    """

    _parameter_constraints: ClassVar[dict] = {
        **_Discrete._parameter_constraints,
        "binarize": [None, Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, *, alpha=1.0, force_alpha=True, binarize=0.0, fit_prior=True, class_prior=None):
        self.alpha = alpha
        self.force_alpha = force_alpha
        self.binarize = binarize
        self.fit_prior = fit_prior
        self.class_prior = class_prior

    def _binary(self, X: Any) -> Any:
        return X if self.binarize is None else binarize(X, threshold=self.binarize)

    def _check_X(self, X: Any) -> Any:
        return self._binary(super()._check_X(X))

    def _check_X_y(self, X: Any, y: Any, reset: bool = True) -> Any:
        X, y = super()._check_X_y(X, y, reset)
        return self._binary(X), y

    def _count(self, X: Any, r: Tensor) -> None:
        family = Bernoulli(r.shape[1], (X.shape[1],))
        for part, x in dense(X):
            self.feature_count_ += array(family.expect(x, r[part])["ones"])

    def _smooth(self, alpha: Any) -> None:
        family = Bernoulli(*self._shape(), alpha=0.0)
        ones, n = tensor(self.feature_count_), tensor(self.class_count_)[:, None]
        a = tensor(np.broadcast_to(alpha, ones.shape))
        family.maximise({"ones": ones + a, "zeros": n - ones + a})
        self.feature_log_prob_ = array(family.theta.log())

    def _shape(self) -> tuple[int, tuple[int]]:
        return len(self.classes_), (self.feature_count_.shape[1],)

    def _family(self) -> Bernoulli:
        family = Bernoulli(*self._shape(), alpha=self._pseudo())
        family.theta.data.copy_(tensor(self.feature_log_prob_).exp())
        return family


class MultinomialNB(_Discrete):
    """Naive Bayes of counts; see `sklearn.naive_bayes.MultinomialNB` for parameters and attributes.

    Fractional counts (tf-idf) are allowed, and log p(y, x) leaves out the coefficient, which says nothing of y.

    Args:
        alpha: pseudo-count, one or one a feature.
        force_alpha: whether to keep an alpha below 1e-10.
        fit_prior: whether class probabilities are counted.
        class_prior: class probabilities.

    >>> X = np.array([[3, 0, 1], [2, 1, 0], [0, 2, 3]])
    >>> MultinomialNB().fit(X, [0, 0, 1]).predict([[1, 0, 0], [0, 1, 2]]).tolist()
    [0, 1]
    """

    def __init__(self, *, alpha=1.0, force_alpha=True, fit_prior=True, class_prior=None):
        self.alpha = alpha
        self.force_alpha = force_alpha
        self.fit_prior = fit_prior
        self.class_prior = class_prior

    def _count(self, X: Any, r: Tensor) -> None:
        check_non_negative(X, "MultinomialNB (input X)")
        for part, x in dense(X):
            self.feature_count_ += array(r[part].T @ x)

    def _smooth(self, alpha: Any) -> None:
        family = Multinomial(len(self.classes_), (self.feature_count_.shape[1],), alpha=0.0)
        family.learn_shares(tensor(self.feature_count_ + alpha))
        self.feature_log_prob_ = array(family.theta.log())

    def _family(self) -> Multinomial:
        family = Multinomial(len(self.classes_), (self.feature_log_prob_.shape[1],), alpha=self._pseudo())
        family.theta.data.copy_(tensor(self.feature_log_prob_).exp())
        return family

    def _joint(self, model: NaiveBayes, x: Tensor) -> Tensor:
        assert isinstance(model.family, Multinomial)
        return model.family.log_shares(x) + model.class_log_prior

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


class CategoricalNB(_Discrete):
    """Naive Bayes of categories 0 .. n - 1; see `sklearn.naive_bayes.CategoricalNB` for parameters and attributes.

    Args:
        alpha: pseudo-count of every category.
        force_alpha: whether to keep an alpha below 1e-10.
        fit_prior: whether class probabilities are counted.
        class_prior: class probabilities.
        min_categories: categories of each feature, at least.

    >>> X = np.array([[0, 2], [1, 2], [1, 0]])
    >>> CategoricalNB().fit(X, [0, 0, 1]).predict([[0, 2], [1, 0]]).tolist()
    [0, 1]
    """

    _parameter_constraints: ClassVar[dict] = {
        **_Discrete._parameter_constraints,
        "min_categories": [None, "array-like", Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, *, alpha=1.0, force_alpha=True, fit_prior=True, class_prior=None, min_categories=None):
        self.alpha = alpha
        self.force_alpha = force_alpha
        self.fit_prior = fit_prior
        self.class_prior = class_prior
        self.min_categories = min_categories

    def _check_X(self, X: Any) -> Any:
        X = validate_data(self, X, dtype="int", ensure_all_finite=True, reset=False)
        check_non_negative(X, "CategoricalNB (input X)")
        return X

    def _check_X_y(self, X: Any, y: Any, reset: bool = True) -> Any:
        X, y = validate_data(self, X, y, dtype="int", ensure_all_finite=True, reset=reset)
        check_non_negative(X, "CategoricalNB (input X)")
        return X, y

    def _init_counters(self, classes: int, features: int) -> None:
        self.class_count_ = np.zeros(classes)
        self.category_count_ = [np.zeros((classes, 0)) for _ in range(features)]

    def _levels(self, X: np.ndarray) -> np.ndarray:
        seen = X.max(axis=0) + 1
        if self.min_categories is None:
            return seen
        least = np.asarray(self.min_categories)
        if not np.issubdtype(least.dtype, np.signedinteger):
            raise InputError(f"'min_categories' should have integral type. Got {least.dtype} instead.", "")
        if least.ndim and least.shape != seen.shape:
            raise InputError(f"'min_categories' should have shape ({X.shape[1]},) when an array-like is provided.",
                             f"Got {least.shape} instead.")  # fmt: skip
        return np.maximum(seen, least, dtype=np.int64)

    def _count(self, X: np.ndarray, r: Tensor) -> None:
        self.n_categories_ = self._levels(X)
        family = Categorical(r.shape[1], tuple(map(int, self.n_categories_)), (X.shape[1],))
        found = array(family.expect(tensor(X, np.int64), r)["n"])
        for j, (before, levels) in enumerate(zip(self.category_count_, self.n_categories_)):
            count = np.zeros((r.shape[1], max(before.shape[1], levels)))
            count[:, : before.shape[1]] = before
            count[:, :levels] += found[:, j, :levels]
            self.category_count_[j] = count

    def _smooth(self, alpha: Any) -> None:
        family, levels = self._empty()
        n = torch.zeros_like(family.logits)
        for j, count in enumerate(self.category_count_):
            n[:, j, : levels[j]] = tensor(count + alpha)
        family.maximise({"n": n})
        table = array(family.log_table)
        self.feature_log_prob_ = [table[:, j, :size].copy() for j, size in enumerate(levels)]

    def _empty(self, prior: float = 0.0) -> tuple[Categorical, tuple[int, ...]]:
        levels = tuple(count.shape[1] for count in self.category_count_)
        return Categorical(len(self.classes_), levels, (len(levels),), prior), levels

    def _family(self) -> Categorical:
        family, levels = self._empty(self._pseudo())
        p = torch.zeros_like(family.logits)
        for j, log_p in enumerate(self.feature_log_prob_):
            p[:, j, : levels[j]] = tensor(log_p).exp()
        family.probabilities = p
        return family

    def _joint(self, model: NaiveBayes, x: Tensor) -> Tensor:
        return model.log_joint(x.long())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        tags.input_tags.sparse = False
        tags.input_tags.positive_only = True
        return tags
