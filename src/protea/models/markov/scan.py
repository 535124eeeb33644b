r"""Forward and backward over time, in the linear domain with scaling, vectorised over sequences and states.

With b_t(k) = p(x_t | z_t = k), initial probabilities pi, transitions A and an end factor e (1, or the probability that
the chain ends after a state):

    alpha_t = (alpha_{t-1} A) * b_t,   alpha_1 = pi * b_1,     beta_t = A w_{t+1},   w_t = b_t * beta_t,   beta_T = e
    p(x) = alpha_T . e,   gamma_t(k) = alpha_t(k) beta_t(k) / p(x),   xi_t(i, j) = alpha_t(i) A_ij w_{t+1}(j) / p(x)

(Rabiner 1989, "A tutorial on hidden Markov models", sections III.A and V.A). Every b_t is divided by its largest entry
and alpha by its sum c; beta takes the same c, so that alpha * beta is gamma without another pass, and xi summed over
all steps and sequences is one matrix product. A compiled kernel does it on the CPU (`compiled.py`), PyTorch elsewhere
(`blocks.py`).

Why nothing underflows. Entries below the smallest number u of the type become zero, relative to a largest one.
If a = min(A, e) > 0, a state lost at one step would have given at most u / a of what reaches any state at the next, so
where a >= u^(1/3) the loss is below u^(2/3). Where A has zeros or is smaller, beta tells the truth: what was lost at
step t is at most u K max_k beta_t(k) of p(x). Sequences whose beta exceeds u^(-2/3), or is not finite, are computed
again with logarithms (`log_scan.py`), which loses nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from protea.models.markov import blocks, compiled, log_scan
from protea.models.markov.dynamics import Dynamics, Posterior
from protea.models.markov.emitted import look_up
from protea.models.markov.packed import Packed


class Pass(NamedTuple):
    """What one pass over time found, before sequences that were lost are computed again.

    log_prob (B,), lost (B,), pairs (K, K) the derivative with respect to A, last (B, K) that with respect to e.
    """

    log_prob: Tensor
    lost: Tensor
    pairs: Tensor
    last: Tensor


def loses_nothing(dynamics: Dynamics, dtype: torch.dtype) -> bool:
    """Whether no path can be lost to underflow (see the module's docstring)."""
    return dynamics.smallest() >= torch.finfo(dtype).tiny ** (1 / 3)


def smooth(
    log_b: Tensor, dynamics: Dynamics, packed: Packed, weights: Tensor | None = None, out: Tensor | None = None
) -> Posterior:
    """Forward-backward of packed log b (N, K); `weights` (B,) multiply each sequence's statistics.

    `out` (N, K), which may be log b itself, is memory that gamma may be written to.
    """
    safe = loses_nothing(dynamics, log_b.dtype)
    gamma = out if safe and out is not None else torch.empty_like(log_b)
    found = _pass(log_b, dynamics, packed, weights, gamma, watch=not safe)
    return _mended(found, gamma, log_b, dynamics, packed, weights)


def _pass(
    log_b: Tensor, dynamics: Dynamics, packed: Packed, weights: Tensor | None, gamma: Tensor, watch: bool
) -> Pass:
    """Rows of gamma, and parts of sums, of sequences that may have lost a path are left out."""
    if compiled.ready(log_b):
        return Pass(*compiled.forward_backward(log_b, dynamics, packed, weights, gamma=gamma, watch=watch))
    zeros = torch.zeros_like(dynamics.transition)
    if not packed.total:
        nobody = torch.zeros_like(packed.lengths)
        return Pass(nobody.double(), nobody.bool(), zeros, log_b.new_zeros(packed.count, len(zeros)))
    b, top = _emission(log_b, dynamics, packed)
    scan = blocks.Scan(b, dynamics.transition, packed, blocks.block_length(packed, len(zeros)))
    end, some = dynamics.factor(scan.final), packed.lengths > 0
    mass = (scan.final * end).sum(1, keepdim=True)
    log_p = torch.where(some, top + scan.log_c + mass[:, 0].log(), 0.0)
    share = torch.ones_like(mass) if weights is None else weights[:, None].to(mass)
    found, pairs, peak = scan.backward(end / mass * share, share)
    lost = some & ~(mass[:, 0] > 0)
    if watch:
        lost |= some & ~(peak <= torch.finfo(b.dtype).tiny ** (-2 / 3) * share).all(1)
    kept = (some & ~lost)[:, None]
    rows = packed.pack(found)
    gamma.copy_(torch.where(lost[packed.row][:, None], log_b, rows))
    pairs = torch.where(kept[:, :, None], pairs, 0.0).sum(0)
    return Pass(log_p, lost, pairs, torch.where(kept, scan.final / mass * share, 0.0))


def _emission(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> tuple[Tensor, Tensor]:
    """b (B, T, K), its rows' largest entry 1, and the logarithms taken out (B,); first steps are multiplied by pi."""
    log_b = packed.unpack(log_b)
    log_b = torch.cat((log_b[:, :1] + dynamics.start.log(), log_b[:, 1:]), 1)
    top = log_b.amax(2, keepdim=True)
    top = torch.where(top.isneginf(), 0.0, top)
    return (log_b - top).exp(), (top[:, :, 0].double() * packed.running).sum(1)


def _mended(
    found: Pass, gamma: Tensor, log_b: Tensor, dynamics: Dynamics, packed: Packed, weights: Tensor | None
) -> Posterior:
    """The posterior, with the recursion in logarithms for those that were lost."""
    log_p, pairs, last = found.log_prob, found.pairs, found.last
    lost = found.lost.nonzero()[:, 0]
    if len(lost):
        part, rows = packed.only(lost)
        share = None if weights is None else weights[lost]
        p = log_scan.smooth(log_b[rows], dynamics.only(lost), part, share)
        log_p[lost], gamma[rows], last[lost] = p.log_prob, p.gamma.to(gamma), p.last.to(last)
        pairs = pairs + p.transition.to(pairs)
    return _posterior(log_p, gamma, gamma[packed.first], pairs, last, dynamics)


def smooth_table(
    table: Tensor, index: Tensor, dynamics: Dynamics, packed: Packed, weights: Tensor | None = None
) -> Posterior:
    """The posterior of steps whose log b is looked up (`emitted.look_up`); gamma is summed by row of the table, (M, K).

    Neither log b nor gamma is written out where the sums fit the cache.
    """
    counts = torch.zeros_like(table, dtype=torch.float64)
    if compiled.ready(table) and table.numel() <= compiled.SUMS and loses_nothing(dynamics, table.dtype):
        first = table.new_zeros(packed.count, table.shape[1])
        found = Pass(*compiled.forward_backward(table, dynamics, packed, weights, index, counts=counts, first=first))
        log_p = torch.where(found.lost, -torch.inf, found.log_prob)
        return _posterior(log_p, counts, first, found.pairs, found.last, dynamics)
    p = smooth(look_up(table, index), dynamics, packed, weights)
    if index.is_floating_point():
        return replace(p, gamma=(index @ p.gamma).double())
    return replace(p, gamma=counts.index_add_(0, index, p.gamma.double()))


def _posterior(
    log_p: Tensor, gamma: Tensor, first: Tensor, pairs: Tensor, last: Tensor, dynamics: Dynamics
) -> Posterior:
    """`first` (..., K) is gamma of first steps."""
    start = first.double().sum(0)
    start = torch.where(dynamics.start > 0, start / dynamics.start, 0.0)
    return Posterior(log_p, gamma, start, torch.where(dynamics.transition > 0, pairs, 0.0), last)


def evidence(log_b: Tensor, dynamics: Dynamics, packed: Packed, index: Tensor | None = None) -> Tensor:
    """log p(x) (B,) of packed log b (N, K), or of a table and what to look up in it: forward only, if nothing is lost.

    A probability of zero is then exact: where steps cannot lose anything, only an impossible step gives it.
    """
    if not loses_nothing(dynamics, log_b.dtype) or not compiled.ready(log_b):
        return smooth(look_up(log_b, index), dynamics, packed).log_prob
    log_p, lost = compiled.forward(log_b, dynamics, packed, index)
    return torch.where(lost, -torch.inf, log_p)


def filtered(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> Tensor:
    """p(z_t | x_1 .. x_t), (N, K): what is known of the present state, from the past alone."""
    if loses_nothing(dynamics, log_b.dtype) and compiled.ready(log_b):
        alpha = torch.empty_like(log_b)
        compiled.forward(log_b, dynamics, packed, alpha=alpha)
        return alpha
    log_alpha = log_scan.log_alpha(log_b, dynamics, packed)
    top = log_alpha.amax(2, keepdim=True)
    return packed.pack((log_alpha - torch.where(top.isneginf(), 0.0, top)).softmax(2).transpose(0, 1))
