"""The kernels of a transformer's training step (`training.cpp`), on tensors: float32 on the CPU, outside autograd.

`ready(x)` says whether they can be had for x; what they compute is written in the source's head.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from protea.kernels.build import compiled

SILU, GELU_TANH = range(2)  # as in training.cpp
POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
ARGUMENTS = {
    "rms_norm": (*[POINTER] * 4, LONG, LONG, FLOAT, INT),
    "rms_norm_back": (*[POINTER] * 6, LONG, LONG, INT),
    "gated": (*[POINTER] * 3, LONG, INT, INT),
    "gated_back": (*[POINTER] * 6, LONG, INT, INT),
    "rotate": (*[POINTER] * 4, LONG * 4, LONG * 3, LONG * 3, LONG, FLOAT, INT),
    "nats": (*[POINTER] * 5, LONG, LONG, INT),
    "nats_back": (*[POINTER] * 6, LONG, LONG, INT),
}


@lru_cache(1)
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be had."""
    lib = compiled("training").lib
    if lib is not None:
        for name, arguments in ARGUMENTS.items():
            function = getattr(lib, name)
            function.argtypes, function.restype = arguments, None
    return lib


def ready(*tensors: Tensor) -> bool:
    """Whether the kernels can be had for these: plain float32 tensors of the CPU that no compiler is tracing."""
    for x in tensors:
        if x.dtype != torch.float32 or x.device.type != "cpu" or type(x) not in (Tensor, torch.nn.Parameter):
            return False
    return not watched() and library() is not None


def watched() -> bool:
    """Whether single operations are looked at: by a compiler, a transform of functions, or a mode that counts them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _lib() -> ctypes.CDLL:
    lib = library()
    assert lib is not None
    return lib


def rms_norm(x: Tensor, g: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y = g x r (..., d) and r = (mean x^2 + eps)^(-1/2) (...), of x (..., d) and g (d,)."""
    x, g = x.contiguous(), g.contiguous()
    d, y, r = x.shape[-1], torch.empty_like(x), x.new_empty(x.shape[:-1])
    _lib().rms_norm(x.data_ptr(), g.data_ptr(), y.data_ptr(), r.data_ptr(), r.numel(), d, eps, torch.get_num_threads())
    return y, r


def rms_norm_back(dy: Tensor, x: Tensor, g: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """dx (..., d) and dg (d,) of dy, and what went into `rms_norm` and came out of it."""
    dy, x, g = dy.contiguous(), x.contiguous(), g.contiguous()
    dx, dg = torch.empty_like(x), torch.empty_like(g)
    _lib().rms_norm_back(
        dy.data_ptr(), x.data_ptr(), g.data_ptr(), r.data_ptr(), dx.data_ptr(), dg.data_ptr(), r.numel(), x.shape[-1],
        torch.get_num_threads(),
    )  # fmt: skip
    return dx, dg


def gated(g: Tensor, u: Tensor, kind: int) -> Tensor:
    """a(g) u, of contiguous g and u of one shape."""
    y = torch.empty_like(g)
    _lib().gated(g.data_ptr(), u.data_ptr(), y.data_ptr(), g.numel(), kind, torch.get_num_threads())
    return y


def gated_back(dy: Tensor, g: Tensor, u: Tensor, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    """dg, du and, once more, a(g) u, of contiguous dy, g and u."""
    dg, du, y = torch.empty_like(g), torch.empty_like(g), torch.empty_like(g)
    _lib().gated_back(
        dy.data_ptr(), g.data_ptr(), u.data_ptr(), dg.data_ptr(), du.data_ptr(), y.data_ptr(), g.numel(), kind,
        torch.get_num_threads(),
    )  # fmt: skip
    return dg, du, y


def turns(x: Tensor, cos: Tensor) -> bool:
    """Whether `rotate` takes x and angles laid out like this."""
    same = x.ndim == 4 and x.stride(3) == 1 and 2 * cos.shape[-1] == x.shape[3] and cos.shape[-2] == x.shape[2]
    return same and (cos.ndim == 2 or (cos.ndim == 4 and cos.shape[1] == 1 and cos.shape[0] in (1, x.shape[0])))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float = 1.0, out: Tensor | None = None) -> Tensor:
    """x (B, H, T, D), of any strides with entries side by side, turned by cos and sin (T, D / 2) or (B, 1, T, D / 2).

    Args:
        x, cos, sin: as in `nn.position.rotate`.
        sign: -1 turns back.
        out: where to write: x itself, or None for a tensor laid out as x.
    """
    out = torch.empty_like(x) if out is None else out
    cos, sin = cos.contiguous(), sin.contiguous()
    b, h, t, d = x.shape
    _lib().rotate(
        x.data_ptr(), out.data_ptr(), cos.data_ptr(), sin.data_ptr(), (LONG * 4)(b, h, t, d // 2),
        (LONG * 3)(*x.stride()[:3]), (LONG * 3)(*out.stride()[:3]),
        cos[0].numel() if cos.ndim == 4 and cos.shape[0] > 1 else 0, sign, torch.get_num_threads(),
    )  # fmt: skip
    return out


def nats(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y = z - l_t (0 where the target is negative) and z = logsumexp l, (N,), of (N, V) and int64 targets below V.

    The third is z in two parts, (N, 2), for `nats_back`.
    """
    y, z, parts = logits.new_empty(len(logits)), logits.new_empty(len(logits)), logits.new_empty(len(logits), 2)
    _lib().nats(
        logits.data_ptr(), target.data_ptr(), y.data_ptr(), z.data_ptr(), parts.data_ptr(), *logits.shape,
        torch.get_num_threads(),
    )  # fmt: skip
    return y, z, parts


def nats_back(dy: Tensor, dz: Tensor, logits: Tensor, target: Tensor, parts: Tensor) -> Tensor:
    """dl (N, V) of dy and dz (N,)."""
    dy, dz, dl = dy.contiguous(), dz.contiguous(), torch.empty_like(logits)
    _lib().nats_back(
        dy.data_ptr(), dz.data_ptr(), logits.data_ptr(), target.data_ptr(), parts.data_ptr(), dl.data_ptr(),
        *logits.shape, torch.get_num_threads(),
    )  # fmt: skip
    return dl
