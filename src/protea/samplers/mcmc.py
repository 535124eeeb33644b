r"""Markov chain Monte Carlo on R^D for any unnormalised log-density f: Metropolis, MALA, Hamiltonian.

All accept a proposal x' with probability min(1, exp(f(x') - f(x)) q(x | x') / q(x' | x)); exp(f) is left invariant:

    metropolis   x' = x + step z                                        (Metropolis et al. 1953; Hastings 1970)
    langevin     x' = x + step^2/2 grad f(x) + step z                   (MALA; Roberts & Tweedie 1996)
    hamiltonian  leapfrog steps of H(x, p) = -f(x) + p.p/2, p ~ N(0, I)  (Duane et al. 1987; Neal 2011)

Every chain is a row of one batch and has a random stream of its own. A kernel takes and returns a `Chains`, so that
the density, and its gradient where there is one, is computed once for each place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from protea.rng import Streams

LogDensity = Callable[[Tensor], Tensor]  # (B, D) to (B,)


class Chains(NamedTuple):
    """Where the chains are."""

    x: Tensor  # (B, D)
    log_f: Tensor  # (B,)
    gradient: Tensor  # (B, D); zeros where the kernel needs none
    accepted: Tensor  # (B,) whether the last proposal was


def begin(f: LogDensity, x: Tensor, *, gradient: bool = True) -> Chains:
    """Chains at x (B, D)."""
    log_f, g = _both(f, x) if gradient else (f(x), torch.zeros_like(x))
    return Chains(x, log_f, g, torch.ones(len(x), dtype=torch.bool, device=x.device))


def _both(f: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        log_f = f(x)
        (g,) = torch.autograd.grad(log_f.sum(), x)
    return log_f.detach(), g


def _accept(old: Chains, new: Chains, log_ratio: Tensor, rng: Streams) -> Chains:
    u = rng.uniform(1, dtype=torch.float64)[:, 0]
    yes = u.log() < log_ratio.double().nan_to_num(nan=-torch.inf)
    pick = yes[:, None]
    return Chains(torch.where(pick, new.x, old.x), torch.where(yes, new.log_f, old.log_f),
                  torch.where(pick, new.gradient, old.gradient), yes)  # fmt: skip


def metropolis(f: LogDensity, chains: Chains, rng: Streams, step: float | Tensor) -> Chains:
    """One random-walk step; a step that accepts about a quarter is best in many dimensions.

    >>> f = lambda x: -0.5 * (x ** 2).sum(1)
    >>> chains, rng = begin(f, torch.zeros(1000, 1).double(), gradient=False), Streams(0, 1000)
    >>> for _ in range(30): chains = metropolis(f, chains, rng, 2.0)
    >>> abs(float(chains.x.var()) - 1) < 0.2
    True
    """
    x = chains.x + step * rng.normal(*chains.x.shape[1:], dtype=chains.x.dtype)
    log_f = f(x)
    return _accept(chains, Chains(x, log_f, chains.gradient, chains.accepted), log_f - chains.log_f, rng)


def langevin(f: LogDensity, chains: Chains, rng: Streams, step: float) -> Chains:
    """One step of the Metropolis-adjusted Langevin algorithm; a step that accepts about 0.57 is best."""
    half = 0.5 * step**2
    x = chains.x + half * chains.gradient + step * rng.normal(*chains.x.shape[1:], dtype=chains.x.dtype)
    log_f, g = _both(f, x)
    there = (x - chains.x - half * chains.gradient).square().sum(1)
    back = (chains.x - x - half * g).square().sum(1)
    log_ratio = log_f - chains.log_f + (there - back) / (2 * step**2)
    return _accept(chains, Chains(x, log_f, g, chains.accepted), log_ratio, rng)


def hamiltonian(f: LogDensity, chains: Chains, rng: Streams, step: float, leaps: int = 10) -> Chains:
    """One trajectory of `leaps` leapfrog steps; a step that accepts about 0.65 to 0.9 is best."""
    p = rng.normal(*chains.x.shape[1:], dtype=chains.x.dtype)
    x, g, log_f, begin_p = chains.x, chains.gradient, chains.log_f, p
    for _ in range(leaps):
        p = p + 0.5 * step * g
        x = x + step * p
        log_f, g = _both(f, x)
        p = p + 0.5 * step * g
    log_ratio = log_f - chains.log_f + 0.5 * (begin_p.square() - p.square()).sum(1)
    return _accept(chains, Chains(x, log_f, g, chains.accepted), log_ratio, rng)
