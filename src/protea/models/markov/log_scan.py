r"""Forward and backward over time with logarithms: slow, and exact whatever the ratios of probabilities are.

    log alpha_t(j) = log b_t(j) + logsumexp_i (log alpha_{t-1}(i) + log A_ij),     and likewise backwards

It costs K^2 exponentials a step, where the scaled recursion (`scan.py`) costs none. That one asks for this where it may
have lost a path. A sequence of probability zero gets log p = -inf and statistics of zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.models.markov.dynamics import Dynamics, Posterior
from protea.models.markov.packed import Packed


def _sum(v: Tensor, dim: int) -> Tensor:
    """logsumexp whose gradient at a row of -inf is zero rather than NaN."""
    top = v.amax(dim, keepdim=True)
    top = torch.where(torch.isneginf(top), 0.0, top).detach()
    return (v - top).exp().sum(dim).log() + top.squeeze(dim)


def log_alpha(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> list[Tensor]:
    """log alpha of each step, (n_t, K); differentiable."""
    log_a, parts = dynamics.transition.log(), log_b.split(packed.active)
    out: list[Tensor] = []
    for b_t in parts:
        if not out:
            out.append(b_t + dynamics.start.log())
        else:
            out.append(b_t + _sum(out[-1][: len(b_t), :, None] + log_a, 1))
    return out


def evidence(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> Tensor:
    """log p (B,) sorted; differentiable by autograd, step by step."""
    alpha = torch.cat(log_alpha(log_b, dynamics, packed)) if packed.active else log_b
    final = alpha[packed.last]
    log_p = _sum(final + dynamics.factor(final).log(), 1)
    return torch.cat((log_p, log_p.new_zeros(packed.count - len(final))))


@torch.no_grad()
def smooth(log_b: Tensor, dynamics: Dynamics, packed: Packed, weights: Tensor | None = None) -> Posterior:
    """Forward-backward in float64; see `scan.smooth`."""
    last = None if dynamics.last is None else dynamics.last.double()
    dynamics = Dynamics(dynamics.start.double(), dynamics.transition.double(), last)
    log_b, start, transition = log_b.double(), dynamics.start, dynamics.transition
    alpha = log_alpha(log_b, dynamics, packed)
    log_a = transition.log()
    n, k = packed.first, len(start)
    final = torch.cat(alpha)[packed.last] if alpha else log_b
    end = dynamics.factor(final).log()
    log_p = _sum(final + end, 1)
    alive = log_p > -torch.inf
    g = alive.double() if weights is None else torch.where(alive, weights[:n].double(), 0.0)
    norm = torch.where(alive, log_p, 0.0)[:, None]
    gamma: list[Tensor] = [log_b[:0]] * len(alpha)
    pairs = log_b.new_zeros(k, k)
    parts, w, going = log_b.split(packed.active), log_b[:0], 0
    for t in range(len(alpha) - 1, -1, -1):
        here = packed.active[t]
        beta = end[:here].clone()
        if going:
            beta[:going] = _sum(w[:, None, :] + log_a, 2)
            xi = (alpha[t][:going, :, None] + log_a + w[:, None, :] - norm[:going, :, None]).exp()
            pairs += (xi * g[:going, None, None]).sum(0)
        gamma[t] = (alpha[t] + beta - norm[:here]).exp() * g[:here, None]
        w, going = parts[t] + beta, here
    first = gamma[0].sum(0) if gamma else torch.zeros_like(start)
    return Posterior(
        log_prob=torch.cat((log_p, log_p.new_zeros(packed.count - n))),
        gamma=torch.cat(gamma) if gamma else log_b,
        start=torch.where(start > 0, first / start, 0.0),
        transition=torch.where(transition > 0, pairs / transition, 0.0),
        last=torch.where(torch.isneginf(end), 0.0, (final - norm).exp() * g[:, None]),
    )
