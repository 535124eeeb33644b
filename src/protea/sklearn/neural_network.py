r"""The restricted Boltzmann machine of binary units with scikit-learn's names, learnt by `RBM` and `Contrast`.

    E(v, h) = -v . b - h . c - h . W v,        W <- W + rate (<h v>_batch - <h v>_chains),  likewise b and c

with `batch_size` chains that go on from step to step (stochastic maximum likelihood). Rows in [0, 1] are taken as
means. Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient".
"""

from __future__ import annotations

import time
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_random_state, gen_even_slices
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from protea.core import Batch
from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial
from protea.objectives.contrastive_divergence import PersistentChains
from protea.rng import Streams
from protea.sklearn.base import array, dense, seed_of, tensor
from protea.training.contrast import Contrast


class BernoulliRBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A restricted Boltzmann machine; see `sklearn.neural_network.BernoulliRBM` for parameters and attributes.

    Args:
        n_components: hidden units.
        learning_rate: of the ascent.
        batch_size: rows of a step, and chains of the negative phase.
        n_iter: passes over the rows.
        verbose: whether each pass is reported.
        random_state: of the first weights, the chains and `score_samples`.

    >>> X = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
    >>> BernoulliRBM(n_components=2, random_state=0).fit(X).transform(X).shape
    (4, 2)
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "n_iter": [Interval(Integral, 0, None, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(self, n_components=256, *, learning_rate=0.1, batch_size=10, n_iter=10, verbose=0, random_state=None):
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.verbose = verbose
        self.random_state = random_state

    # ---- between attributes and the model ----

    def to_protea(self) -> RBM:
        """The fitted model itself: its partition function, samples, completions, further learning."""
        check_is_fitted(self)
        hidden, visible = self.components_.shape
        dtype = torch.float32 if self.components_.dtype == np.float32 else torch.float64
        model = RBM((visible,), Binomial(visible, hidden)).to(dtype)
        with torch.no_grad():
            model.visible.weight.copy_(tensor(self.components_).T)
            model.visible.bias.copy_(tensor(self.intercept_visible_))
            model.bias.copy_(tensor(self.intercept_hidden_))
        return model

    def _begin(self, d: int, dtype: Any, state: np.random.RandomState) -> None:
        """scikit-learn's first weights, by the same draws."""
        self.components_ = np.asarray(state.normal(0, 0.01, (self.n_components, d)), order="F", dtype=dtype)
        self._n_features_out = self.n_components
        self.intercept_hidden_ = np.zeros(self.n_components, dtype)
        self.intercept_visible_ = np.zeros(d, dtype)
        self.h_samples_ = np.zeros((self.batch_size, self.n_components), dtype)

    def _learner(self) -> Contrast:
        chains = PersistentChains(len(self.h_samples_))
        model = self.to_protea()
        chains.chains = {"h": tensor(self.h_samples_).to(model.bias)}
        return Contrast(
            model,
            chains,
            rate=self.learning_rate,
            momentum=0.0,
            decay=0.0,
            centre=None,
            schedule=lambda step, horizon: 1.0,
            ema=None,
        )

    def _read(self, learner: Contrast) -> None:
        """Attributes from the model and its chains."""
        model, dtype = learner.model, self.components_.dtype
        assert isinstance(model, RBM)
        chains = learner.negative.state()
        self.components_ = np.asfortranarray(array(model.visible.weight.T, dtype))
        self.intercept_visible_ = array(model.visible.bias, dtype)
        self.intercept_hidden_ = array(model.bias, dtype)
        self.h_samples_ = array(chains["h"], dtype)

    # ---- learning ----

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Learn from rows X (n, d) of values in [0, 1]."""
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32))
        n, state = X.shape[0], check_random_state(self.random_state)
        self._begin(X.shape[1], X.dtype, state)
        count = int(np.ceil(n / self.batch_size))
        slices = list(gen_even_slices(count * self.batch_size, count, n_samples=n))
        learner, seed, step = self._learner(), seed_of(state), 0
        for iteration in range(1, self.n_iter + 1):
            began = time.time()
            for part in slices:
                learner.step(_batch(X[part], seed + step))
                step += 1
            if self.verbose:
                self._read(learner)
                print(
                    f"[{type(self).__name__}] Iteration {iteration}, pseudo-likelihood = "
                    f"{self.score_samples(X).mean():.2f}, time = {time.time() - began:.2f}s"
                )
        self._read(learner)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        """One step of learning from rows X (n, d)."""
        first = not hasattr(self, "components_")
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=first)
        if not hasattr(self, "random_state_"):
            self.random_state_ = check_random_state(self.random_state)
        if first:
            self._begin(X.shape[1], np.float64, self.random_state_)
        learner = self._learner()
        learner.step(_batch(X, seed_of(self.random_state_)))
        self._read(learner)
        return self

    # ---- what a fitted machine says ----

    def transform(self, X):
        """p(h_j = 1 | v), (n, n_components)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", reset=False, dtype=(np.float64, np.float32))
        return self._mean_hiddens(X)

    def _mean_hiddens(self, v: Any) -> np.ndarray:
        model = self.to_protea()
        with torch.no_grad():
            return array(torch.cat([model.hidden(x) for _, x in dense(v)]), v.dtype)

    def gibbs(self, v):
        """One step of Gibbs sampling, v -> h -> v; boolean (n, d)."""
        check_is_fitted(self)
        if not hasattr(self, "random_state_"):
            self.random_state_ = check_random_state(self.random_state)
        x = torch.cat([part for _, part in dense(v if sparse.issparse(v) else np.asarray(v))])
        model, rng = self.to_protea(), Streams(seed_of(self.random_state_), len(x))
        with torch.no_grad():
            state = model.machine.awaken(model.infer(model.flat(x), None, rng), rng)
            return array(model.machine.sweep(state, rng)["visible"], bool)

    def score_samples(self, X):
        """The pseudo-likelihood of every row: d log p(v_i | v_-i) of one entry drawn by `random_state`, (n,)."""
        check_is_fitted(self)
        v = validate_data(self, X, accept_sparse="csr", reset=False)
        model = self.to_protea().double()
        rng = Streams(seed_of(check_random_state(self.random_state)), v.shape[0])
        with torch.no_grad():
            return array(torch.cat([model.pseudo_log_likelihood(x, rng.take(part)) for part, x in dense(v)]))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _batch(rows: Any, seed: int) -> Batch:
    x: Tensor = tensor(rows.toarray() if sparse.issparse(rows) else rows)
    return Batch(x, None, Streams(seed, len(x)))
