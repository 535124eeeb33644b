"""Baum-Welch, score and Viterbi beside hmmlearn (both implementations) and pomegranate, 200 sequences of 500 steps.

16 states, 8 features (or 32 symbols), the same start for all; likelihoods are checked to agree. Each timing is of three
calls, ours and the peer's in turn, seven rounds. What limits us is written at the end by the profiler: the time of one
iteration's largest operations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from harness import compare, save, several
from torch.profiler import ProfilerActivity, profile

from protea.distributions.categorical import Categorical
from protea.distributions.gaussian import Gaussian
from protea.models.markov.chain import Chain
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.topology import ergodic

B, T, K, D, V = 200, 500, 16, 8, 32
CALLS, ROUNDS = 3, 7


def stochastic(rng: np.random.Generator, *shape: int) -> np.ndarray:
    p = rng.random(shape) + 0.1
    return p / p.sum(-1, keepdims=True)


def peers(kind: str, start: tuple[np.ndarray, ...], implementation: str):
    from hmmlearn import hmm

    if kind == "gaussian":
        peer = hmm.GaussianHMM(K, "diag", n_iter=1, init_params="", implementation=implementation, covars_prior=0,
                               covars_weight=0, min_covar=0)  # fmt: skip
        peer.means_, peer.covars_ = start[2], start[3]
    else:
        peer = hmm.CategoricalHMM(K, n_features=V, n_iter=1, init_params="", implementation=implementation)
        peer.emissionprob_ = start[2]
    peer.startprob_, peer.transmat_ = start[0], start[1]
    return peer


def ours_of(kind: str, start: tuple[np.ndarray, ...], precision: torch.dtype) -> HiddenMarkov:
    family = Gaussian(K, (D,), "diag") if kind == "gaussian" else Categorical(K, V)
    model = HiddenMarkov(family, Chain(ergodic(K)), T, precision=precision)
    model.start, model.transition = torch.from_numpy(start[0]), torch.from_numpy(start[1])
    if isinstance(family, Gaussian):
        family.means.copy_(torch.from_numpy(start[2]))
        family.covariances = torch.from_numpy(start[3])
    else:
        family.probabilities = torch.from_numpy(start[2])[:, None]
    if precision == torch.float32:
        model.emission.float()
    return model


def pomegranate_of(start: tuple[np.ndarray, ...]):
    from pomegranate.distributions import Normal
    from pomegranate.hmm import DenseHMM

    pi, a, means, covs = (torch.from_numpy(v).float() for v in start)
    emissions = [Normal(m, c, covariance_type="diag") for m, c in zip(means, covs)]
    return DenseHMM(emissions, a, pi)


def pairwise(name: str, ours: Callable[[], object], peer: Callable[[], object], rounds: int = ROUNDS) -> dict:
    return compare(name, several(ours, CALLS), several(peer, CALLS), rounds=rounds, note=f"{CALLS} calls a timing")


def of_kind(kind: str, rng: np.random.Generator) -> list[dict]:
    pi, a = stochastic(rng, K), stochastic(rng, K, K)
    if kind == "gaussian":
        start = (pi, a, 2 * rng.normal(size=(K, D)), rng.random((K, D)) + 0.5)
        flat = rng.normal(size=(B * T, D)) + 2 * rng.normal(size=(K, D))[rng.integers(K, size=B * T)]
        x = torch.from_numpy(flat).view(B, T, D)
    else:
        start = (pi, a, stochastic(rng, K, V))
        flat = rng.integers(V, size=(B * T, 1))
        x = torch.from_numpy(flat).view(B, T)
    lengths, rows = [T] * B, []
    log, scaling = (peers(kind, start, name) for name in ("log", "scaling"))
    double, single = (ours_of(kind, start, p) for p in (torch.float64, torch.float32))
    gap = abs(float(double.log_prob(x).sum()) / log.score(flat, lengths) - 1)
    assert gap < 1e-10, f"likelihoods differ by {gap:g}"

    def step(model: HiddenMarkov) -> Callable[[], None]:
        return lambda: model.maximise(model.expect(x))

    for name, model, peer in (
        ("float64, hmmlearn log", double, log), ("float64, hmmlearn scaling", double, scaling),
        ("float32, hmmlearn log", single, log),
    ):  # fmt: skip
        fit = partial(peer.fit, flat, lengths)
        rows.append(pairwise(f"{kind}: EM iteration, {name}", step(model), fit))
    score, path = partial(log.score, flat, lengths), partial(log.decode, flat, lengths)
    rows.append(pairwise(f"{kind}: score, hmmlearn log", lambda: double.log_prob(x), score))
    rows.append(pairwise(f"{kind}: Viterbi, hmmlearn", lambda: double.decode(x), path))
    if kind == "gaussian":
        try:
            peer = pomegranate_of(start)
            peer.summarize(x.float()[:2])
        except Exception as reason:  # an installed but broken peer must not stop the others
            print(f"pomegranate is left out: {reason}")
        else:
            peer = pomegranate_of(start)

            def summarised() -> None:
                peer.summarize(x.float())
                peer.from_summaries()

            rows.append(pairwise("gaussian: EM iteration, pomegranate (float32)", step(single), summarised, rounds=3))
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            step(double)()
        print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=30))
    return rows


def main() -> None:
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    rng = np.random.default_rng(0)
    rows = [row for kind in ("gaussian", "categorical") for row in of_kind(kind, rng)]
    one = torch.randint(V, (1, 100_000))
    model = HiddenMarkov(Categorical(4, V), Chain(ergodic(4)), 100_000)
    peer = peers("categorical", (stochastic(rng, K), stochastic(rng, K, K), stochastic(rng, K, V)), "log")
    peer.n_components, peer.startprob_, peer.transmat_ = 4, stochastic(rng, 4), stochastic(rng, 4, 4)
    peer.emissionprob_ = stochastic(rng, 4, V)
    rows.append(compare("categorical: EM iteration, one sequence of 100,000 steps, 4 states, hmmlearn log",
                        lambda: model.expect(one), lambda: peer.fit(one.numpy().T), rounds=3))  # fmt: skip
    save("hmm", rows)


if __name__ == "__main__":
    torch.set_num_threads(2)
    with torch.no_grad():
        main()
