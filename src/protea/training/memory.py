"""The peak memory of a process, from the operating system."""

from __future__ import annotations

import os
import sys


def high_water_mb(pid: int | None = None) -> float:
    """Peak resident memory so far, in MB, of a living process; None is this one. NaN where the system does not tell.

    On Linux from /proc: the `ru_maxrss` of a child starts at the size of its parent, because the parent's memory is
    shared until `exec`; the high-water mark of its own memory does not.
    """
    try:
        with open(f"/proc/{pid or os.getpid()}/status", encoding="ascii", errors="replace") as status:
            found = next((float(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:")), None)
        if found is not None:
            return found
    except (OSError, ValueError, IndexError):
        pass
    if pid is not None:
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
