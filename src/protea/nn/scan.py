r"""Scans along time in O(log T) vectorised steps: h_t = a_t h_{t-1} + b_t, and any associative rule.

Odd-even reduction (Blelloch 1990, "Prefix sums and their applications"): neighbours are combined into a sequence of
half the length, that is scanned, and the tokens between are filled in. About 2 T combinations in 2 log2 T steps, none
of them a division, so nothing overflows where |a_t| <= 1. Time is axis 1 everywhere.

The gradient of a linear scan is a scan backwards: with g_t = dL/dh_t seen directly,

    lambda_t = g_t + a_{t+1} lambda_{t+1},   dL/db_t = lambda_t,   dL/da_t = lambda_t h_{t-1}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Elements = tuple[Tensor, ...]


def associative_scan(combine: Callable[[Elements, Elements], Elements], elements: Elements) -> Elements:
    """All prefixes e_1, e_1 o e_2, e_1 o e_2 o e_3 ... of an associative rule.

    Args:
        combine: (earlier, later) to their combination, on tensors with any number of tokens along axis 1.
        elements: tensors (B, T, ...).

    >>> associative_scan(lambda a, b: (torch.maximum(a[0], b[0]),), (torch.tensor([[1, 3, 2, 5, 4]]),))[0].tolist()
    [[1, 3, 3, 5, 5]]
    """
    t = elements[0].shape[1]
    if t == 1:
        return elements
    pairs = combine(tuple(e[:, 0 : t - 1 : 2] for e in elements), tuple(e[:, 1::2] for e in elements))
    odd = associative_scan(combine, pairs)
    if t == 2:
        return tuple(torch.cat((e[:, :1], o), 1) for e, o in zip(elements, odd, strict=True))
    later = combine(tuple(o[:, : (t - 1) // 2] for o in odd), tuple(e[:, 2::2] for e in elements))
    out = []
    for e, o, rest in zip(elements, odd, later, strict=True):
        full = o.new_empty(o.shape[0], t, *o.shape[2:])
        full[:, 0], full[:, 1::2], full[:, 2::2] = e[:, 0], o, rest
        out.append(full)
    return tuple(out)


def scan_(a: Tensor, b: Tensor, reverse: bool = False) -> Tensor:
    """h_t = a_t h_{t-1} + b_t from h = 0, no gradient; backwards in time, h_t = a_t h_{t+1} + b_t, if `reverse`.

    a (B, T, ...) may have axes of size 1 where b (B, T, ...) has more.
    """
    t = b.shape[1]
    if t == 1:
        return b
    off = t % 2 if reverse else 0  # where the later ones of the pairs stand, in the order of the scan
    first, second = (slice(off + 1, t, 2), slice(off, t, 2)) if reverse else (slice(0, t - 1, 2), slice(1, t, 2))
    carried = scan_(a[:, first] * a[:, second], torch.addcmul(b[:, second], a[:, second], b[:, first]), reverse)
    h = torch.empty_like(b)
    h[:, second] = carried
    if reverse:
        rest, known = slice(1 - off, t - 1, 2), carried[:, 1 - off :]
        h[:, -1] = b[:, -1]
    else:
        rest, known = slice(2, t, 2), carried[:, : (t - 1) // 2]
        h[:, 0] = b[:, 0]
    if t > 2:
        torch.addcmul(b[:, rest], a[:, rest], known, out=h[:, rest])
    return h


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h_0: Tensor) -> Tensor:
        b = b.clone()
        b[:, 0] += a[:, 0] * h_0
        h = scan_(a, b)
        ctx.save_for_backward(a, h, h_0)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, h, h_0 = ctx.saved_tensors
        lam = scan_(torch.cat((a[:, 1:], a[:, :1]), 1), g, reverse=True)
        before = torch.cat((h_0[:, None], h[:, :-1]), 1)
        return (lam * before).sum_to_size(a.shape), lam, (a[:, 0] * lam[:, 0]).sum_to_size(h_0.shape)


def linear_scan(a: Tensor, b: Tensor, h_0: Tensor | None = None) -> Tensor:
    """h_t = a_t h_{t-1} + b_t for t = 1 .. T, (B, T, ...), differentiable once.

    Args:
        a: (B, T, ...), with the axes of b; those of size 1 are broadcast.
        b: (B, T, ...).
        h_0: (B, ...), the state before the first token; None for zeros.

    >>> linear_scan(torch.full((1, 4), 0.5), torch.ones(1, 4)).tolist()
    [[1.0, 1.5, 1.75, 1.875]]
    """
    return _LinearScan.apply(a, b, torch.zeros_like(b[:, 0]) if h_0 is None else h_0)  # pyright: ignore[reportReturnType]
