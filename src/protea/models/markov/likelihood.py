r"""log p(x) of a chain as a differentiable function, whose gradients are the expected counts.

By Fisher's identity  d log p(x) / d log b_t(k) = gamma_t(k),   d log p(x) / d log A_ij = \sum_t xi_t(i, j),
d log p(x) / d log pi_k = gamma_1(k): one forward-backward pass is the whole gradient, and no step is kept for autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from protea.models.markov import scan
from protea.models.markov.dynamics import Dynamics
from protea.models.markov.packed import Packed


class _LogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_b: Tensor, start: Tensor, transition: Tensor, last: Tensor | None, packed: Packed
    ) -> Tensor:
        ctx.save_for_backward(log_b, start, transition, *(() if last is None else (last,)))
        ctx.packed = packed
        return scan.evidence(log_b, Dynamics(start, transition, last), packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        log_b, start, transition, *rest = ctx.saved_tensors
        last = rest[0] if rest else None
        p = scan.smooth(log_b, Dynamics(start, transition, last), ctx.packed, grad[0])
        by_end = None if last is None else p.last.sum(0) if last.ndim == 1 else p.last
        return p.gamma, p.start, p.transition, by_end, None


def log_likelihood(log_b: Tensor, dynamics: Dynamics, packed: Packed) -> Tensor:
    """log p(x) (B,), in nats, of packed log b (N, K); differentiable once in log b, pi, A and e."""
    out = _LogLikelihood.apply(log_b, dynamics.start, dynamics.transition, dynamics.last, packed)
    assert isinstance(out, Tensor)
    return out
