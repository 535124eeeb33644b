r"""The most probable path of hidden states.

    delta_t(j) = b_t(j) max_i delta_{t-1}(i) A_ij,  z_T = argmax delta_T e,  z_t = argmax_i delta_t(i) A_{i, z_{t+1}}

(Viterbi 1967; Forney 1973). No table of back-pointers is kept: the maximum over i is taken again for the one state that
the path goes through (`trace.py`). Ties go to the lower state.

This is the forward pass with a maximum in place of the sum, and nothing is lost to underflow where that loses nothing
(`scan.py`): a state below the smallest number u of the type gives at most u to the next step, and the best state gives
min(A, e) at least. On the CPU one product by a sparse matrix that takes maxima does a step, in 9 microseconds for 16
states and 200 sequences; writing out the K^2 products of each and reading them again takes 20. Where steps could be
lost, and on other devices, logarithms are added instead.
"""

from __future__ import annotations

import warnings
from itertools import pairwise

import torch
from torch import Tensor

from protea.models.markov import scan, steps
from protea.models.markov.dynamics import Dynamics
from protea.models.markov.packed import Packed
from protea.models.markov.trace import trace


@torch.no_grad()
def viterbi(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> tuple[Tensor, Tensor]:
    """The most probable path z (N,) of packed log b (N, K), which is overwritten, and log p(x, z) (B,) sorted.

    A sequence of probability zero has log p = -inf and a path without meaning.
    """
    path = torch.zeros(packed.total, dtype=torch.int64, device=log_b.device)
    log_p = log_b.new_zeros(packed.count)
    if packed.first:
        every = scan.interval(dynamics, log_b.dtype) if log_b.device.type == "cpu" else 0
        if every:
            _scaled(log_b, dynamics, packed, every, path, log_p)
        else:
            _with_logarithms(log_b, dynamics, packed, path, log_p)
    return path, log_p


def _scaled(log_b: Tensor, dynamics: Dynamics, packed: Packed, every: int, path: Tensor, log_p: Tensor) -> None:
    b, top = scan.emission(log_b, dynamics, packed, log_b)
    log_p += packed.per_sequence(top)
    into, tiny = dynamics.transition.T.contiguous(), torch.finfo(b.dtype).tiny
    best, end = _sparse(into), dynamics.factor(b[: packed.first])
    deltas = b.T.split(packed.active, 1)  # of each step (K, n_t): b becomes delta
    with steps.alone():
        for t, now in enumerate(deltas):
            n = now.shape[1]
            if t:
                before = deltas[t - 1][:, :n]
                now.mul_(torch.sparse.mm(best, before, reduce="amax"))
            if (t + 1) % every == 0:
                c = now.amax(0, keepdim=True)
                now.div_(c.clamp(min=tiny))
                log_p[:n] += c[0].log_()
    if packed.uniform:
        steps_of = (len(deltas), -1)
        last, path.view(steps_of)[-1] = (deltas[-1] * end.T).max(0)
        log_p += last.log()
        trace(b.T.unflatten(1, steps_of), dynamics.transition, path.view(steps_of))
        return
    with steps.alone():
        after = path[:0]
        for now, here in zip(reversed(deltas), reversed(path.split(packed.active))):
            going = len(after)
            if going < len(here):
                final, here[going:] = (now.T[going:] * end[going : len(here)]).max(1)
                log_p[going : len(here)] += final.log()
            if going:
                torch.argmax(into.index_select(0, after).mul_(now.T[:going]), 1, out=here[:going])
            after = here


def _sparse(matrix: Tensor) -> Tensor:
    """A square matrix whose products take what reduction one asks for."""
    k = len(matrix)
    rows = torch.arange(0, k * k + 1, k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "in beta state"
        return torch.sparse_csr_tensor(rows, torch.arange(k).repeat(k), matrix.flatten(), (k, k))


def _with_logarithms(log_b: Tensor, dynamics: Dynamics, packed: Packed, path: Tensor, log_p: Tensor) -> None:
    """The same, of log b by rows, which becomes log delta."""
    log_b = log_b.contiguous()
    n, k = packed.first, log_b.shape[1]
    log_a = dynamics.transition.log()
    apart, into, log_e = log_a[:, None], log_a.T.contiguous(), dynamics.factor(log_b[:n]).log()
    reach, best = log_b.new_empty(k, n, k), log_b.new_empty(n, k)  # the state left comes first: contiguous maxima
    deltas, z = log_b.split(packed.active), path.split(packed.active)
    with steps.alone():
        deltas[0].add_(dynamics.start.log())
        for before, now in pairwise(deltas):
            here = len(now)
            if here < len(best):
                before, reach, best = before[:here], log_b.new_empty(k, here, k), best[:here]
            torch.add(before.T[:, :, None], apart, out=reach)
            torch.amax(reach, 0, out=best)
            now.add_(best)
        after = z[0][:0]
        for delta, here in zip(reversed(deltas), reversed(z)):
            going = len(after)
            if going < len(here):
                final = delta[going:] + log_e[going : len(here)]
                log_p[going : len(here)], here[going:] = final.max(1)
                delta = delta[:going]
            if going:
                torch.argmax(into.index_select(0, after).add_(delta), 1, out=here[:going])
            after = here
