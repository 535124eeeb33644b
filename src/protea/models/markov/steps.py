"""The two loops over time, on lists of the steps' tensors; `scan.py` says what they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def alone() -> Iterator[None]:
    """One thread for a loop over time, whose products of n_t x K by K x K cost less than waking another (ten times
    less, where idle threads sleep)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def forward(
    b: Sequence[Tensor], alpha: Sequence[Tensor], scale: Sequence[Tensor], a: Tensor, every: int, before: Tensor | None
) -> None:
    """Fill the steps' alpha (n_t, K) and, at every `every`-th step and the last, their sums (n_t, 1).

    `before` is alpha of the step before the first, or None where b of the first step holds pi.
    """
    for t, (now, b_t) in enumerate(zip(alpha, b)):
        if before is None:
            now.copy_(b_t)
        else:
            torch.mm(before if len(before) == len(now) else before[: len(now)], a, out=now)
            now.mul_(b_t)
        if (t + 1) % every == 0 or t + 1 == len(alpha):
            torch.sum(now, 1, keepdim=True, out=scale[t])
            now.div_(scale[t])
        before = now


def backward(
    w: Sequence[Tensor], alpha: Sequence[Tensor], scale: Sequence[Tensor], a: Tensor, every: int, last: Tensor,
    peak: Tensor | None,
) -> Tensor:  # fmt: skip
    """Turn, from the last step back, each step's alpha into gamma and its b into w = b * beta / c.

    `last` (n_1, K) is beta of each sequence's last step; `peak`, where given, collects the largest beta (n_1, K).
    Returns the derivative with respect to A, (K, K), over these steps.
    """
    back, pairs, scratch = a.T, torch.zeros_like(a), torch.empty_like(last)
    for t in range(len(w) - 1, -1, -1):
        here, going = len(w[t]), len(w[t + 1]) if t + 1 < len(w) else 0
        beta = scratch if here == len(scratch) else scratch[:here]
        if going == here:
            torch.mm(w[t + 1], back, out=beta)
            pairs.addmm_(alpha[t].T, w[t + 1])
        else:
            beta[going:] = last[going:here]
            if going:
                torch.mm(w[t + 1], back, out=beta[:going])
                pairs.addmm_(alpha[t][:going].T, w[t + 1])
        if peak is not None:
            torch.maximum(peak[:here], beta, out=peak[:here])
        alpha[t].mul_(beta)
        w[t].mul_(beta)
        if (t + 1) % every == 0 or t + 1 == len(w):
            w[t].div_(scale[t])
    return pairs
