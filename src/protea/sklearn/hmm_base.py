r"""What the hidden Markov models with hmmlearn's names share: the chain, its scan over time, and the loop of EM.

    startprob_ = (n_k + prior - 1)_+ / sum,      transmat_ = (n_ij + prior - 1)_+ / sum_j

Sequences come joined as one array of rows, with their `lengths`. Densities, posteriors, paths and expected counts are
those of `models.markov.hmm.HiddenMarkov`; a Dirichlet prior enters its M-step as pseudo-counts. Probabilities of zero
stay zero, and a state that is never left keeps its row of transitions (hmmlearn's becomes zero, and then invalid).

Rabiner 1989, "A tutorial on hidden Markov models and selected applications in speech recognition".
"""

from __future__ import annotations

import logging
import math
import string
import sys
from collections import deque
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from protea.core import Stats
from protea.distributions.family import Family
from protea.models.markov.chain import Chain
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.topology import ergodic
from protea.rng import Streams
from protea.sklearn.base import InputError, array, explained, seed_of, tensor

DECODER_ALGORITHMS = frozenset(("viterbi", "map"))
TEN_STARTS: dict[str, Any] = {"n_init": 10}  # of k-means, as hmmlearn makes
EMISSION = "emission/"  # prefix of the emissions' statistics
log = logging.getLogger(__name__)


class ConvergenceMonitor:
    """The log-likelihoods of the last iterations, and whether they have settled.

    Args:
        tol: gain below which EM has converged.
        n_iter: iterations at most.
        verbose: whether each is printed to standard error.

    >>> monitor = ConvergenceMonitor(0.1, 10, False)
    >>> monitor.report(-2.0), monitor.report(-1.95), monitor.converged
    (None, None, True)
    """

    _template = "{iter:>10d} {log_prob:>16.8f} {delta:>+16.8f}"

    def __init__(self, tol: float, n_iter: int, verbose: bool) -> None:
        self.tol, self.n_iter, self.verbose = tol, n_iter, verbose
        self.history: deque[float] = deque()
        self.iter = 0

    def __repr__(self) -> str:
        shown = dict(vars(self), history=list(self.history))
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in sorted(shown.items()))})"

    def _reset(self) -> None:
        self.iter = 0
        self.history.clear()

    def report(self, log_prob: float) -> None:
        """Take note of an iteration."""
        delta = log_prob - self.history[-1] if self.history else math.nan
        if self.verbose:
            print(self._template.format(iter=self.iter + 1, log_prob=log_prob, delta=delta), file=sys.stderr)
        if delta < -math.sqrt(np.finfo(float).eps):
            log.warning("Model is not converging. Current: %s is not greater than %s. Delta is %s",
                        log_prob, self.history[-1], delta)  # fmt: skip
        self.history.append(log_prob)
        self.iter += 1

    @property
    def converged(self) -> bool:
        """Whether the iterations are spent, or the last one gained less than `tol`."""
        settled = len(self.history) >= 2 and self.history[-1] - self.history[-2] < self.tol
        return self.iter == self.n_iter or settled


class BaseHMM(BaseEstimator):
    """A chain of states; what they emit is a subclass's, which gives `_family` and learns its parameters."""

    def __init__(
        self, n_components=1, startprob_prior=1.0, transmat_prior=1.0, algorithm="viterbi", random_state=None,
        n_iter=10, tol=1e-2, verbose=False, params=string.ascii_letters, init_params=string.ascii_letters,
        implementation="log",
    ):  # fmt: skip
        self.n_components = n_components
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.algorithm = algorithm
        self.random_state = random_state
        self.n_iter = n_iter
        self.tol = tol
        self.verbose = verbose
        self.params = params
        self.init_params = init_params
        self.implementation = implementation
        self.monitor_ = ConvergenceMonitor(self.tol, self.n_iter, self.verbose)

    # ---- what a subclass gives ----

    def _family(self) -> Family:
        """The emissions, from the attributes."""
        raise NotImplementedError("A subclass says what its states emit.")

    def _learn(self, family: Family, stats: Stats) -> None:
        """The M-step of the emissions."""
        raise NotImplementedError

    def _read(self, family: Family) -> None:
        """The emissions' attributes, from the family."""
        raise NotImplementedError

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        """Free parameters by the letter of `params`."""
        raise NotImplementedError

    def _observations(self, X: np.ndarray) -> Tensor:
        """Rows (n, columns) as the family's observations (n, *event)."""
        return tensor(X)

    # ---- between attributes and the model ----

    def to_protea(self, steps: int = 1) -> HiddenMarkov:
        """The fitted model itself, of sequences of up to `steps`: missing entries, `given`, gradients, batches."""
        check_is_fitted(self, "startprob_")
        self._check()
        return self._model(steps)

    def _model(self, steps: int) -> HiddenMarkov:
        k = self.n_components
        p = torch.zeros(k + 1, k + 1, dtype=torch.float64)
        p[0, :-1], p[1:, :-1] = tensor(self.startprob_), tensor(self.transmat_)
        chain = Chain(ergodic(k))
        with explained():
            chain.probabilities = p / p.sum(1, keepdim=True)
            return HiddenMarkov(self._family(), chain, steps)

    def _sequences(self, X: np.ndarray, lengths: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Rows as padded sequences (B, T, *event), their lengths (B,), and which steps are theirs (B, T)."""
        rows = self._observations(X)
        counts = torch.tensor([len(X)]) if lengths is None else tensor(np.atleast_1d(lengths), np.int64)
        if int(counts.sum()) != len(X):
            raise InputError(f"lengths array {lengths} doesn't sum to {len(X)} samples", "Give one length a sequence.")
        own = torch.arange(max(int(counts.max()), 1)) < counts[:, None]
        if len(counts) == 1:
            return rows[None], counts, own
        x = rows.new_zeros(*own.shape, *rows.shape[1:])
        x[own] = rows
        return x, counts, own

    # ---- scores, posteriors and paths ----

    def _prepared(self, X: Any, lengths: Any) -> tuple[HiddenMarkov, Tensor, Tensor, Tensor]:
        check_is_fitted(self, "startprob_")
        self._check()
        if self.implementation not in ("log", "scaling"):
            raise InputError(f"There is no implementation {self.implementation!r}.", 'Use "log" or "scaling".')
        x, counts, own = self._sequences(check_array(X), lengths)
        return self._model(x.shape[1]), x, counts, own

    def score(self, X, lengths=None):
        """log p(X) of all sequences, in nats."""
        model, x, counts, _ = self._prepared(X, lengths)
        with explained():
            return float(model.log_prob(x, lengths=counts).sum())

    def score_samples(self, X, lengths=None):
        """log p(X), and the posterior of each row's state (n, n_components)."""
        model, x, counts, own = self._prepared(X, lengths)
        with explained():
            log_p = float(model.log_prob(x, lengths=counts).sum())
            return log_p, array(model.posterior(x, lengths=counts)[own])

    def predict_proba(self, X, lengths=None):
        """The posterior of each row's state, (n, n_components)."""
        return self.score_samples(X, lengths)[1]

    def decode(self, X, lengths=None, algorithm=None):
        """The most probable path by "viterbi", or each row's most probable state by "map", and its log-probability.

        Of "map" the figure is hmmlearn's: the sum of the rows' largest posteriors.
        """
        algorithm = algorithm or self.algorithm
        if algorithm not in DECODER_ALGORITHMS:
            raise InputError(f"Unknown decoder {algorithm!r}", f"Known: {', '.join(sorted(DECODER_ALGORITHMS))}.")
        if algorithm == "map":
            posterior = self.predict_proba(X, lengths)
            return float(posterior.max(axis=1).sum()), posterior.argmax(axis=1)
        model, x, counts, own = self._prepared(X, lengths)
        with explained():
            path, log_p = model.decode(x, lengths=counts)
        return float(log_p.sum()), array(path[own], np.int64)

    def predict(self, X, lengths=None):
        """The states of the path that `decode` finds, (n,)."""
        return self.decode(X, lengths)[1]

    def sample(self, n_samples=1, random_state=None, currstate=None):
        """Rows (n, columns) of one sequence and their states (n,), from state `currstate` on if that is given."""
        model = self.to_protea(n_samples)
        if currstate is not None:
            model.start = torch.eye(self.n_components, dtype=torch.float64)[currstate]
        state = check_random_state(self.random_state if random_state is None else random_state)
        seed = seed_of(state)
        x = model.draw(Streams(seed, 1))[0].reshape(n_samples, -1)
        states = model._draw_states(Streams(seed, 1))[0]
        return array(x, np.float64 if x.is_floating_point() else np.int64), array(states, np.int64)

    def get_stationary_distribution(self):
        """The distribution over states that a step of the chain leaves as it is, (n_components,)."""
        check_is_fitted(self, "transmat_")
        a = tensor(self.transmat_).T
        value, vector = torch.linalg.eig(a)
        found = vector[:, value.real.argmax()].real
        return array(found / found.sum())

    # ---- learning ----

    def fit(self, X, lengths=None):
        """Learn by EM from rows X (n, columns) of sequences of these lengths."""
        X = check_array(X)
        self._init(X, np.asarray([len(X)]) if lengths is None else lengths)
        self._check()
        self.monitor_._reset()
        x, counts, _ = self._sequences(X, lengths)
        model = self._model(x.shape[1])
        for _ in range(self.n_iter):
            with explained():
                stats = model.expect(x, lengths=counts)
                self._maximise(model, stats)
            self.monitor_.report(float(stats["log_prob"]))
            if self.monitor_.converged:
                break
        return self

    @torch.no_grad()
    def _maximise(self, model: HiddenMarkov, stats: Stats) -> None:
        p = model.chain.probabilities
        n = stats["chain"].clone()
        n[0, :-1] += tensor(np.broadcast_to(self.startprob_prior, n[0, :-1].shape)) - 1
        n[1:, :-1] += tensor(np.broadcast_to(self.transmat_prior, n[1:, :-1].shape)) - 1
        n = torch.where(p > 0, n.clamp(min=0), 0.0)
        n[:1] = n[:1] if "s" in self.params else p[:1]
        n[1:] = n[1:] if "t" in self.params else p[1:]
        model.chain.maximise(n)
        if "s" in self.params:
            self.startprob_ = array(model.start)
        if "t" in self.params:
            self.transmat_ = array(model.transition)
        own = {name.removeprefix(EMISSION): v for name, v in stats.items() if name.startswith(EMISSION)}
        self._learn(model.emission, own)
        self._read(model.emission)

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        """Starting parameters, by the same draws of the random state as hmmlearn's."""
        self._check_and_set_n_features(X)
        k, state = self.n_components, check_random_state(self.random_state)
        if self._needs_init("s", "startprob_"):
            self.startprob_ = state.dirichlet(np.full(k, 1 / k))
        if self._needs_init("t", "transmat_"):
            self.transmat_ = state.dirichlet(np.full(k, 1 / k), size=k)
        free = sum(self._get_n_fit_scalars_per_param()[letter] for letter in self.params)
        if X.size < free:
            log.warning("Fitting a model with %d free scalar parameters with only %d data points will result in a "
                        "degenerate solution.", free, X.size)  # fmt: skip

    def _needs_init(self, letter: str, name: str) -> bool:
        if letter in self.init_params and hasattr(self, name):
            log.warning("Even though the %r attribute is set, it will be overwritten during initialization because "
                        "'init_params' contains %r", name, letter)  # fmt: skip
        return letter in self.init_params or not hasattr(self, name)

    def _check_and_set_n_features(self, X: np.ndarray) -> None:
        if getattr(self, "n_features", X.shape[1]) != X.shape[1]:
            raise InputError(f"Unexpected number of dimensions, got {X.shape[1]} but expected {self.n_features}", "")
        self.n_features = X.shape[1]

    def _check(self) -> None:
        """Validate the parameters."""
        k = self.n_components
        for name, shape in (("startprob_", (k,)), ("transmat_", (k, k))):
            setattr(self, name, np.asarray(getattr(self, name)))
            self._check_distribution(name, shape)

    def _check_distribution(self, name: str, shape: tuple[int, ...]) -> None:
        value = getattr(self, name)
        if value.shape != shape:
            raise InputError(f"{name} must have shape {shape}, and has {value.shape}.", "")
        if not np.allclose(value.sum(axis=-1), 1) or (value < 0).any():
            raise InputError(f"{name} must sum to 1 (got {value.sum(axis=-1)})", "Divide it by its sum.")

    def aic(self, X, lengths=None):
        """Akaike's information criterion: lower is better."""
        return 2 * sum(self._get_n_fit_scalars_per_param().values()) - 2 * self.score(X, lengths)

    def bic(self, X, lengths=None):
        """Bayesian information criterion: lower is better."""
        free = sum(self._get_n_fit_scalars_per_param().values())
        return free * math.log(len(X)) - 2 * self.score(X, lengths)
