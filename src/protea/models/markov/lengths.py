r"""How long sequences are: a histogram over 0 .. T steps.

    p(L) = (n_L + a) / (n + a (T + 1)),      a = 1 / (T + 1)

One sequence's worth of pseudo-counts, spread evenly, keeps every length possible.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Lengths(nn.Module):
    """Lengths of sequences of at most T steps, uniform at first.

    >>> lengths = Lengths(2)
    >>> lengths.maximise(torch.tensor([0.0, 3.0, 1.0]))
    >>> [round(float(p), 4) for p in lengths.log_p.exp()]
    [0.0667, 0.6667, 0.2667]
    """

    log_p: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.prior = steps, 1.0 / (steps + 1)
        start = torch.full((steps + 1,), -math.log(steps + 1), dtype=torch.float64)
        self.register_buffer("log_p", start)

    def count(self, lengths: Tensor, weights: Tensor) -> Tensor:
        """(T + 1,) how often each length occurs."""
        return self.log_p.new_zeros(self.steps + 1).index_add_(0, lengths, weights.to(self.log_p))

    def maximise(self, n: Tensor) -> None:
        """From the counts of lengths (T + 1,)."""
        n = n + self.prior
        self.log_p.copy_((n / n.sum()).log())

    def log_prior(self) -> Tensor:
        """log of the Dirichlet(1 + a) density, up to a constant."""
        return self.prior * self.log_p.sum()
