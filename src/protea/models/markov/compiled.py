"""The compiled scans over time (`kernels/markov.cpp`): forward-backward and Viterbi of packed steps on the CPU.

They take float32 or float64 with rows contiguous, and ask for nothing else; `ready` says whether they can be had. What
they compute, and why nothing is lost to underflow, is said in `scan.py` and `viterbi.py`, whose PyTorch forms are the
reference. Results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from protea.kernels import compiled
from protea.models.markov.dynamics import Dynamics
from protea.models.markov.packed import Packed

SUMS = 1 << 14  # most entries of a table whose rows are counted within the scan
OUTPUTS = {"gamma", "first", "finals", "pairs", "counts", "log_p", "lost", "path"}
NAMES = {torch.float32: "float", torch.float64: "double"}


class Call(ctypes.Structure):
    """What a kernel is given, as in markov.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "k", "rows", "total", "threads", "watch", "last_rows")),
        *((name, ctypes.c_void_p) for name in (
            "order", "start", "length", "codes", "phi", "log_b", "pi", "a", "last", "weights",
            "gamma", "first", "finals", "pairs", "counts", "log_p", "lost", "path",
        )),
    ]  # fmt: skip


@lru_cache(1)
def _library() -> ctypes.CDLL | None:
    lib = compiled("markov").lib
    if lib is None or lib.protea_markov_size() != ctypes.sizeof(Call):
        return None
    return lib


def ready(log_b: Tensor) -> bool:
    """Whether there is a kernel for such rows."""
    return log_b.device.type == "cpu" and log_b.dtype in NAMES and _library() is not None


def forward(
    log_b: Tensor, dynamics: Dynamics, packed: Packed, index: Tensor | None = None, alpha: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """log p (B,) and which sequences are impossible (B,); fills alpha (N, K), the filtered states, if given."""
    log_p, lost = _per_sequence(packed)
    _run("forward_backward", log_b, dynamics, packed, index, gamma=alpha, log_p=log_p, lost=lost)
    return log_p, lost


def forward_backward(
    log_b: Tensor, dynamics: Dynamics, packed: Packed, weights: Tensor | None, index: Tensor | None = None,
    **given: Tensor | int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The fields of `scan.Pass`. Fills gamma (N, K), which may be log b, or counts (M, K) by row of a table."""
    (log_p, lost), k = _per_sequence(packed), log_b.shape[1]
    pairs, last = torch.zeros(k, k, dtype=torch.float64), log_b.new_zeros(packed.count, k)
    share = None if weights is None else weights.to(log_b)
    _run("forward_backward", log_b, dynamics, packed, index, weights=share, pairs=pairs, finals=last, log_p=log_p,
         lost=lost, **given)  # fmt: skip
    return log_p, lost, pairs, last


def viterbi(log_b: Tensor, dynamics: Dynamics, packed: Packed, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """The path (N,) and its log p (B,)."""
    path, log_p = torch.empty(packed.total, dtype=torch.int64), torch.empty(packed.count, dtype=torch.float64)
    last = None if dynamics.last is None else dynamics.last.log()
    logs = Dynamics(dynamics.start, dynamics.transition.log(), last)
    _run("viterbi", log_b, logs, packed, index, path=path, log_p=log_p)
    return path, log_p


def _per_sequence(packed: Packed) -> tuple[Tensor, Tensor]:
    return torch.empty(packed.count, dtype=torch.float64), torch.zeros(packed.count, dtype=torch.bool)


def _run(
    kernel: str, log_b: Tensor, dynamics: Dynamics, packed: Packed, index: Tensor | None, **given: Tensor | int | None
) -> None:
    """Call a kernel; `given` are further fields of `Call`."""
    lib, last = _library(), dynamics.last
    assert lib is not None
    fields: dict[str, Tensor | int | None] = {
        "order": packed.order, "start": packed.start, "length": packed.lengths, "log_b": log_b,
        "phi" if index is not None and index.is_floating_point() else "codes": index,
        "pi": dynamics.start.log(), "a": dynamics.transition, "last": last,
    } | given  # fmt: skip
    call = Call(count=packed.count, k=log_b.shape[1], total=packed.total, threads=torch.get_num_threads())
    call.rows = 0 if index is None else len(log_b)
    call.last_rows = int(last is not None and last.ndim == 2)
    held = {name: v.contiguous() for name, v in fields.items() if isinstance(v, Tensor)}
    assert all(v is fields[name] or name not in OUTPUTS for name, v in held.items())
    for name, value in fields.items():
        setattr(call, name, held[name].data_ptr() if name in held else value)
    getattr(lib, f"protea_{kernel}_{NAMES[log_b.dtype]}")(ctypes.byref(call))
