r"""Forward and backward over time, in the linear domain with scaling, vectorised over sequences and states.

With b_t(k) = p(x_t | z_t = k), initial probabilities pi, transitions A and an end factor e (1, or the probability that
the chain ends after a state):

    alpha_t = (alpha_{t-1} A) * b_t,   alpha_1 = pi * b_1,     beta_t = A w_{t+1},   w_t = b_t * beta_t,   beta_T = e
    p(x) = alpha_T . e,   gamma_t(k) = alpha_t(k) beta_t(k) / p(x),   xi_t(i, j) = alpha_t(i) A_ij w_{t+1}(j) / p(x)

(Rabiner 1989, "A tutorial on hidden Markov models", sections III.A and V.A). Every b_t is divided by its largest entry
and alpha by its sum c at regular steps; beta takes the same c, so that alpha * beta is gamma without another pass, and
xi summed over all steps and sequences is one matrix product.

Why nothing underflows. Entries below the smallest number u of the type become zero, relative to a largest one.
If a = min(A, e) > 0, a state lost at one step would have given at most u / a of what reaches any state at the next. So
where a >= u^(1/3), the loss is below u^(1/3) and alpha may go unscaled for any m steps with a^m >= u^(1/3). Where A has
zeros or is smaller, alpha is scaled at every step, and beta tells the truth: what was lost at step t is at most
u K max_k beta_t(k) of p(x). Sequences whose beta exceeds u^(-2/3), or is not finite, are computed again with logarithms
(`log_scan.py`), which loses nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.distributions.covariance import CHUNK
from protea.distributions.powers import exp_
from protea.models.markov import blocks, log_scan, steps
from protea.models.markov.dynamics import Dynamics, Posterior
from protea.models.markov.memory import columns
from protea.models.markov.packed import Packed

UNSCALED = 32  # most steps between two scalings


def interval(dynamics: Dynamics, dtype: torch.dtype) -> int:
    """Steps between two scalings of alpha; 0 where losses must be watched (see the module's docstring)."""
    third = torch.finfo(dtype).tiny ** (1 / 3)
    low = dynamics.smallest()
    steps = 0
    while steps < UNSCALED and low ** (steps + 1) >= third:
        steps += 1
    return steps


def emission(log_b: Tensor, dynamics: Dynamics, packed: Packed, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """b (N, K), its rows' largest entry 1, and the logarithms (N,) taken out; first steps are multiplied by pi.

    By columns, or by rows for a scan cut into blocks; `out`, which may be log b itself, is memory for b if it is so.
    """
    n, k = log_b.shape
    by_rows = blocks.block_length(packed, k) > 0
    if out is None or not (out.is_contiguous() if by_rows else out.stride(0) == 1):
        out = log_b.new_empty(n, k) if by_rows else columns(n, k, log_b.dtype, log_b.device)
    top = log_b.new_empty(n, 1)
    size = max(1, CHUNK * torch.get_num_threads() // k) if log_b.device.type == "cpu" else max(n, 1)
    for i in (0, *range(packed.first, n, size)):
        rows = slice(i, min(i + size, n) if i else packed.first)
        b = log_b[rows] if i else log_b[rows] + dynamics.start.log()
        high = torch.amax(b, 1, keepdim=True, out=top[rows])
        high.masked_fill_(torch.isneginf(high), 0.0)
        exp_(torch.sub(b, high, out=out[rows]))
    return out, top[:, 0]


def _forward(
    b: Tensor, dynamics: Dynamics, packed: Packed, every: int, space: Tensor | None = None
) -> tuple[Tensor, Tensor, blocks.Blocks | None]:
    """alpha (N, K), its scales (N, 1), 1 where none was taken, and the blocks, if the scan is cut into them."""
    n, k = b.shape
    scale, length = b.new_ones(n, 1), blocks.block_length(packed, k)
    with steps.alone():
        if length:
            alpha = torch.empty_like(b)
            return alpha, scale, blocks.forward(b, alpha, scale, dynamics.transition, every, packed, length)
        alpha = columns(n, k, b.dtype, b.device) if space is None else space
        parts = (v.split(packed.active) for v in (b, alpha, scale))
        steps.forward(*parts, dynamics.transition, every, None)
    return alpha, scale, None


def _backward(
    cut: blocks.Blocks | None, w: Tensor, alpha: Tensor, scale: Tensor, dynamics: Dynamics, packed: Packed, every: int,
    last: Tensor, peak: Tensor | None,
) -> Tensor:  # fmt: skip
    """Turn alpha into gamma, and return the derivative with respect to A."""
    if cut is None:
        return steps.backward(w, alpha, scale, packed.active, dynamics.transition, every, last, peak)
    with steps.alone():
        return blocks.backward(cut, w, alpha, scale, dynamics.transition, every, last, peak, packed)


def _evidence(
    final: Tensor, scale: Tensor, top: Tensor, dynamics: Dynamics, packed: Packed
) -> tuple[Tensor, Tensor, Tensor]:
    """log p (B,) sorted, 0 for sequences without a step; and for those with one e (B', K) and alpha_T . e (B', 1).

    `final` (B', K) is the last alpha of each.
    """
    end = dynamics.factor(final)
    mass = (final * end).sum(1, keepdim=True)
    log_p = packed.per_sequence(top.double() + scale[:, 0].log().double())
    log_p[: packed.first] += mass[:, 0].log()
    return log_p, end, mass


def smooth(
    log_b: Tensor, dynamics: Dynamics, packed: Packed, weights: Tensor | None = None, scratch: Tensor | None = None,
    space: Tensor | None = None,
) -> Posterior:  # fmt: skip
    """Forward-backward of packed log b (N, K); `weights` (B,) sorted multiply each sequence's statistics.

    `scratch` is memory to work in, which may be that of log b itself, and `space` (N, K) by columns memory for gamma:
    fresh memory costs as much as the arithmetic.
    """
    every = interval(dynamics, log_b.dtype)
    w, top = emission(log_b, dynamics, packed, scratch if every else None)
    alpha, scale, cut = _forward(w, dynamics, packed, max(every, 1), space)
    final = alpha[packed.last]
    log_p, end, mass = _evidence(final, scale, top, dynamics, packed)
    if len(lost := (~(mass[:, 0] > 0)).nonzero()[:, 0]):  # probability zero, or so it seems
        return _mend(lost, w.log() + top[:, None] if every else log_b, dynamics, packed, weights)
    last = end / mass
    at_last = torch.where(end > 0, final / mass, 0.0)
    if weights is not None:
        share = weights[: packed.first, None].to(last)
        last, at_last = last * share, at_last * share
    peak = None if every else torch.zeros_like(last)
    pairs = _backward(cut, w, alpha, scale, dynamics, packed, max(every, 1), last, peak)
    if peak is not None:  # a path may have been lost where beta is too large, or not a number
        lost = (~(peak.amax(1) < torch.finfo(peak.dtype).tiny ** (-2 / 3))).nonzero()[:, 0]
        if len(lost):
            return _mend(lost, log_b, dynamics, packed, weights)
    start = alpha[: packed.first].sum(0)
    return Posterior(
        log_prob=log_p,
        gamma=alpha,
        start=torch.where(dynamics.start > 0, start / dynamics.start, 0.0),
        transition=torch.where(dynamics.transition > 0, pairs, 0.0),
        last=at_last,
    )


def evidence(log_b: Tensor, dynamics: Dynamics, packed: Packed, scratch: Tensor | None = None) -> Tensor:
    """log p(x) (B,) sorted, of packed log b (N, K): forward only, where nothing can be lost. `scratch` as of `smooth`.

    A probability of zero is then exact: where steps cannot lose anything, only an impossible step gives it.
    """
    every = interval(dynamics, log_b.dtype)
    if not every:
        return smooth(log_b, dynamics, packed).log_prob
    b, top = emission(log_b, dynamics, packed, scratch)
    if packed.uniform and packed.total and not blocks.block_length(packed, b.shape[1]):
        scale = b.new_ones(len(b), 1)
        two = [columns(packed.count, b.shape[1], b.dtype, b.device) for _ in range(2)]
        alphas = [two[t % 2] for t in range(len(packed.active))]  # no step looks further back than one
        with steps.alone():
            steps.forward(b.split(packed.active), alphas, scale.split(packed.active), dynamics.transition, every, None)
        final = alphas[-1]
    else:
        alpha, scale, _ = _forward(b, dynamics, packed, every)
        final = alpha[packed.last]
    log_p, _, _ = _evidence(final, scale, top, dynamics, packed)
    return torch.where(log_p.isnan(), -torch.inf, log_p)


def filtered(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> Tensor:
    """p(z_t | x_1 .. x_t), (N, K), where nothing can be lost."""
    b, _ = emission(log_b, dynamics, packed)
    alpha, _, _ = _forward(b, dynamics, packed, interval(dynamics, log_b.dtype))
    return alpha / alpha.sum(1, keepdim=True)


def _mend(lost: Tensor, log_b: Tensor, dynamics: Dynamics, packed: Packed, weights: Tensor | None) -> Posterior:
    """The posterior with the recursion in logarithms for those that were lost."""
    kept = torch.ones(packed.count, dtype=torch.bool, device=lost.device)
    kept[lost] = False
    log_p, gamma = log_b.new_zeros(packed.count, dtype=torch.float64), torch.empty_like(log_b)
    last = log_b.new_zeros(packed.first, log_b.shape[1])
    start, transition = torch.zeros_like(dynamics.start), torch.zeros_like(dynamics.transition)
    for which, how in ((kept.nonzero()[:, 0], smooth), (lost, log_scan.smooth)):
        part, rows = packed.only(which)
        share = None if weights is None else weights[which]
        p = how(log_b[rows], dynamics.only(which), part, share)
        log_p[which], gamma[rows], last[which[: part.first]] = p.log_prob, p.gamma.to(gamma), p.last.to(last)
        start, transition = start + p.start.to(start), transition + p.transition.to(start)
    return Posterior(log_p, gamma, start, transition, last)
