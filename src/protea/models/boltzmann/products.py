r"""The products of a Boltzmann machine, coins and steps: compiled where units are mostly off, else PyTorch's.

Units are binary, and few of them are on: of binarised digits 13 % of the pixels, of 256 hidden units 31 %. Then

    u W = sum of the rows of W whose unit is on,

several times less work than a dense product (`kernels/boltzmann.cpp`). Where more than a share of the units are not
zero, gradients are wanted, or tensors are not float32 on the CPU, the same functions are PyTorch's: equal to rounding.
Coins are the same numbers, bit for bit, so both forms train the same machine.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import c_double, c_float, c_int, c_int64, c_uint64, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from protea.kernels import compiled
from protea.rng import Streams

Phase = tuple[Tensor, Tensor, Tensor]  # units u (B, n), centre h (B, m), weights of the rows (B,)
FEW = 24  # rows, from which sums of four units' weights are worth a table
SHARE = 0.5  # of entries that are not zero, up to which visiting those alone is faster


@lru_cache(1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had."""
    lib = compiled("boltzmann").lib
    if lib is not None:
        n, p = c_int64, c_void_p
        lib.protea_rows.argtypes = (p, n, n, p, n, p, n, c_int)
        lib.protea_columns.argtypes = (p, n, n, p, n, p, c_int)
        lib.protea_outer.argtypes = (2 * p, 2 * p, 2 * p, 2 * n, n, n, p, n, c_int)
        lib.protea_flip.argtypes = (p, n, n, p, c_uint64, c_uint64, p, p, c_int)
        lib.protea_less.argtypes, lib.protea_less.restype = (p, n, n, p, p, p, p, c_int), None
        lib.protea_flip.restype = lib.protea_ascend.restype = None
        lib.protea_square.argtypes, lib.protea_square.restype = (p, n, c_int), c_double
        lib.protea_ascend.argtypes = (p, p, p, n, c_float, c_float, c_float, c_float, c_int)
    return lib


def _fit(*tensors: Tensor) -> ctypes.CDLL | None:
    """The kernels, where they can take these tensors."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return None
    plain = all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
    return library() if plain and tensors[0].numel() else None


def rows(u: Tensor, w: Tensor) -> Tensor:
    """u w, (B, n) times (n, m).

    >>> rows(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    tensor([[4., 5., 6.],
            [2., 4., 6.]])
    """
    lib = _fit(u, w)
    if lib is not None:
        out = w.new_empty(len(u), w.shape[1])
        if not lib.protea_rows(u.data_ptr(), *u.shape, w.data_ptr(), w.shape[1], out.data_ptr(),
                               int(SHARE * u.numel()), torch.get_num_threads()):  # fmt: skip
            return out
    return u @ w


def columns(h: Tensor, w: Tensor) -> Tensor:
    """h w^T, (B, m) times the transpose of (n, m).

    >>> columns(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    tensor([[2., 5.]])
    """
    lib = _fit(h, w) if len(h) >= FEW else None
    if lib is not None:
        out = w.new_empty(len(h), len(w))
        if not lib.protea_columns(
            h.data_ptr(), *h.shape, w.data_ptr(), len(w), out.data_ptr(), torch.get_num_threads()
        ):
            return out
    return h @ w.T


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of some tensors, one at least."""
    first, *rest = parts
    return sum(rest, first)


def outer(*phases: Phase) -> Tensor:
    """The sum over one phase or two of u^T (weight h): u (B, n), h (B, m), weight (B,) of each row, to (n, m).

    >>> outer((torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])))
    tensor([[0., 0.],
            [3., 6.]])
    """
    u, h, _ = phases[0]
    lib = _fit(*(t for phase in phases for t in phase))
    if lib is not None:
        out = h.new_empty(u.shape[1], h.shape[1])
        places = [(c_void_p * 2)(*(phase[i].data_ptr() for phase in phases)) for i in range(3)]
        sizes = [len(phase[0]) for phase in phases]
        if not lib.protea_outer(*places, (c_int64 * 2)(*sizes), *out.shape, out.data_ptr(),
                                int(SHARE * sum(sizes) * u.shape[1]), torch.get_num_threads()):  # fmt: skip
            return out
    return total(u.T @ (weight[:, None] * h) for u, h, weight in phases)


def flip(logits: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
    """p = sigmoid(logits), (B, n), and coins that are 1 with probability p: the same as `rng.bernoulli(p)`.

    >>> p, x = flip(torch.zeros(2, 3), Streams(0, 2))
    >>> bool((x == Streams(0, 2).bernoulli(p)).all())
    True
    """
    lib = _fit(logits)
    if lib is None or logits.ndim != 2 or rng.device.type != "cpu":
        p = torch.sigmoid(logits)
        return p, rng.bernoulli(p)
    p, x = torch.empty_like(logits), torch.empty_like(logits)
    lib.protea_flip(logits.data_ptr(), *logits.shape, rng.ids.contiguous().data_ptr(), rng.seed & (2**64 - 1),
                    rng.draws, p.data_ptr(), x.data_ptr(), torch.get_num_threads())  # fmt: skip
    rng.draws += 1
    return p, x


def less(g: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """g - a b^T - c d^T, (n, m), in place.

    >>> one = torch.ones(2)
    >>> less(torch.ones(2, 2), one, 2 * one, one, torch.tensor([0.0, 1.0]))
    tensor([[-1., -2.],
            [-1., -2.]])
    """
    lib = _fit(g, a, b, c, d)
    if lib is None:
        return g.addr_(a, b, alpha=-1).addr_(c, d, alpha=-1)
    lib.protea_less(g.data_ptr(), *g.shape, *(t.data_ptr() for t in (a, b, c, d)), torch.get_num_threads())
    return g


def square(g: Tensor) -> float:
    """The sum of g^2."""
    lib = _fit(g)
    return float(g.norm()) ** 2 if lib is None else lib.protea_square(g.data_ptr(), g.numel(), torch.get_num_threads())


@torch.no_grad()
def ascend(p: Tensor, g: Tensor, v: Tensor, rate: float, momentum: float, decay: float, clip: float | None) -> None:
    """v <- momentum v + clip(g - decay p) and p <- p + rate v, in place, spending g; v is only for momentum."""
    lib = _fit(p, g, v)
    if lib is not None:
        lib.protea_ascend(p.data_ptr(), g.data_ptr(), v.data_ptr(), p.numel(), rate, momentum, decay,
                          -1.0 if clip is None else clip, torch.get_num_threads())  # fmt: skip
        return
    if decay:
        g.sub_(p, alpha=decay)
    if clip is not None:
        g.clamp_(-clip, clip)
    if momentum:
        g = v.mul_(momentum).add_(g)
    p.add_(g, alpha=rate)
