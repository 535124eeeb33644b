"""Compiled kernels: a source of this folder, built once with the machine's own compiler, kept in the user's cache.

Nothing needs them. Without a compiler, or with `PROTEA_KERNELS=off`, `compiled(name)` is None with the reason, and
callers take their PyTorch form: the same results to rounding, in more time.

A kernel sees plain C arrays: what must hold of them (device, type, strides) its caller has made sure of. Sums run in an
order that no thread changes, so that a result is the same bit for bit on any number of threads.
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
from typing import NamedTuple

HERE = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp")


class Compiled(NamedTuple):
    """The library, or None and the reason why there is none."""

    lib: ctypes.CDLL | None
    reason: str = ""


@lru_cache
def compiled(name: str) -> Compiled:
    """The kernels of `name`.cpp.

    >>> compiled("decoder").lib is None or compiled("decoder").reason == ""
    True
    """
    import torch  # noqa: F401  (its OpenMP runtime is the one to share)

    if os.environ.get("PROTEA_KERNELS", "").lower() in ("off", "0"):
        return Compiled(None, "PROTEA_KERNELS is off")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return Compiled(None, "there is no C++ compiler (g++, or what CXX names)")
    try:
        return Compiled(ctypes.CDLL(str(_built(compiler, HERE / f"{name}.cpp"))))
    except subprocess.CalledProcessError as error:
        return Compiled(None, f"{compiler} failed: {error.stderr.decode(errors='replace').strip()[-300:]}")
    except OSError as error:
        return Compiled(None, str(error))


def _built(compiler: str, source: Path) -> Path:
    sources = [source, *sorted(HERE.glob("*.h"))]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    told = [*(file.read_bytes() for file in sources), _machine().encode(), version, repr(FLAGS).encode()]
    name = f"{source.stem}-{hashlib.sha256(bytes(0).join(told)).hexdigest()[:32]}.so"
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "protea" / "kernels" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            made = Path(place) / "kernels.so"
            subprocess.run([compiler, *FLAGS, str(source), "-o", str(made)], capture_output=True, check=True)
            os.replace(made, path)  # at once, so that another process never opens half a file
    return path


def _machine() -> str:
    """What -march=native depends on: another kind of machine builds its own."""
    told, facts = platform.processor() + platform.machine(), Path("/proc/cpuinfo")
    if facts.exists():
        lines = facts.read_text().splitlines()
        told += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return told
