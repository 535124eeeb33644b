r"""Draws of paths of hidden states from their posterior (`viterbi.py` has the most probable path).

Draws are exact, by filtering forwards and sampling backwards (Scott 2002, "Bayesian methods for hidden Markov models"):
p(z_T | x) proportional to alpha_T e, p(z_t | z_{t+1}, x) proportional to alpha_t(i) A_{i, z_{t+1}}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.models.markov.dynamics import Dynamics
from protea.models.markov.packed import Packed
from protea.models.markov.scan import filtered


@torch.no_grad()
def sample_paths(u: Tensor, log_b: Tensor, dynamics: Dynamics, packed: Packed) -> Tensor:
    """A path z (N,) drawn from p(z | x) for packed log b (N, K); u (N,) uniform numbers in (0, 1)."""
    gamma = packed.unpack(filtered(log_b, dynamics, packed).double())
    chance = packed.unpack(u.double(), 0.5)
    a, end = dynamics.transition.double(), dynamics.factor(gamma[:, 0] if packed.steps else gamma.sum(1)).double()
    path = torch.zeros(chance.shape, dtype=torch.int64, device=u.device)
    for t in range(packed.steps - 1, -1, -1):
        factor = end
        if t + 1 < packed.steps:
            factor = torch.where((packed.lengths > t + 1)[:, None], a.T[path[:, t + 1]], end)
        mass = (gamma[:, t] * factor).cumsum(1)
        path[:, t] = (mass < chance[:, t, None] * mass[:, -1:]).sum(1).clamp(max=gamma.shape[2] - 1)
    return packed.pack(path)
