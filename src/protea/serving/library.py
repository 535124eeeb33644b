"""The decoder's compiled kernels (`kernels/decoder.cpp`) and the structures they read.

Without them (`library()` is None and `reason()` says why) the engine works each request out by itself with PyTorch:
the same guarantees, fewer tokens per second.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

from protea.kernels import compiled
from protea.kernels.build import Compiled

MAX_INTS, MAX_FLOATS, MAX_POINTERS = 14, 4, 12


class Op(ctypes.Structure):
    """One operation of a plan, as in decoder.cpp."""

    _fields_ = [
        ("kind", ctypes.c_int32), ("wanted", ctypes.c_int32), ("n", ctypes.c_int32 * MAX_INTS),
        ("f", ctypes.c_float * MAX_FLOATS), ("p", ctypes.c_void_p * MAX_POINTERS),
    ]  # fmt: skip


class Step(ctypes.Structure):
    """One call of a plan, as in decoder.cpp."""

    _fields_ = [
        ("rows", ctypes.c_int32), ("n_wanted", ctypes.c_int32), ("n_ops", ctypes.c_int32),
        ("threads", ctypes.c_int32), ("tokens", ctypes.c_void_p), ("slots", ctypes.c_void_p),
        ("wanted", ctypes.c_void_p), ("ops", ctypes.c_void_p), ("next", ctypes.c_void_p),
        ("scores", ctypes.c_void_p), ("scores_stride", ctypes.c_int64),
        ("before", ctypes.c_void_p), ("after", ctypes.c_void_p),
    ]  # fmt: skip


@lru_cache(1)
def _load() -> Compiled:
    found = compiled("decoder")
    sizes = (ctypes.sizeof(Op), ctypes.sizeof(Step))
    if found.lib is not None and (found.lib.protea_sizes(0), found.lib.protea_sizes(1)) != sizes:
        return Compiled(None, "decoder.cpp lays out its structures otherwise")
    return found


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had."""
    return _load().lib


def reason() -> str:
    """Why there is no library; empty where there is one."""
    return _load().reason
