r"""Forward and backward over time with logarithms: slow, and exact whatever the ratios of probabilities are.

    log alpha_t(j) = log b_t(j) + logsumexp_i (log alpha_{t-1}(i) + log A_ij),     and likewise backwards

It costs K^2 exponentials a step, where the scaled recursion (`scan.py`) costs none. That one asks for this where it may
have lost a path. A sequence of probability zero gets log p = -inf and statistics of zero. All sequences are stepped to
the end of the longest; one that has ended keeps its last alpha.
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


def log_alpha(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> Tensor:
    """log alpha of each step, (T, B, K); differentiable."""
    log_a, out = dynamics.transition.log(), []
    for b_t, going in zip(packed.unpack(log_b).unbind(1), packed.running.unbind(1)):
        now = b_t + dynamics.start.log() if not out else b_t + _sum(out[-1][:, :, None] + log_a, 1)
        out.append(torch.where(going[:, None], now, out[-1]) if out else now)
    return torch.stack(out) if out else log_b.new_zeros(0, packed.count, log_b.shape[1])


def _evidence(alpha: Tensor, dynamics: Dynamics, packed: Packed) -> tuple[Tensor, Tensor]:
    """log p (B,), and log e (B, K)."""
    final = alpha[-1] if len(alpha) else alpha.sum(0)
    log_e = dynamics.factor(final).log()
    return torch.where(packed.lengths > 0, _sum(final + log_e, 1), 0.0), log_e


def evidence(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> Tensor:
    """log p (B,); differentiable by autograd, step by step."""
    return _evidence(log_alpha(log_b, dynamics, packed), dynamics, packed)[0]


@torch.no_grad()
def smooth(log_b: Tensor, dynamics: Dynamics, packed: Packed, weights: Tensor | None = None) -> Posterior:
    """Forward-backward in float64; see `scan.smooth`."""
    last = None if dynamics.last is None else dynamics.last.double()
    dynamics, log_b = Dynamics(dynamics.start.double(), dynamics.transition.double(), last), log_b.double()
    alpha, log_a = log_alpha(log_b, dynamics, packed), dynamics.transition.log()
    log_p, log_e = _evidence(alpha, dynamics, packed)
    alive = (log_p > -torch.inf) & (packed.lengths > 0)
    g = alive.double() if weights is None else torch.where(alive, weights.double(), 0.0)
    norm = torch.where(alive, log_p, 0.0)[:, None]
    gamma, pairs, w, b, running = alpha.clone(), torch.zeros_like(log_a), log_e, packed.unpack(log_b), packed.running
    for t in range(len(alpha) - 1, -1, -1):
        beta = log_e
        if t + 1 < len(alpha):
            going = running[:, t + 1, None]
            beta = torch.where(going, _sum(w[:, None, :] + log_a, 2), log_e)
            xi = (alpha[t][:, :, None] + log_a + w[:, None, :] - norm[:, :, None]).exp()
            pairs += torch.where(going[:, :, None], xi * g[:, None, None], 0.0).sum(0)
        gamma[t] = (alpha[t] + beta - norm).exp() * g[:, None]
        w = b[:, t] + beta
    final = alpha[-1] if len(alpha) else log_e
    gamma = packed.pack(gamma.transpose(0, 1))
    first = gamma[packed.first].sum(0)
    at_last = torch.where(torch.isneginf(log_e) | ~alive[:, None], 0.0, (final - norm).exp() * g[:, None])
    return Posterior(
        log_prob=log_p,
        gamma=gamma,
        start=torch.where(dynamics.start > 0, first / dynamics.start, 0.0),
        transition=torch.where(dynamics.transition > 0, pairs / dynamics.transition, 0.0),
        last=at_last,
    )
