r"""Paths of hidden states: the most probable one (Viterbi), and draws from their posterior.

    delta_t(j) = max_i (delta_{t-1}(i) + log A_ij) + log b_t(j),     z_T = argmax (delta_T + log e),
    z_t = argmax_i (delta_t(i) + log A_{i, z_{t+1}})

(Viterbi 1967; Forney 1973). No table of back-pointers is kept: the maximum over i is taken again for the one state that
the path goes through. Ties go to the lower state.

Draws are exact, by filtering forwards and sampling backwards (Scott 2002, "Bayesian methods for hidden Markov models"):
p(z_T | x) proportional to alpha_T e, p(z_t | z_{t+1}, x) proportional to alpha_t(i) A_{i, z_{t+1}}.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from protea.models.markov import log_scan, scan, steps
from protea.models.markov.dynamics import Dynamics
from protea.models.markov.packed import Packed


@torch.no_grad()
def viterbi(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> tuple[Tensor, Tensor]:
    """The most probable path z (N,) of packed log b (N, K), which becomes delta, and log p(x, z) (B,) sorted.

    A sequence of probability zero has log p = -inf and a path without meaning.
    """
    n, k = packed.first, log_b.shape[1]
    log_p = log_b.new_zeros(packed.count)
    path = torch.zeros(packed.total, dtype=torch.int64, device=log_b.device)
    if not n:
        return path, log_p
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
    return path, log_p


@torch.no_grad()
def filtered(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> Tensor:
    """p(z_t | x_1 .. x_t), (N, K): what is known of the present state, from the past alone."""
    if scan.interval(dynamics, log_b.dtype):  # nothing can be lost
        return scan.filtered(log_b, dynamics, packed)
    steps_ = [a - a.amax(1, keepdim=True) for a in log_scan.log_alpha(log_b, dynamics, packed)]
    return torch.cat(steps_).softmax(1) if steps_ else log_b


@torch.no_grad()
def sample_paths(u: Tensor, log_b: Tensor, dynamics: Dynamics, packed: Packed) -> Tensor:
    """A path z (N,) drawn from p(z | x) for packed log b (N, K); u (N,) uniform numbers in (0, 1)."""
    gamma = filtered(log_b, dynamics, packed).double()
    parts, chance = gamma.split(packed.active), u.double().split(packed.active)
    a = dynamics.transition.double()
    end = dynamics.factor(gamma[: packed.first])
    z = torch.zeros(packed.first, dtype=torch.int64, device=u.device)
    path: list[Tensor] = []
    for t in range(len(parts) - 1, -1, -1):
        here, going = len(parts[t]), len(parts[t + 1]) if t + 1 < len(parts) else 0
        factor = torch.cat((a.T[z[:going]], end[going:here])) if going else end[:here]
        mass = (parts[t] * factor).cumsum(1)
        z = (mass < chance[t][:, None] * mass[:, -1:]).sum(1).clamp(max=gamma.shape[1] - 1)
        path.append(z)
    return torch.cat(path[::-1]) if path else u.long()
