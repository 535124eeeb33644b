"""Hidden Markov models follow hmmlearn's scores, posteriors, Viterbi paths and Baum-Welch iterates, its priors off."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protea.distributions.categorical import Categorical
from protea.distributions.gaussian import Gaussian
from protea.distributions.nested import Nested
from protea.distributions.poisson import Poisson
from protea.models.markov.chain import Chain
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.topology import ergodic

hmm = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn, the reference, is not installed")
ConvergenceMonitor = pytest.importorskip("hmmlearn.base").ConvergenceMonitor
logging.getLogger("hmmlearn").setLevel(logging.ERROR)
LENGTHS, K = [40, 7, 1, 33, 60], 3
T, N = max(LENGTHS), sum(LENGTHS)


def padded(x: np.ndarray) -> Tensor:
    """hmmlearn's concatenated rows as (B, T, ...), NaN beyond the ends."""
    out = torch.full((len(LENGTHS), T, *x.shape[1:]), float("nan"), dtype=torch.float64)
    for b, part in enumerate(np.split(x, np.cumsum(LENGTHS)[:-1])):
        out[b, : len(part)] = torch.from_numpy(part.astype(float))
    return out


def joined(x: Tensor) -> np.ndarray:
    return np.concatenate([row[:n].numpy() for row, n in zip(x, LENGTHS)])


def stochastic(rng: np.random.Generator, *shape: int) -> np.ndarray:
    p = rng.random(shape) + 0.1
    return p / p.sum(-1, keepdims=True)


def categorical(rng: np.random.Generator) -> tuple[Any, HiddenMarkov, np.ndarray, Callable]:
    x = rng.integers(0, 5, N)
    peer = hmm.CategoricalHMM(K, n_features=5, init_params="")
    peer.emissionprob_ = stochastic(rng, K, 5)
    ours = HiddenMarkov(Categorical(K, 5), Chain(ergodic(K)), T)
    ours.emission.probabilities = torch.from_numpy(peer.emissionprob_)[:, None]
    return peer, ours, x[:, None], lambda p, o: [(p.emissionprob_, o.emission.probabilities[:, 0])]


def poisson(rng: np.random.Generator) -> tuple[Any, HiddenMarkov, np.ndarray, Callable]:
    x = rng.poisson(rng.choice([2.0, 6.0, 12.0], (N, 1)), (N, 2))
    peer = hmm.PoissonHMM(K, init_params="", lambdas_prior=0.0, lambdas_weight=0.0)
    peer.lambdas_ = rng.random((K, 2)) * 8 + 1
    ours = HiddenMarkov(Poisson(K, (2,)), Chain(ergodic(K)), T)
    ours.emission.rates = torch.from_numpy(peer.lambdas_)
    return peer, ours, x, lambda p, o: [(p.lambdas_, o.emission.rates)]


def spd(rng: np.random.Generator, *shape: int) -> np.ndarray:
    a = rng.normal(size=(*shape, 2, 2))
    return a @ np.swapaxes(a, -1, -2) + 0.5 * np.eye(2)


def scales(rng: np.random.Generator, kind: str, *shape: int) -> np.ndarray:
    if kind in ("full", "tied"):
        return spd(rng, *shape[: None if kind == "full" else -1])
    return rng.random((*shape, 2) if kind == "diag" else shape) + 0.5


def gaussian(kind: str) -> Callable:
    def build(rng: np.random.Generator) -> tuple[Any, HiddenMarkov, np.ndarray, Callable]:
        x = rng.normal(size=(N, 2)) + 2 * rng.normal(size=(4, 2))[rng.integers(4, size=N)]
        peer = hmm.GaussianHMM(K, kind, init_params="", covars_prior=0.0, covars_weight=0.0, min_covar=0.0)
        peer.means_, covars = rng.normal(size=(K, 2)), scales(rng, kind, K)
        peer.covars_ = covars
        ours = HiddenMarkov(Gaussian(K, (2,), kind), Chain(ergodic(K)), T)
        ours.emission.means.copy_(torch.from_numpy(peer.means_))
        ours.emission.covariances = torch.from_numpy(covars)

        def pairs(p: Any, o: HiddenMarkov) -> list:
            covars = np.asarray(p._covars_)
            covars = covars.reshape(K, -1)[:, 0] if kind == "spherical" else covars
            return [(p.means_, o.emission.means), (covars, o.emission.covariances)]

        return peer, ours, x, pairs

    return build


def gmm(kind: str) -> Callable:
    def build(rng: np.random.Generator) -> tuple[Any, HiddenMarkov, np.ndarray, Callable]:
        m = 2
        x = rng.normal(size=(N, 2)) + 2 * rng.normal(size=(6, 2))[rng.integers(6, size=N)]
        # Its default covariance priors are improper ones that add nothing for "full", "diag" and "spherical".
        peer = hmm.GMMHMM(K, m, covariance_type=kind, init_params="", min_covar=0.0)
        peer.weights_, peer.means_ = stochastic(rng, K, m), 2 * rng.normal(size=(K, m, 2))
        covars = scales(rng, kind, K, m)
        peer.covars_ = covars
        ours = HiddenMarkov(Nested(Gaussian(K * m, (2,), kind), K), Chain(ergodic(K)), T)
        ours.emission.weights = torch.from_numpy(peer.weights_)
        ours.emission.inner.means.copy_(torch.from_numpy(peer.means_).flatten(0, 1))
        ours.emission.inner.covariances = torch.from_numpy(covars).flatten(0, 1)
        return peer, ours, x, lambda p, o: [
            (p.weights_, o.emission.weights), (p.means_, o.emission.inner.means.view(K, m, 2)),
            (p.covars_, o.emission.inner.covariances.view(p.covars_.shape)),
        ]  # fmt: skip

    return build


CASES = {
    "CategoricalHMM": categorical, "PoissonHMM": poisson,
    **{f"GaussianHMM {kind}": gaussian(kind) for kind in ("diag", "full", "tied", "spherical")},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_same_start_same_iterates(name: str, evidence):
    rng = np.random.default_rng(0)
    peer, ours, rows, pairs = CASES[name](rng)
    peer.startprob_, peer.transmat_ = stochastic(rng, K), stochastic(rng, K, K)
    ours.start, ours.transition = torch.from_numpy(peer.startprob_), torch.from_numpy(peer.transmat_)
    x, lengths = padded(rows), torch.tensor(LENGTHS)
    if rows.shape[1] == 1:
        x = x[..., 0]

    def errors() -> dict[str, float]:
        score, posterior = peer.score_samples(rows, LENGTHS)
        best, path = peer.decode(rows, LENGTHS, algorithm="viterbi")
        mine, log_p = ours.decode(x, lengths=lengths)
        assert float((joined(mine) == path).mean()) > 0.97  # some paths are equally probable
        found = {
            "score": abs(float(ours.log_prob(x, lengths=lengths).sum()) - score),
            "posterior": np.abs(joined(ours.posterior(x, lengths=lengths)) - posterior).max(),
            "Viterbi": abs(float(log_p.sum()) - best),
            "start": np.abs(ours.start.numpy() - peer.startprob_).max(),
            "transition": np.abs(ours.transition.numpy() - peer.transmat_).max(),
        }
        for i, (want, got) in enumerate(pairs(peer, ours)):
            found[f"emission {i}"] = np.abs(got.numpy() - want).max() / max(1, np.abs(want).max())
        return found

    start = errors()
    evidence(
        id="TR-10", system="Hidden Markov model", claim=f"{name}: score, posteriors, Viterbi",
        reference=f"hmmlearn.hmm.{name}", reached=max(start.values()), tolerance=1e-8, unit="max abs",
    )  # fmt: skip
    for steps, total in ((1, 1), (19, 20)):
        peer.n_iter, peer.monitor_ = steps, ConvergenceMonitor(-np.inf, steps, False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.fit(rows, LENGTHS)
        for _ in range(steps):
            ours.maximise(ours.expect(x, lengths=lengths))
        after = errors()
        evidence(
            id="TR-12", system="Baum-Welch", claim=f"{name}: parameters and scores after {total} EM steps",
            reference=f"hmmlearn.hmm.{name}.fit, priors off", reached=max(after.values()), tolerance=1e-8,
            unit="max abs",
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["diag", "full"])
def test_a_step_of_mixtures_of_gaussians(kind: str, evidence):
    """hmmlearn takes second moments about the means before the step, so its covariances are ours plus the square of
    the means' movement (its step is no maximiser, and later iterates part)."""
    rng = np.random.default_rng(0)
    peer, ours, rows, pairs = gmm(kind)(rng)
    peer.startprob_, peer.transmat_ = stochastic(rng, K), stochastic(rng, K, K)
    ours.start, ours.transition = torch.from_numpy(peer.startprob_), torch.from_numpy(peer.transmat_)
    x, lengths = padded(rows), torch.tensor(LENGTHS)
    score, posterior = peer.score_samples(rows, LENGTHS)
    best, path = peer.decode(rows, LENGTHS)
    mine, log_p = ours.decode(x, lengths=lengths)
    assert (joined(mine) == path).all()
    errors = [
        abs(float(ours.log_prob(x, lengths=lengths).sum()) - score), abs(float(log_p.sum()) - best),
        np.abs(joined(ours.posterior(x, lengths=lengths)) - posterior).max(),
    ]  # fmt: skip
    before = peer.means_.copy()
    peer.n_iter, peer.monitor_ = 1, ConvergenceMonitor(-np.inf, 1, False)
    peer.fit(rows, LENGTHS)
    ours.maximise(ours.expect(x, lengths=lengths))
    (w, w_), (m, m_), (c, c_) = [(a, b.numpy()) for a, b in pairs(peer, ours)]
    moved = m - before
    square = moved**2 if kind == "diag" else moved[..., :, None] * moved[..., None, :]
    errors += [np.abs(w - w_).max(), np.abs(m - m_).max(), np.abs(c - square - c_).max()]
    errors.append(np.abs(ours.transition.numpy() - peer.transmat_).max())
    errors.append(np.abs(ours.start.numpy() - peer.startprob_).max())
    evidence(
        id="TR-10", system="Hidden Markov model", claim=f"mixtures of Gaussians, {kind}: scores, Viterbi, one EM step",
        reference="hmmlearn.hmm.GMMHMM", reached=max(errors), tolerance=1e-8, unit="max abs",
    )  # fmt: skip


def test_score_of_ten_thousand_steps(evidence):
    rng = np.random.default_rng(1)
    peer = hmm.CategoricalHMM(4, n_features=6, init_params="")
    peer.startprob_, peer.transmat_, peer.emissionprob_ = (
        stochastic(rng, 4), stochastic(rng, 4, 4), stochastic(rng, 4, 6),
    )  # fmt: skip
    x = rng.integers(0, 6, 10_000)
    ours = HiddenMarkov(Categorical(4, 6), Chain(ergodic(4)), 10_000)
    ours.start, ours.transition = torch.from_numpy(peer.startprob_), torch.from_numpy(peer.transmat_)
    ours.emission.probabilities = torch.from_numpy(peer.emissionprob_)[:, None]
    gap = abs(float(ours.log_prob(torch.from_numpy(x)[None])) - peer.score(x[:, None]))
    evidence(
        id="TR-10", system="Hidden Markov model", claim="score of one sequence of 10,000 steps, by blocks",
        reference="hmmlearn.hmm.CategoricalHMM", reached=gap, tolerance=1e-6, unit="nats",
    )  # fmt: skip
