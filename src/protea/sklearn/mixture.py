r"""The Gaussian mixture with scikit-learn's names, iterated by `models.classical.gmm.GaussianMixture`.

scikit-learn adds `reg_covar` to the diagonal of every fitted covariance, where Protea raises eigenvalues to a floor. To
follow its iterates the ridge enters the M-step as scatter, n_k reg_covar I: the statistics of rows with independent
noise of that variance added. Likelihood may then fall by a little, as it may in scikit-learn.

Dempster, Laird & Rubin 1977, "Maximum likelihood from incomplete data via the EM algorithm".
"""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from time import time
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn import cluster
from sklearn.base import BaseEstimator, DensityMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from protea.core import Stats
from protea.distributions.elliptical import EMPTY
from protea.distributions.gaussian import Gaussian
from protea.models.classical import gmm
from protea.models.classical.mixture import PREFIX
from protea.rng import Streams
from protea.sklearn.base import InputError, array, seed_of, tensor

ONCE: dict[str, Any] = {"n_init": 1}
TINY = 1e-300  # floor of variances: scikit-learn has none
COLLAPSED = (
    "Fitting the mixture model failed because some components have ill-defined empirical covariance (for instance "
    "caused by singleton or collapsed samples)."
)
REMEDY = "Try to decrease the number of components, increase reg_covar, or scale the input data."


class GaussianMixture(DensityMixin, BaseEstimator):
    """A mixture of Gaussians; see `sklearn.mixture.GaussianMixture` for parameters and attributes.

    Args:
        n_components: k.
        covariance_type: "full", "tied", "diag" or "spherical".
        tol: gain of the mean log-likelihood below which EM has converged.
        reg_covar: added to the diagonal of every covariance.
        max_iter: EM steps at most.
        n_init: starts, of which the best is kept.
        init_params: "kmeans", "k-means++", "random" or "random_from_data".
        weights_init, means_init, precisions_init: a start of one's own.
        random_state: of the starts and of samples.
        warm_start: whether `fit` goes on from the last one.
        verbose, verbose_interval: printed reports.

    A component that no row uses any more is split from a heavy one, where scikit-learn's stays at the origin.

    >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> model = GaussianMixture(2, random_state=0).fit(X)
    >>> sorted(model.means_.round(6).tolist()), model.converged_
    ([[1.0, 2.0], [10.0, 2.0]], True)
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions({"full", "tied", "diag", "spherical"})],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions({"kmeans", "random", "random_from_data", "k-means++"})],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self, n_components=1, *, covariance_type="full", tol=1e-3, reg_covar=1e-6, max_iter=100, n_init=1,
        init_params="kmeans", weights_init=None, means_init=None, precisions_init=None, random_state=None,
        warm_start=False, verbose=0, verbose_interval=10,
    ):  # fmt: skip
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    # ---- between attributes and the model ----

    def to_protea(self) -> gmm.GaussianMixture:
        """The fitted model itself: `log_prob` of rows with holes (NaN), `given`, `sample`, further learning."""
        check_is_fitted(self)
        return self._restored(max(self.reg_covar, TINY))

    def _restored(self, floor: float) -> gmm.GaussianMixture:
        model = self._model(self.means_.shape[1], floor)
        model.log_weights.copy_(tensor(self.weights_).log())
        model.means = tensor(self.means_)
        model.family.origin.copy_((model.log_weights.exp() @ model.means[0])[0] / model.log_weights.exp().sum())
        root = tensor(self.precisions_cholesky_)
        model.scale.copy_(_inverse_factor(root) if model.family.dense else 1 / root)
        return model

    def _model(self, d: int, floor: float = TINY) -> gmm.GaussianMixture:
        return gmm.GaussianMixture((d,), self.n_components, self.covariance_type, reg_covar=floor)

    def _read(self, model: gmm.GaussianMixture, dtype: Any) -> None:
        """Attributes from the model."""
        scale = model.scale
        root = _inverse_factor(scale) if model.family.dense else 1 / scale
        self.weights_ = array(model.log_weights[0].exp(), dtype)
        self.means_ = array(model.means[0], dtype)
        self.covariances_ = array(model.family.covariances, dtype)
        self.precisions_cholesky_ = array(root, dtype)
        self.precisions_ = array(root @ root.mT if model.family.dense else root.square(), dtype)

    # ---- learning ----

    def fit(self, X, y=None):
        """Learn by EM from rows X (n, d), from the best of `n_init` starts."""
        self.fit_predict(X, y)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_predict(self, X, y=None):
        """Learn, and say which component each row belongs to, (n,)."""
        X = np.asarray(validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2))
        if len(X) < self.n_components:
            raise InputError(f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                             f"n_samples = {len(X)}.", "Give more rows or fewer components.")  # fmt: skip
        self._check_parameters(X.shape[1])
        x, state = tensor(X), check_random_state(self.random_state)
        fresh = not (self.warm_start and hasattr(self, "converged_"))
        best: gmm.GaussianMixture | None = None
        self.converged_, highest = False, -math.inf
        self.n_iter_, self.lower_bounds_ = 0, []
        for start in range(self.n_init if fresh else 1):
            self._say(f"Initialization {start}")
            model = self._start(X, x, state) if fresh else self._restored(TINY)
            bounds, converged = self._climb(model, x, -math.inf if fresh else self.lower_bound_)
            if best is None or (bounds and (bounds[-1] > highest or highest == -math.inf)):
                best = model
                if bounds:
                    highest, self.n_iter_, self.lower_bounds_ = bounds[-1], len(bounds), bounds
                    self.converged_ = converged
        if not self.converged_ and self.max_iter > 0:
            warnings.warn(
                "Best performing initialization did not converge. Try different init parameters, or increase max_iter, "
                "tol, or check for degenerate data.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.lower_bound_ = highest
        assert best is not None
        self._read(best, X.dtype)
        return self.predict(X)

    def _climb(self, model: gmm.GaussianMixture, x: Tensor, bound: float) -> tuple[list[float], bool]:
        """EM steps until the mean log-likelihood changes by less than `tol`; all of them, and whether it did."""
        bounds: list[float] = []
        began = last = time()
        converged = False
        while len(bounds) < self.max_iter and not converged:
            stats = model.expect(x)
            before, bound = bound, float(stats["log_prob"]) / len(x)
            self._maximise(model, stats)
            bounds.append(bound)
            converged = abs(bound - before) < self.tol
            if len(bounds) % self.verbose_interval == 0:
                now = time()
                self._say(
                    f"  Iteration {len(bounds)}", f"\t time lapse {now - last:.5f}s\t ll change {bound - before:.5f}"
                )
                last = now
        if self.max_iter:
            self._say(f"Initialization {'converged' if converged else 'did not converge'}.",
                      f" time lapse {time() - began:.5f}s\t lower bound {bound:.5f}.")  # fmt: skip
        return bounds, converged

    def _maximise(self, model: gmm.GaussianMixture, stats: Stats) -> None:
        """The M-step, with the ridge."""
        own = {name.removeprefix(PREFIX): value for name, value in stats.items() if name.startswith(PREFIX)}
        self._ridge(model.family, own)
        model.maximise(stats | {PREFIX + name: value for name, value in own.items()})

    def _ridge(self, family: Gaussian, own: Stats) -> None:
        """Add reg_covar to the covariances that the statistics imply.

        Raises:
            InputError: one of them is singular even so.
        """
        kind, n, d = family.kind, own["n"], family.dim
        eye = self.reg_covar * torch.eye(d, dtype=n.dtype)
        own["s2"] = own["s2"] + kind.weight(n, d) * kind.narrow(eye)
        if self.reg_covar > 0:
            return
        live = n > EMPTY
        means = own["s1"][live] / n[live, None]
        scatter = kind.centre(n[live], own["s1"][live], kind.select(own["s2"], live), means)
        sigma = scatter / kind.weight(n[live], d)
        bad = torch.linalg.cholesky_ex(sigma).info != 0 if family.dense else sigma <= 0
        if not bool(live.all()) or bool(bad.any()):
            raise InputError(COLLAPSED, REMEDY)

    # ---- starting ----

    def _start(self, X: np.ndarray, x: Tensor, state: np.random.RandomState) -> gmm.GaussianMixture:
        """An M-step from the responsibilities of a start, then what the user gave."""
        model = self._model(x.shape[1])
        given = (self.weights_init, self.means_init, self.precisions_init)
        if any(part is None for part in given):
            r = tensor(self._responsibilities(X, state))
            own = self._counted(model.family, x, r)
            self._ridge(model.family, own)
            model.family.maximise(own)
            model.family.origin.copy_(x.mean(0))
            model.log_weights.copy_((r.sum(0) / len(x)).log())
        if self.weights_init is not None:
            model.log_weights.copy_(tensor(self.weights_init).log())
        if self.means_init is not None:
            model.means = tensor(self.means_init)
        if self.precisions_init is not None:
            precision = tensor(self.precisions_init)
            model.family.covariances = torch.linalg.inv(precision) if model.family.dense else 1 / precision
        return model

    def _counted(self, family: Gaussian, x: Tensor, r: Tensor) -> Stats:
        """The statistics of a start. A tied covariance counts all rows, even where responsibilities name few, and about
        0: as scikit-learn's does."""
        if family.kind.name != "tied":
            family.origin.copy_(x.mean(0))
            return family.expect(x, r)
        family.origin.zero_()
        own = family.expect(x, r)
        every = r.new_zeros(r.shape)
        every[:, 0] = 1.0
        return own | {"s2": family.expect(x, every)["s2"]} if bool((r.sum(1) < 0.5).any()) else own

    def _responsibilities(self, X: np.ndarray, state: np.random.RandomState) -> np.ndarray:
        """(n, k), by the same draws of the random state as scikit-learn's."""
        n, k = len(X), self.n_components
        if self.init_params == "random":
            r = state.uniform(size=(n, k))
            return r / r.sum(axis=1, keepdims=True)
        r = np.zeros((n, k))
        if self.init_params == "kmeans":
            r[np.arange(n), cluster.KMeans(k, random_state=state, **ONCE).fit(X).labels_] = 1
        elif self.init_params == "random_from_data":
            r[state.choice(n, size=k, replace=False), np.arange(k)] = 1
        else:
            r[cluster.kmeans_plusplus(X, k, random_state=state)[1], np.arange(k)] = 1
        return r

    def _check_parameters(self, d: int) -> None:
        k, kind = self.n_components, self.covariance_type
        if self.weights_init is not None:
            w = self._checked(self.weights_init, (k,), "weights")
            if (w < 0).any() or (w > 1).any():
                raise InputError("The parameter 'weights' should be in the range [0, 1], but got max value "
                                 f"{w.min():.5f}, min value {w.max():.5f}", "")  # fmt: skip
            if not np.isclose(w.sum(), 1.0, rtol=0, atol=1e-6 if w.dtype == np.float32 else 1e-8):
                raise InputError("The parameter 'weights' should be normalized, but got sum(weights) = "
                                 f"{w.sum():.5f}", "")  # fmt: skip
        if self.means_init is not None:
            self._checked(self.means_init, (k, d), "means")
        if self.precisions_init is not None:
            shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[kind]
            p = self._checked(self.precisions_init, shape, f"{kind} precision")
            if kind in ("diag", "spherical"):
                good, wanted = bool((p > 0).all()), "positive"
            else:
                wanted = "symmetric, positive-definite"
                good = np.allclose(p, np.swapaxes(p, -1, -2)) and bool((np.linalg.eigvalsh(p) > 0).all())
            if not good:
                raise InputError(f"'{kind} precision' should be {wanted}", "")

    @staticmethod
    def _checked(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
        floats: Any = [np.float64, np.float32]
        value = check_array(value, dtype=floats, ensure_2d=False, allow_nd=name == "full precision")
        if value.shape != shape:
            raise InputError(f"The parameter '{name}' should have the shape of {shape}, but got {value.shape}", "")
        return value

    def _say(self, message: str, more: str = "") -> None:
        if self.verbose:
            print(message + (more if self.verbose > 1 else ""))

    # ---- what a fitted mixture says ----

    def _validated(self, X: Any) -> tuple[gmm.GaussianMixture, Tensor, Any]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        return self.to_protea(), tensor(X), np.float32 if X.dtype == np.float32 else np.float64

    def score_samples(self, X):
        """log p(x) of every row in nats, (n,)."""
        model, x, dtype = self._validated(X)
        return array(model.log_prob(x), dtype)

    def score(self, X, y=None):
        """The mean log-likelihood of a row."""
        return float(self.score_samples(X).mean())

    def predict_proba(self, X):
        """p(component | x), (n, k)."""
        model, x, dtype = self._validated(X)
        return array(model.responsibilities(x)[:, 0], dtype)

    def predict(self, X):
        """The most probable component of every row, (n,)."""
        model, x, _ = self._validated(X)
        return array(model.responsibilities(x)[:, 0].argmax(1), np.int64)

    def sample(self, n_samples=1):
        """Rows (n, d) and their components (n,), component by component."""
        check_is_fitted(self)
        if n_samples < 1:
            raise InputError(f"Invalid value for 'n_samples': {n_samples} .", "Sampling takes at least one sample.")
        state = check_random_state(self.random_state)
        y = np.repeat(np.arange(self.n_components), state.multinomial(n_samples, self.weights_))
        x = self.to_protea().family.draw(Streams(seed_of(state), n_samples), tensor(y, np.int64))
        return array(x), y

    def _n_parameters(self) -> int:
        return self._model(self.means_.shape[1]).free_parameters()

    def bic(self, X):
        """Bayesian information criterion: lower is better."""
        return self._n_parameters() * math.log(len(X)) - 2 * self.score(X) * len(X)

    def aic(self, X):
        """Akaike's information criterion: lower is better."""
        return 2 * self._n_parameters() - 2 * self.score(X) * len(X)


def _inverse_factor(root: Tensor) -> Tensor:
    """L^-T of a lower triangular L, or L of an upper triangular L^-T; (..., d, d)."""
    upper = bool((root.triu(1) != 0).any())
    eye = torch.eye(root.shape[-1], dtype=root.dtype).expand(root.shape)
    return torch.linalg.solve_triangular(root, eye, upper=upper).mT
