r"""Draws of paths of hidden states from their posterior (`viterbi.py` has the most probable path).

Draws are exact, by filtering forwards and sampling backwards (Scott 2002, "Bayesian methods for hidden Markov models"):
p(z_T | x) proportional to alpha_T e, p(z_t | z_{t+1}, x) proportional to alpha_t(i) A_{i, z_{t+1}}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.models.markov import log_scan, scan
from protea.models.markov.dynamics import Dynamics
from protea.models.markov.packed import Packed


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
