"""What the naive Bayes classifiers share: prediction from the joint log-likelihood; see `naive_bayes.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from protea.distributions.family import Family
from protea.models.classical.naive_bayes import NaiveBayes
from protea.sklearn.base import array, dense, explained, tensor


class BaseNB(ClassifierMixin, BaseEstimator, ABC):
    """What the four have in common: prediction from the joint log-likelihood."""

    @abstractmethod
    def _family(self) -> Family:
        """The class-conditional distributions, from the attributes."""

    @abstractmethod
    def _log_prior(self) -> np.ndarray:
        """log pi, (classes,)."""

    @abstractmethod
    def _check_X(self, X: Any) -> Any:
        """Rows to predict, validated."""

    def to_protea(self) -> NaiveBayes:
        """The fitted model itself: it scores rows with holes, draws, completes and learns without labels."""
        check_is_fitted(self)
        model = NaiveBayes(self._family(), len(self.classes_))
        model.class_prior.copy_(tensor(np.exp(self._log_prior())))
        model.blur.fill_(float(getattr(self, "epsilon_", 0.0)))
        return model

    def _joint(self, model: NaiveBayes, x: Tensor) -> Tensor:
        return model.log_joint(x)

    def _scored(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X, model = self._check_X(X), self.to_protea()
        with explained(), torch.no_grad():
            return torch.cat([self._joint(model, x) for _, x in dense(X)])

    def predict_joint_log_proba(self, X: Any) -> np.ndarray:
        """log p(y, x) for every row and class, (rows, classes); of MultinomialNB without the coefficient."""
        return array(self._scored(X), self._dtype(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """log p(y | x), (rows, classes)."""
        joint = self._scored(X)
        top = joint.amax(1, keepdim=True).clamp(min=-1e300)  # so that float32 rounds differences, not sums
        rest = torch.from_numpy(array(joint - top, self._dtype(X)))
        return array(torch.log_softmax(rest, 1), self._dtype(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(y | x), (rows, classes)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of every row."""
        best = array(self._scored(X).argmax(1), np.int64)
        return self.classes_[best]

    def _dtype(self, X: Any) -> Any:
        return np.float64

    def _weights(self, X: Any, y: np.ndarray, sample_weight: Any) -> Tensor:
        """r (rows, classes): each row's weight in the column of its class."""
        r = tensor(np.asarray(y)[:, None] == self.classes_)
        if sample_weight is None:
            return r
        return r * tensor(_check_sample_weight(sample_weight, X))[:, None]
