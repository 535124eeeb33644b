r"""The hidden Markov model whose states emit mixtures of Gaussians, with hmmlearn's names.

    weights_ = (n_km + weights_prior - 1) / sum_m,      means_ and covars_ of `moments.py`

n_km the expected rows of component m of state k. As in hmmlearn, scatters are taken about the means before the step, so
that it is no maximiser, and the two follow the same iterates; `models.markov.hmm.HiddenMarkov` has the exact step.
"tied" ties the components of a state, whose scatters are added up.

Juang, Levinson & Sondhi 1986, "Maximum likelihood estimation for multivariate mixture observations of Markov chains".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn import cluster
from sklearn.utils import check_random_state
from torch import Tensor

from protea.core import Stats
from protea.distributions.gaussian import Gaussian
from protea.distributions.nested import Nested
from protea.sklearn.base import InputError, array, tensor
from protea.sklearn.hmm_base import TEN_STARTS, BaseHMM
from protea.sklearn.hmm_emissions import COVARIANCES
from protea.sklearn.moments import FLOOR, Prior, fitted_means, scatters, set_covariances


class GMMHMM(BaseHMM):
    """Mixtures of n_mix Gaussians; see `hmmlearn.hmm.GMMHMM` for parameters and attributes.

    >>> X = np.random.RandomState(0).normal(size=(60, 2))
    >>> model = GMMHMM(n_components=2, n_mix=3, random_state=0).fit(X)
    >>> model.weights_.shape, model.means_.shape, model.covars_.shape
    ((2, 3), (2, 3, 2), (2, 3, 2))
    """

    def __init__(
        self, n_components=1, n_mix=1, min_covar=1e-3, startprob_prior=1.0, transmat_prior=1.0, weights_prior=1.0,
        means_prior=0.0, means_weight=0.0, covars_prior=None, covars_weight=None, algorithm="viterbi",
        covariance_type="diag", random_state=None, n_iter=10, tol=1e-2, verbose=False, params="stmcw",
        init_params="stmcw", implementation="log",
    ):  # fmt: skip
        super().__init__(
            n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose, params,
            init_params, implementation,
        )  # fmt: skip
        self.n_mix = n_mix
        self.min_covar = min_covar
        self.weights_prior = weights_prior
        self.means_prior = means_prior
        self.means_weight = means_weight
        self.covars_prior = covars_prior
        self.covars_weight = covars_weight
        self.covariance_type = covariance_type

    def _shape(self) -> tuple[int, ...]:
        """Of covars_."""
        k, m, d = self.n_components, self.n_mix, self.n_features
        return {"spherical": (k, m), "tied": (k, d, d), "diag": (k, m, d), "full": (k, m, d, d)}[self.covariance_type]

    # ---- starting ----

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        k, m = self.n_components, self.n_mix
        cov = np.atleast_2d(np.cov(X.T)) + self.min_covar * np.eye(self.n_features)
        means = self._centres(X, cov)
        if self._needs_init("w", "weights_"):
            self.weights_ = np.full((k, m), 1 / m)
        if self._needs_init("m", "means_"):
            self.means_ = means
        if self._needs_init("c", "covars_"):
            one = {"spherical": cov.mean(), "diag": np.diag(cov)}.get(self.covariance_type, cov)
            self.covars_ = np.broadcast_to(one, self._shape()).copy()

    def _centres(self, X: np.ndarray, cov: np.ndarray) -> np.ndarray:
        """k-means within the clusters of k-means; a cluster of too few rows gets draws about the centre of all."""
        k, m = self.n_components, self.n_mix
        outer = cluster.KMeans(k, random_state=self.random_state, **TEN_STARTS)
        label = outer.fit_predict(X)
        middle, means = outer.cluster_centers_.mean(axis=0), []
        for state in range(k):
            inner = cluster.KMeans(m, random_state=self.random_state, **TEN_STARTS)
            rows = X[label == state]
            if len(rows) >= m:
                means.append(inner.fit(rows).cluster_centers_)
            else:
                means.append(check_random_state(self.random_state).multivariate_normal(middle, cov, size=m))
        return np.stack(means)

    def _check(self) -> None:
        super()._check()
        if self.covariance_type not in COVARIANCES:
            raise InputError(f"covariance_type must be one of {COVARIANCES}", f"Not {self.covariance_type!r}.")
        self.weights_, self.means_, self.covars_ = (np.array(v) for v in (self.weights_, self.means_, self.covars_))
        if not hasattr(self, "n_features"):
            self.n_features = self.means_.shape[2]
        k, m, d = self.n_components, self.n_mix, self.n_features
        self._check_distribution("weights_", (k, m))
        if self.means_.shape != (k, m, d):
            raise InputError(f"means_ must have shape {(k, m, d)}, and has {self.means_.shape}.", "")
        if self.covars_.shape != self._shape():
            raise InputError(f"{self.covariance_type!r} mixture covars must have shape {self._shape()}, and have "
                             f"{self.covars_.shape}.", "")  # fmt: skip
        if self.covariance_type in ("spherical", "diag"):
            good = bool((self.covars_ >= 0).all())
        else:
            symmetric = np.allclose(self.covars_, np.swapaxes(self.covars_, -1, -2))
            good = symmetric and bool((np.linalg.eigvalsh(self.covars_) >= 0).all())
        if not good:
            raise InputError(f"{self.covariance_type!r} mixture covars are not symmetric, positive definite", "")

    # ---- between attributes and the family ----

    def _family(self) -> Nested:
        k, m, d = self.n_components, self.n_mix, self.n_features
        kind = "full" if self.covariance_type == "tied" else self.covariance_type
        inner = Gaussian(k * m, (d,), kind, floor=FLOOR)
        inner.means.copy_(tensor(self.means_).flatten(0, 1))
        inner.origin.copy_(inner.means.mean(0))
        sigma = tensor(self.covars_)
        if self.covariance_type == "tied":
            sigma = sigma[:, None].expand(k, m, d, d)
        set_covariances(inner, sigma.flatten(0, 1), torch.ones([1] * (sigma.ndim - 1), dtype=sigma.dtype))
        family = Nested(inner, k)
        family.weights = tensor(self.weights_)
        return family

    def _read(self, family: Nested) -> None:
        k, m = self.n_components, self.n_mix
        if "w" in self.params:
            self.weights_ = array(family.weights)
        if "m" in self.params:
            self.means_ = array(family.inner.means.unflatten(0, (k, m)))
        if "c" in self.params:
            sigma = family.inner.covariances.unflatten(0, (k, m))
            self.covars_ = array(sigma[:, 0] if self.covariance_type == "tied" else sigma)

    # ---- learning ----

    def _learn(self, family: Nested, stats: Stats) -> None:
        k, m = self.n_components, self.n_mix
        inner: Any = family.inner
        own = {name.removeprefix("inner/"): v for name, v in stats.items() if name.startswith("inner/")}
        if "w" in self.params:
            n = stats["weights"] + tensor(np.broadcast_to(self.weights_prior, (k, m))) - 1
            family.weights = torch.where(n.sum(1, keepdim=True) > 0, n / n.sum(1, keepdim=True), family.weights)
        nothing = torch.zeros((), dtype=torch.float64)
        rows = tensor(np.broadcast_to(self.means_weight, (k, m))).flatten()
        mean = tensor(np.broadcast_to(self.means_prior, (k, m, self.n_features))).flatten(0, 1)
        prior = Prior(rows, mean, nothing)
        before = inner.means.clone()
        means = fitted_means(inner, own, prior) if "m" in self.params else before
        if "c" in self.params:
            extra, divisor = self._covariance_prior(own["n"].view(k, m))
            scatter = scatters(inner, own, prior, means, before).unflatten(0, (k, m))
            if self.covariance_type == "tied":
                scatter = scatter.sum(1, keepdim=True).expand(scatter.shape)
            divisor = divisor.expand(k, m, *divisor.shape[2:])
            set_covariances(inner, (scatter + extra).flatten(0, 1), divisor.flatten(0, 1))
        inner.means.copy_(means)

    def _covariance_prior(self, n: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the scatters, and what divides them, (k, m, ...). hmmlearn's defaults add nothing to either
        ("spherical": d - n_mix rows to the divisor)."""
        (k, m), d = n.shape, self.n_features
        kind, prior, weight = self.covariance_type, self.covars_prior, self.covars_weight
        if kind == "full":
            psi = tensor(np.broadcast_to(0.0 if prior is None else prior, (k, m, d, d))).mT
            nu = tensor(np.broadcast_to(-(d + 2.0) if weight is None else weight, (k, m)))
            return psi, (n + nu + d + 2)[..., None, None]
        if kind == "tied":
            psi = tensor(np.broadcast_to(0.0 if prior is None else prior, (k, d, d))).mT
            nu = tensor(np.broadcast_to(-(m + d + 1.0) if weight is None else weight, (k,)))
            return psi[:, None], (n.sum(1) + nu + m + d + 1)[:, None, None, None]
        shape = (k, m, d) if kind == "diag" else (k, m)
        default = -1.5 if kind == "diag" else -(m + 2.0) / 2
        alpha = tensor(np.broadcast_to(default if prior is None else prior, shape))
        beta = tensor(np.broadcast_to(0.0 if weight is None else weight, shape))
        if kind == "diag":
            return 2 * beta, n[..., None] + 1 + 2 * (alpha + 1)
        return 2 * beta, d * (n + 1) + 2 * (alpha + 1)

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k, m, d = self.n_components, self.n_mix, self.n_features
        free = {"spherical": k * m, "diag": k * m * d, "full": k * m * d * (d + 1) // 2, "tied": k * d * (d + 1) // 2}
        return {"s": k - 1, "t": k * (k - 1), "m": k * m * d, "c": free[self.covariance_type], "w": m - 1}
