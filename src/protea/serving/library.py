"""The compiled kernels of `kernels.cpp`: built once with the machine's own C++ compiler, kept in the user's cache.

Nothing needs them. Without a compiler (`library()` is None and `reason()` says why) the engine works each request out
by itself with PyTorch: the same guarantees, fewer tokens per second.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp")
MAX_INTS, MAX_FLOATS, MAX_POINTERS = 14, 4, 12


class Op(ctypes.Structure):
    """One operation of a plan, as in kernels.cpp."""

    _fields_ = [
        ("kind", ctypes.c_int32), ("wanted", ctypes.c_int32), ("n", ctypes.c_int32 * MAX_INTS),
        ("f", ctypes.c_float * MAX_FLOATS), ("p", ctypes.c_void_p * MAX_POINTERS),
    ]  # fmt: skip


class Step(ctypes.Structure):
    """One call of a plan, as in kernels.cpp."""

    _fields_ = [
        ("rows", ctypes.c_int32), ("n_wanted", ctypes.c_int32), ("n_ops", ctypes.c_int32),
        ("threads", ctypes.c_int32), ("tokens", ctypes.c_void_p), ("slots", ctypes.c_void_p),
        ("wanted", ctypes.c_void_p), ("ops", ctypes.c_void_p), ("next", ctypes.c_void_p),
        ("scores", ctypes.c_void_p), ("scores_stride", ctypes.c_int64),
    ]  # fmt: skip


@lru_cache(1)
def _load() -> tuple[ctypes.CDLL | None, str]:
    import torch  # noqa: F401  (its OpenMP runtime is the one to share)

    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None, "there is no C++ compiler (g++, or what CXX names)"
    try:
        path = _built(compiler)
        lib = ctypes.CDLL(str(path))
        if lib.protea_sizes(0) != ctypes.sizeof(Op) or lib.protea_sizes(1) != ctypes.sizeof(Step):
            return None, f"{path} lays out its structures otherwise"
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {error.stderr.decode(errors='replace').strip()[-300:]}"
    except OSError as error:
        return None, str(error)
    return lib, ""


def _built(compiler: str) -> Path:
    cpu = platform.processor() + platform.machine()
    if Path("/proc/cpuinfo").exists():  # -march=native: another kind of machine builds its own
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    name = hashlib.sha256(b"\0".join((SOURCE.read_bytes(), cpu.encode(), version, repr(FLAGS).encode()))).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "protea" / "kernels"
    path = folder / f"{name[:32]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / "kernels.so"
            subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(made)], capture_output=True, check=True)
            os.replace(made, path)  # at once, so that another process never opens half a file
    return path


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had."""
    return _load()[0]


def reason() -> str:
    """Why there is no library; empty where there is one."""
    return _load()[1]
