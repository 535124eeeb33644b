r"""Hidden Markov models of symbols, of real vectors and of counts, with hmmlearn's names.

    CategoricalHMM   emissionprob_ = (n_kv + prior - 1)_+ / sum_v
    GaussianHMM      means_ and covars_ of `moments.py`, a = the new means
    PoissonHMM       lambdas_ = (lambdas_prior + N s_kd / n_k) / (lambdas_weight + N),  N = sum_k n_k

with n, s the expected counts and sums of each state. Rabiner 1989, "A tutorial on hidden Markov models".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn import cluster
from sklearn.utils import check_random_state
from torch import Tensor

from protea.core import Stats
from protea.distributions.categorical import Categorical
from protea.distributions.gaussian import Gaussian
from protea.distributions.poisson import Poisson
from protea.sklearn.base import InputError, array, tensor
from protea.sklearn.hmm_base import TEN_STARTS, BaseHMM
from protea.sklearn.moments import FLOOR, Prior, fitted_means, scatters, set_covariances

COVARIANCES = ("spherical", "diag", "full", "tied")


class CategoricalHMM(BaseHMM):
    """Symbols 0 .. n_features - 1 in rows (n, 1); see `hmmlearn.hmm.CategoricalHMM` for parameters and attributes.

    >>> model = CategoricalHMM(n_components=2, random_state=0).fit([[0], [1], [0], [0], [1], [1]], lengths=[4, 2])
    >>> model.emissionprob_.shape, model.predict([[0], [1]]).shape
    ((2, 2), (2,))
    """

    def __init__(
        self, n_components=1, startprob_prior=1.0, transmat_prior=1.0, *, emissionprob_prior=1.0, n_features=None,
        algorithm="viterbi", random_state=None, n_iter=10, tol=1e-2, verbose=False, params="ste", init_params="ste",
        implementation="log",
    ):  # fmt: skip
        super().__init__(
            n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose, params,
            init_params, implementation,
        )  # fmt: skip
        self.emissionprob_prior = emissionprob_prior
        self.n_features: Any = n_features

    def _check_and_set_n_features(self, X: np.ndarray) -> None:
        if not np.issubdtype(X.dtype, np.integer):
            raise InputError("Symbols should be integers", f"These are {X.dtype}.")
        if X.min() < 0:
            raise InputError("Symbols should be nonnegative", f"The least is {X.min()}.")
        if self.n_features is None:
            self.n_features = int(X.max()) + 1
        elif self.n_features - 1 < X.max():
            raise InputError(f"Largest symbol is {X.max()} but the model only emits symbols up to "
                             f"{self.n_features - 1}", "")  # fmt: skip

    def _observations(self, X: np.ndarray) -> Tensor:
        self._check_and_set_n_features(X)
        if X.shape[1] != 1:
            raise InputError(f"Symbols come in rows of shape (n, 1), not {X.shape}.", "Use X.reshape(-1, 1).")
        return tensor(X[:, 0], np.int64)

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        self.random_state = check_random_state(self.random_state)
        if self._needs_init("e", "emissionprob_"):
            p = self.random_state.rand(self.n_components, self.n_features)
            self.emissionprob_ = p / p.sum(axis=1, keepdims=True)

    def _check(self) -> None:
        super()._check()
        self.emissionprob_ = np.atleast_2d(self.emissionprob_)
        if self.n_features is None:
            self.n_features = self.emissionprob_.shape[1]
        self._check_distribution("emissionprob_", (self.n_components, self.n_features))

    def _family(self) -> Categorical:
        family = Categorical(self.n_components, int(self.n_features))
        family.probabilities = tensor(self.emissionprob_)
        return family

    def _learn(self, family: Categorical, stats: Stats) -> None:
        if "e" in self.params:
            prior = tensor(np.broadcast_to(self.emissionprob_prior, self.emissionprob_.shape))
            family.maximise({"n": (stats["n"] + prior[:, None] - 1).clamp(min=0)})

    def _read(self, family: Categorical) -> None:
        if "e" in self.params:
            self.emissionprob_ = array(family.probabilities[:, 0])

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k = self.n_components
        return {"s": k - 1, "t": k * (k - 1), "e": k * (self.n_features - 1)}


class GaussianHMM(BaseHMM):
    """Gaussian emissions; see `hmmlearn.hmm.GaussianHMM` for parameters and attributes.

    >>> X = np.array([[0.0], [0.1], [5.0], [5.2], [0.2], [5.1]])
    >>> model = GaussianHMM(n_components=2, random_state=0).fit(X)
    >>> np.sort(model.means_[:, 0]).round(1).tolist(), model.covars_.shape
    ([0.1, 5.1], (2, 1, 1))
    """

    def __init__(
        self, n_components=1, covariance_type="diag", min_covar=1e-3, startprob_prior=1.0, transmat_prior=1.0,
        means_prior=0, means_weight=0, covars_prior=1e-2, covars_weight=1, algorithm="viterbi", random_state=None,
        n_iter=10, tol=1e-2, verbose=False, params="stmc", init_params="stmc", implementation="log",
    ):  # fmt: skip
        super().__init__(
            n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose, params,
            init_params, implementation,
        )  # fmt: skip
        self.covariance_type = covariance_type
        self.min_covar = min_covar
        self.means_prior = means_prior
        self.means_weight = means_weight
        self.covars_prior = covars_prior
        self.covars_weight = covars_weight

    @property
    def covars_(self):
        """Sigma (n_components, d, d), whatever the covariance type."""
        sigma, k, d = np.asarray(self._covars_), self.n_components, self.n_features
        if self.covariance_type == "diag":
            return sigma[:, None] * np.eye(d)
        if self.covariance_type == "tied":
            return np.broadcast_to(sigma, (k, d, d)).copy()
        return sigma.reshape(k, -1)[:, :1, None] * np.eye(d) if self.covariance_type == "spherical" else sigma

    @covars_.setter
    def covars_(self, value):
        value = np.array(value, dtype=float, copy=True)
        kind = self.covariance_type
        if kind not in COVARIANCES:
            raise InputError(f"covariance_type must be one of {COVARIANCES}", f"Not {kind!r}.")
        if kind == "spherical":
            good = len(value) == self.n_components and bool((value > 0).all())
        elif kind == "diag":
            good = value.ndim == 2 and bool((value > 0).all())
        else:
            square = value.ndim == (3 if kind == "full" else 2) and value.shape[-1] == value.shape[-2]
            good = square and np.allclose(value, np.swapaxes(value, -1, -2)) and (np.linalg.eigvalsh(value) > 0).all()
        if not good:
            raise InputError(f"{kind!r} covars of shape {value.shape} must be positive (definite, symmetric) and of "
                             "the type's shape", "")  # fmt: skip
        self._covars_ = value

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        k, d = self.n_components, self.n_features
        if self._needs_init("m", "means_"):
            self.means_ = cluster.KMeans(k, random_state=self.random_state, **TEN_STARTS).fit(X).cluster_centers_
        if self._needs_init("c", "_covars_" if "c" not in self.init_params else "covars_"):
            cov = np.atleast_2d(np.cov(X.T)) + self.min_covar * np.eye(d)
            self.covars_ = {
                "spherical": np.full(k, cov.mean()), "diag": np.tile(np.diag(cov), (k, 1)), "tied": cov,
                "full": np.tile(cov, (k, 1, 1)),
            }[self.covariance_type]  # fmt: skip

    def _check(self) -> None:
        super()._check()
        self.means_ = np.asarray(self.means_)
        self.n_features = self.means_.shape[1]
        if self.covariance_type not in COVARIANCES:
            raise InputError(f"covariance_type must be one of {COVARIANCES}", f"Not {self.covariance_type!r}.")

    def _family(self) -> Gaussian:
        k, d = self.n_components, self.n_features
        family = Gaussian(k, (d,), self.covariance_type, floor=FLOOR)
        family.means.copy_(tensor(self.means_))
        family.origin.copy_(family.means.mean(0))
        sigma = tensor(self._covars_)
        sigma = sigma.reshape(k, -1)[:, 0] if self.covariance_type == "spherical" else sigma
        set_covariances(family, sigma, torch.ones([1] * sigma.ndim, dtype=sigma.dtype))
        return family

    def _prior(self, family: Gaussian) -> Prior:
        k, d = family.means.shape
        rows = tensor(np.broadcast_to(np.ravel(self.means_weight), (k,)))
        mean = tensor(np.broadcast_to(self.means_prior, (k, d)))
        shape = {"full": (k, d, d), "tied": (d, d)}.get(self.covariance_type, (k, d))
        scatter = tensor(np.broadcast_to(self.covars_prior, shape))
        return Prior(rows, mean, scatter.sum(1) if self.covariance_type == "spherical" else scatter)

    def _divisor(self, n: Tensor, d: int) -> Tensor:
        """c, in a shape that divides the scatters."""
        extra = np.asarray(self.covars_weight, dtype=float) - (d if self.covariance_type in ("full", "tied") else 1)
        extra = tensor(np.maximum(extra, 0))
        if self.covariance_type == "tied":
            return extra + n.sum()
        if self.covariance_type == "full":
            return (extra + n)[:, None, None]
        each = (extra + n).clamp(min=1e-5)
        return d * each if self.covariance_type == "spherical" else each[:, None]

    def _learn(self, family: Gaussian, stats: Stats) -> None:
        prior = self._prior(family)
        if "m" in self.params:
            means = fitted_means(family, stats, prior)
        else:
            means = family.means.clone()
        if "c" in self.params:
            scatter = scatters(family, stats, prior, means, means)
            set_covariances(family, scatter, self._divisor(stats["n"], family.dim))
        family.means.copy_(means)

    def _read(self, family: Gaussian) -> None:
        if "m" in self.params:
            self.means_ = array(family.means)
        if "c" in self.params:
            self._covars_ = array(family.covariances)

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k, d = self.n_components, self.n_features
        own = {"spherical": k, "diag": k * d, "full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2}
        return {"s": k - 1, "t": k * (k - 1), "m": k * d, "c": own[self.covariance_type]}


class PoissonHMM(BaseHMM):
    """Counts; see `hmmlearn.hmm.PoissonHMM` for parameters and attributes.

    >>> model = PoissonHMM(n_components=2, random_state=0).fit([[0], [1], [9], [8], [0], [1], [10]])
    >>> np.sort(model.lambdas_[:, 0]).round(1).tolist()
    [0.5, 9.0]
    """

    def __init__(
        self, n_components=1, startprob_prior=1.0, transmat_prior=1.0, lambdas_prior=0.0, lambdas_weight=0.0,
        algorithm="viterbi", random_state=None, n_iter=10, tol=1e-2, verbose=False, params="stl", init_params="stl",
        implementation="log",
    ):  # fmt: skip
        super().__init__(
            n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose, params,
            init_params, implementation,
        )  # fmt: skip
        self.lambdas_prior = lambdas_prior
        self.lambdas_weight = lambdas_weight

    def _check_and_set_n_features(self, X: np.ndarray) -> None:
        super()._check_and_set_n_features(X)
        if (X < 0).any() or (np.round(X) != X).any():
            raise InputError(f"{X[(X < 0) | (np.round(X) != X)][0]} is not a count.",
                             "Poisson emissions are whole numbers from 0.")  # fmt: skip

    def _observations(self, X: np.ndarray) -> Tensor:
        self._check_and_set_n_features(X)
        return tensor(X)

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        self.random_state = check_random_state(self.random_state)
        mean, var = X.mean(), X.var()
        if self._needs_init("l", "lambdas_"):  # the method of moments
            shape = (self.n_components, self.n_features)
            same = np.full(shape, max(mean, 1e-3))
            self.lambdas_ = self.random_state.gamma(mean**2 / var, var / mean, size=shape) if var > 0 else same

    def _check(self) -> None:
        super()._check()
        self.lambdas_ = np.atleast_2d(self.lambdas_)
        d = getattr(self, "n_features", self.lambdas_.shape[1])
        if self.lambdas_.shape != (self.n_components, d):
            raise InputError(f"lambdas_ must have shape {(self.n_components, d)}, and has {self.lambdas_.shape}.", "")
        self.n_features = d

    def _family(self) -> Poisson:
        family = Poisson(self.n_components, (self.n_features,))
        family.rates = tensor(self.lambdas_)
        return family

    def _learn(self, family: Poisson, stats: Stats) -> None:
        if "l" not in self.params:
            return
        n, s1 = stats["n"], stats["s1"]
        total = n[:, 0].sum()
        alpha, beta = (tensor(np.broadcast_to(v, n.shape)) for v in (self.lambdas_prior, self.lambdas_weight))
        mean = torch.where(n > 0, s1 / n.clamp(min=1e-300), family.rates)
        family.maximise({"n": beta + total, "s1": alpha + total * mean})

    def _read(self, family: Poisson) -> None:
        if "l" in self.params:
            self.lambdas_ = array(family.rates)

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k = self.n_components
        return {"s": k - 1, "t": k * (k - 1), "l": k * self.n_features}
