r"""A ratio of partition functions from both of its sides: how far annealed importance sampling can be trusted.

Chains that anneal forward, from p_0 to p_K, give log-weights f_i; chains that start at draws of p_K and anneal back,
the same path reversed, give b_j (the log-weight their path would have forward). With C = log Z_K / Z_0

    forward    E[exp(f)] = exp(C)       log mean exp(f)    lies above C + t with probability below exp(-t)
    backward   E[exp(-b)] = exp(-C)     -log mean exp(-b)  lies below C - t with probability below exp(-t)

by Markov's inequality: a stochastic lower and an upper bound of C, whatever the chains' mixing (Grosse, Ghahramani &
Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo"; from data instead of draws of p_K,
Burda, Grosse & Salakhutdinov 2015, "Accurate and conservative estimates of MRF log-likelihood using reverse
annealing"). Since p(f) / p(b) at the same weight w is exp(C - w) (Crooks 2000), the best estimate from both is a
logistic regression of direction on weight, of which only the intercept is unknown (Bennett 1976; Shirts et al. 2003):

    sum_i s(f_i - C - m) = sum_j s(C + m - b_j),    s the logistic function,  m = log(forward / backward chains).

It needs weights that both directions reach, a hundred times fewer temperatures than either side alone needs. Its
error is the spread over bootstrap draws of chains. What no spread of one run can show is looked for by doubling the
path: `sandwich` goes on until the estimate stays within its interval, and says so if it never does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from protea.rng import Streams, fold
from protea.samplers.ais import Step, Weights, ais, evened, spacing

X = TypeVar("X")
Start = Callable[[Streams], X]
BOOTSTRAP = 200
FIRST = 8  # the path doubles from an eighth of the longest
ENOUGH, LEAST = 0.05, 5.0  # share of the chains, and number, that the estimate has to rest on


class Ratio(NamedTuple):
    """log Z_K / Z_0 from both sides, or one."""

    value: float  # nats
    error: float  # one standard error: bootstrap over chains, and what the last doubling of the path moved
    lower: float  # of forward chains alone: a stochastic lower bound
    upper: float  # of backward chains alone: a stochastic upper bound; inf without them
    effective: float  # number of chains that the estimate rests on
    steps: int  # temperatures of the last path
    converged: bool  # enough effective chains, and doubling the path stayed within the interval


def bennett(forward: Tensor, backward: Tensor) -> Tensor:
    """C from log-weights (..., M) and (..., N) of the two directions, (...,).

    >>> from protea.rng import Streams  # two Gaussians whose log-ratio is Gaussian: C = mean + variance / 2
    >>> z = Streams(0, 2000).normal(2, dtype=torch.float64)
    >>> abs(float(bennett(3 + 2 * z[:, 0], 7 + 2 * z[:, 1])) - 5) < 0.2
    True
    """
    m = math.log(forward.shape[-1] / backward.shape[-1])
    both = torch.cat((forward, backward), -1)
    low, high = both.amin(-1) - 2 - abs(m), both.amax(-1) + 2 + abs(m)
    for _ in range(60):
        c = (low + high) / 2
        x = c[..., None] + m
        rises = torch.sigmoid(forward - x).sum(-1) > torch.sigmoid(x - backward).sum(-1)
        low, high = torch.where(rises, c, low), torch.where(rises, high, c)
    return (low + high) / 2


def combined(forward: Tensor, backward: Tensor | None, seed: int = 0) -> tuple[float, float, float]:
    """Estimate, bootstrap error and effective number of chains: of Bennett's estimate, or of the forward one alone.

    >>> combined(torch.zeros(8).double(), torch.zeros(8).double())
    (0.0, 0.0, 8.0)
    """
    sides = [forward] if backward is None else [forward, backward]
    u = Streams(fold(seed, "bootstrap"), BOOTSTRAP).uniform(sum(map(len, sides)), dtype=torch.float64)
    drawn = [s[(part * len(s)).long()] for s, part in zip(sides, u.to(forward.device).split(list(map(len, sides)), 1))]
    if backward is None:
        again = torch.logsumexp(drawn[0], 1) - math.log(len(forward))
        found = Weights(forward)
        return found.log_ratio, float(again.std()), found.effective
    c = bennett(forward, backward)
    p = torch.sigmoid(torch.cat((forward, backward)) - c - math.log(len(forward) / len(backward)))
    return round(float(c), 12) + 0.0, float(bennett(*drawn).std()), float((2 * p * (1 - p)).sum())


@torch.no_grad()
def sandwich(
    start: Start[X], step: Callable[[Streams], Step[X]], seed: int, *, target: Start[X] | None = None,
    chains: int = 128, steps: int = 1000, device: torch.device | str = "cpu",
) -> Ratio:  # fmt: skip
    """The ratio, by paths of up to `steps` temperatures that double until the estimate stays where it is.

    Args:
        start: streams to independent draws of p_0.
        step: streams to a step of `ais`, whose moves are reversible.
        seed: of all noise.
        target: streams to draws of p_K. Draws that miss modes, or none, leave what the forward chains miss unseen.
        chains: of each direction.
        steps: of the longest path; all paths together cost about twice that, three times with backward chains.
    """
    betas: Sequence[float] = spacing(max(1, steps // FIRST))
    before: tuple[float, float, float] | None = None
    while True:
        rng = [Streams(fold(seed, way, len(betas)), chains, device) for way in ("forward", "backward")]
        forward = ais(start(rng[0]), betas, step(rng[0]))[0]
        backward = None if target is None else ais(target(rng[1]), betas[::-1], step(rng[1]))[0]
        found = combined(forward.log_w, None if backward is None else -backward.log_w, seed)
        moved, slack = (0.0, 0.0) if before is None else (abs(found[0] - before[0]), math.hypot(found[1], before[1]))
        settled = before is not None and moved <= 1.96 * slack + 1e-9 and found[2] >= max(ENOUGH * chains, LEAST)
        if settled or 2 * (len(betas) - 1) > steps:
            break
        before = found
        betas = evened(betas, forward.spread, 2 * (len(betas) - 1))
    upper = math.inf if backward is None else -backward.log_ratio
    error = math.hypot(found[1], moved / 2)
    return Ratio(found[0], error, forward.log_ratio, upper, found[2], len(betas) - 1, settled)
