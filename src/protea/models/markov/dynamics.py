"""What a scan over time is given of a chain, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dynamics:
    """Probabilities of a chain over K emitting states: start pi (K,), transition A (K, K), and the end factors e.

    `last` is None where a sequence may end anywhere at no cost, (K,) where all pay alike, or (B, K).
    """

    start: Tensor
    transition: Tensor
    last: Tensor | None = None

    def smallest(self) -> float:
        """min(A, e)."""
        low = self.transition.min()
        return float(low if self.last is None or not self.last.numel() else torch.minimum(low, self.last.min()))

    def factor(self, final: Tensor) -> Tensor:
        """e of sequences whose last alpha is `final` (B, K), in that shape."""
        return torch.ones_like(final) if self.last is None else self.last.expand_as(final)

    def only(self, which: Tensor) -> Dynamics:
        """Those of some of the sequences."""
        last = self.last[which] if self.last is not None and self.last.ndim == 2 else self.last
        return Dynamics(self.start, self.transition, last)


@dataclass(frozen=True)
class Posterior:
    """What forward-backward gives, weighted by the sequences' weights g where some were given.

    log_prob (B,), without g; gamma (N, K), or its sums by code (M, K); start, transition, last: derivatives of
    \\sum_b g_b log p(x_b) with respect to pi (K,), A (K, K) and e (B, K) of each sequence, zero where that is zero.
    """

    log_prob: Tensor
    gamma: Tensor
    start: Tensor
    transition: Tensor
    last: Tensor
