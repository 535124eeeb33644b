"""Softmax attention of whole texts (`softmax_attention.cpp`), on tensors: float32 on the CPU, outside autograd."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from protea.kernels.build import compiled

LONGEST = 1024  # tokens; of longer texts torch's kernel, which cuts keys into blocks as well, is as fast
WORTH = 1 << 18  # products below which a second thread costs more than it gives


class View(ctypes.Structure):
    """Where a tensor (B, H, T, D) starts, and strides of its first three axes; as in softmax_attention.cpp."""

    _fields_ = [("p", ctypes.c_void_p), ("b", ctypes.c_int64), ("h", ctypes.c_int64), ("t", ctypes.c_int64)]


@lru_cache(1)
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be had."""
    lib = compiled("softmax_attention").lib
    if lib is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        for function in (lib.attend, lib.attend_back):
            function.argtypes, function.restype = (pointer, pointer, pointer, number, ctypes.c_float, number), None
    return lib


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel takes queries, keys and values of these shapes: one width, one length, up to `LONGEST`."""
    same = k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]
    return (
        same and 0 < q.shape[2] <= LONGEST and q.numel() > 0 and q.shape[1] % k.shape[1] == 0 and library() is not None
    )


def _call(name: str, tensors: list[Tensor], lse: Tensor, causal: bool, scale: float) -> None:
    q, k = tensors[:2]
    shape = (ctypes.c_int64 * 5)(q.shape[0], q.shape[1], k.shape[1], q.shape[2], q.shape[3])
    views = (View * len(tensors))(*((x.data_ptr(), *x.stride()[:3]) for x in tensors))
    worth = min(q.shape[0] * k.shape[1], 1 + q.numel() * q.shape[2] // WORTH)
    getattr(library(), name)(shape, views, lse.data_ptr(), causal, scale, min(torch.get_num_threads(), worth))


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _like(x: Tensor) -> Tensor:
    """A tensor (B, H, T, D) that lies as (B, T, H, D)."""
    b, h, t, d = x.shape
    return x.new_empty(b, t, h, d).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """o (B, H, T, D), which lies as (B, T, H, D), and the scores' normalisers (B, H, T)."""
    tensors = [*map(_dense, (q, k, v)), out := _like(q)]
    _call("attend", tensors, lse := q.new_empty(q.shape[:3]), causal, scale)
    return out, lse


def attend_back(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of do, and of what went into `attend` and came out of it."""
    grads = _like(q), _like(k), _like(v)
    _call("attend_back", [*map(_dense, (q, k, v, out, do)), *grads], lse, causal, scale)
    return grads
