r"""The most probable path of hidden states.

    delta_t(j) = log b_t(j) + max_i (delta_{t-1}(i) + log A_ij),
    z_T = argmax_i (delta_T(i) + log e(i)),    z_t = argmax_i (delta_t(i) + log A_{i, z_{t+1}})

(Viterbi 1967; Forney 1973). No table of back-pointers is kept: the maximum over i is taken again for the one state that
the path goes through. Ties go to the lower state. On the CPU a compiled kernel does this (`compiled.py`); what stands
here is the same in PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.models.markov import compiled
from protea.models.markov.dynamics import Dynamics
from protea.models.markov.emitted import look_up
from protea.models.markov.packed import Packed


@torch.no_grad()
def viterbi(log_b: Tensor, dynamics: Dynamics, packed: Packed, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The most probable path z (N,) of packed log b (N, K), and log p(x, z) (B,).

    With an `index`, log b is a table (`emitted.look_up`). A sequence of probability zero has log p = -inf and a path
    without meaning.
    """
    if compiled.ready(log_b):
        return compiled.viterbi(log_b, dynamics, packed, index)
    return with_tensors(look_up(log_b, index), dynamics, packed)


def with_tensors(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> tuple[Tensor, Tensor]:
    """The same, step by step on whole tensors; sequences that have ended keep their last delta."""
    b, running = packed.unpack(log_b).unbind(1), packed.running.unbind(1)
    path = torch.zeros(packed.count, packed.steps, dtype=torch.int64, device=log_b.device)
    log_p = torch.zeros(packed.count, dtype=torch.float64, device=log_b.device)
    log_a, deltas = dynamics.transition.log(), []
    for b_t, going in zip(b, running):
        now = b_t + (deltas[-1][:, :, None] + log_a).amax(1) if deltas else b_t + dynamics.start.log()
        top = now.amax(1, keepdim=True)
        top = torch.where(going[:, None] & ~top.isneginf(), top, 0.0)
        log_p += top[:, 0]
        deltas.append(torch.where(going[:, None], now - top, deltas[-1]) if deltas else now - top)
    log_e = dynamics.factor(deltas[-1]).log() if deltas else log_a[:0]
    for t in range(packed.steps - 1, -1, -1):
        reach = final = deltas[t] + log_e
        if t + 1 < packed.steps:
            reach = torch.where(running[t + 1][:, None], deltas[t] + log_a.T[path[:, t + 1]], final)
        path[:, t] = reach.argmax(1)
        log_p += torch.where(packed.lengths == t + 1, final.amax(1), 0.0)
    return packed.pack(path), log_p
