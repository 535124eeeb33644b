"""The two loops over time; `scan.py` says what they compute.

Packed tensors (N, K) are best laid out by columns (`memory.py`). What need not be done step by step is done for many
steps at once, while they are in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby

import torch
from torch import Tensor

from protea.models.markov.memory import columns

CHUNK = 1 << 16  # entries of beta that are kept at a time


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


def laid_out(a: Tensor, like: Tensor) -> Tensor:
    """A matrix by columns or by rows, whichever the other one is: products of unlike layouts cost more."""
    return a.T.contiguous().T if like.stride(0) == 1 else a.contiguous()


def forward(
    b: Sequence[Tensor], alpha: Sequence[Tensor], scale: Sequence[Tensor], a: Tensor, every: int, before: Tensor | None
) -> None:
    """Fill the steps' alpha (n_t, K) and, at every `every`-th step and the last, their sums (n_t, 1).

    `before` is alpha of the step before the first, or None where b of the first step holds pi.
    """
    a = laid_out(a, b[0]) if len(b) else a
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
    w: Tensor, alpha: Tensor, scale: Tensor, active: Sequence[int], a: Tensor, every: int, last: Tensor,
    peak: Tensor | None,
) -> Tensor:  # fmt: skip
    """Turn, from the last step back, packed alpha (N, K) into gamma and b (N, K) into w = b * beta / c.

    `active` are the numbers n_t of rows of each step, `last` (n_1, K) is beta of each sequence's last step; `peak`,
    where given, collects the largest beta (n_1, K). Returns the derivative with respect to A, (K, K), over these steps.
    """
    pairs = torch.zeros_like(a)
    if not active:
        return pairs
    back, offset = laid_out(a.T, w), [0, *accumulate(active)]
    each, c = w.split(list(active)), scale.split(list(active))
    for first, stop in reversed(list(_chunks(active, max(1, CHUNK // w.shape[1])))):
        start, end = offset[first], offset[stop]
        by_rows, shape = w.is_contiguous(), (end - start, w.shape[1])
        beta = w.new_empty(shape) if by_rows else columns(*shape, w.dtype, w.device)
        with alone():
            for t, now in zip(range(stop - 1, first - 1, -1), reversed(beta.split(list(active[first:stop])))):
                here, going = active[t], active[t + 1] if t + 1 < len(active) else 0
                if going < here:
                    now[going:] = last[going:here]
                if going:
                    torch.mm(each[t + 1], back, out=now if going == here else now[:going])
                if peak is not None:
                    torch.maximum(peak[:here], now, out=peak[:here])
                each[t].mul_(now)
                if (t + 1) % every == 0 or t + 1 == len(active):
                    each[t].div_(c[t])
        _add_pairs(pairs, alpha, w, active, offset, range(first, min(stop, len(active) - 1)))
        alpha[start:end].mul_(beta)
    return pairs


def _chunks(active: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of steps of at most `most` rows each, or of one step."""
    first, rows = 0, 0
    for t, n in enumerate(active):
        if t > first and rows + n > most:
            yield first, t
            first, rows = t, 0
        rows += n
    yield first, len(active)


def _add_pairs(
    pairs: Tensor, alpha: Tensor, w: Tensor, active: Sequence[int], offset: Sequence[int], which: range
) -> None:
    """Add sum_t alpha_t^T w_{t+1}; steps that are followed by as many rows as they have are one product."""
    for same, group in groupby(which, lambda t: active[t] if active[t] == active[t + 1] else -1 - t):
        run = list(group)
        o, after = offset[run[0]], offset[run[0] + 1]
        rows = same * len(run) if same >= 0 else active[run[0] + 1]
        pairs.addmm_(alpha[o : o + rows].T, w[after : after + rows])
