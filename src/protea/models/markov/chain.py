r"""The hidden chain: probabilities of the steps a topology allows, and their maximiser from expected counts.

    P (1 + K + S, K + S + 1), each row a distribution over what follows: states, silent states, end
    M-step    P_ij = (n_ij + a_ij) / sum_j (n_ij + a_ij),     n_ij = E[number of steps i -> j | x]

with pseudo-counts a, the mode under a Dirichlet(1 + a) prior of each row.

Silent states are summed out exactly: a path between two states that emit may pass through any of them, so with Q the
steps among silent states

    A = P_ee + P_es (I - Q)^-1 P_se,        and likewise for the begin and the end

(Durbin et al. 1998, "Biological sequence analysis", section 3.4). The scan over time then sees K states only. Expected
counts of the steps themselves follow by the chain rule: n = P * d(log p) / dP.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.models.markov.dynamics import Dynamics
from protea.models.markov.topology import Topology


class Chain(nn.Module):
    """Probabilities of the steps of a topology, uniform at first.

    Args:
        topology: the steps allowed.
        prior: pseudo-counts a >= 0 of the allowed steps, a number or (1 + K + S, K + S + 1).

    Raises:
        ConfigError: a negative prior, or one of another shape.

    >>> from protea.models.markov.topology import left_to_right
    >>> Chain(left_to_right(2)).probabilities.tolist()
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]
    """

    mask: Tensor
    prior: Tensor

    def __init__(self, topology: Topology, prior: float | Tensor = 0.0) -> None:
        super().__init__()
        self.topology, self.states, self.silent = topology, topology.states, topology.silent
        self.ends = topology.ends
        a = torch.as_tensor(prior, dtype=torch.float64)
        if not bool((a >= 0).all()) or (a.ndim and a.shape != topology.mask.shape):
            raise ConfigError(f"A prior of shape {tuple(a.shape)} from {float(a.min())} on makes no sense.",
                              f"Give numbers >= 0, one or {tuple(topology.mask.shape)}.")  # fmt: skip
        self.register_buffer("mask", topology.mask, persistent=False)
        self.register_buffer("prior", torch.where(topology.mask, a, 0.0))
        self.logits = nn.Parameter(torch.zeros(topology.mask.shape, dtype=torch.float64), requires_grad=False)

    @property
    def probabilities(self) -> Tensor:
        """P; rows that nothing may follow are zero. Settable: masked entries must be zero."""
        logits = torch.where(self.mask, self.logits, -math.inf)
        some = self.mask.any(1, keepdim=True)
        return torch.where(some, torch.softmax(torch.where(some, logits, 0.0), 1), 0.0)

    @probabilities.setter
    def probabilities(self, value: Tensor) -> None:
        value = torch.as_tensor(value, dtype=torch.float64, device=self.logits.device)
        if value.shape != self.mask.shape or bool((value < 0).any()) or bool((value[~self.mask] > 0).any()):
            raise ConfigError(f"Probabilities of shape {tuple(value.shape)} do not fit the topology.",
                              "Steps it forbids have probability zero.")  # fmt: skip
        some = self.mask.any(1)
        if not bool(((value.sum(1) - 1).abs()[some] < 1e-6).all()):
            raise ConfigError(f"A row of transition probabilities sums to {float(value[some].sum(1).min())}.",
                              "Each sums to one.")  # fmt: skip
        with torch.no_grad():
            self.logits.copy_(torch.where(self.mask, value.log(), 0.0))

    def dynamics(self, dtype: torch.dtype = torch.float64) -> Dynamics:
        """pi, A and e over the states that emit; differentiable."""
        start, transition, end, _ = self._eliminated(self.probabilities)
        return Dynamics(start.to(dtype), transition.to(dtype), end.to(dtype) if self.ends else None)

    def empty(self) -> Tensor:
        """The probability of a sequence without a step."""
        return self._eliminated(self.probabilities)[3]

    def _eliminated(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """pi (K,), A (K, K), e (K,) and the probability of ending at once, with silent states summed out."""
        k, s = self.states, self.silent
        to = torch.cat((p[: 1 + k, :k], p[: 1 + k, -1:]), 1)
        if s:
            quiet = torch.eye(s, dtype=p.dtype, device=p.device) - p[1 + k :, k : k + s]
            on = torch.linalg.solve(quiet, torch.cat((p[1 + k :, :k], p[1 + k :, -1:]), 1))
            to = to + p[: 1 + k, k : k + s] @ on
        return to[0, :k], to[1:, :k], to[1:, k], to[0, k]

    # ---- learning ----

    @torch.no_grad()
    def counts(self, start: Tensor, transition: Tensor, end: Tensor, empty: Tensor) -> Tensor:
        """Expected steps n, shaped as P: the derivatives of the log-likelihood by what `_eliminated` gives, times P."""
        with torch.enable_grad():
            leaf = self.probabilities.detach().requires_grad_()
            parts = self._eliminated(leaf)
        return leaf.detach() * torch.autograd.grad(parts, leaf, (start, transition, end, empty))[0]

    @torch.no_grad()
    def maximise(self, n: Tensor) -> None:
        """P from expected steps n; a row without any, and without a prior, keeps what it has."""
        n = torch.where(self.mask, n, 0.0) + self.prior
        total = n.sum(1, keepdim=True)
        self.logits.copy_(torch.where((total > 0) & self.mask, (n / total).log(), self.logits))

    def expected(self, n: Tensor) -> Tensor:
        """sum n log P."""
        p = self.probabilities
        return torch.where(n > 0, n * p.log(), 0.0).sum()

    def log_prior(self) -> Tensor:
        """log of the Dirichlet densities, up to a constant."""
        return self.expected(self.prior)

    def free(self) -> int:
        """Number of free probabilities."""
        width = self.mask.sum(1)
        return int((width - 1).clamp(min=0).sum())
