"""Large pages: weights that are read from end to end, over and over, in pieces of 2 MiB instead of 4 KiB.

The processor then finds where they lie in its own tables instead of walking the system's, once in every 64 vectors.
The system is asked, in place: addresses and values stay. Where it cannot (another system, files, no memory in one
piece), nothing happens.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

from torch import Tensor

PAGE = 2 << 20
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # linux/mman.h


def large_pages(tensors: Iterable[Tensor], now: bool = True) -> int:
    """Ask for large pages under tensors of the CPU.

    Args:
        tensors: tensors side by side in memory count as one piece.
        now: bring together what lies there; if not, only pages that are first touched later will be large (for
            memory of which perhaps little is ever used).

    Returns:
        Bytes for which the system said yes.

    >>> import torch
    >>> x = torch.arange(2_000_000.0)
    >>> large_pages([x]) <= x.nbytes, bool((x == torch.arange(2_000_000.0)).all())
    (True, True)
    """
    if sys.platform != "linux":
        return 0
    spans: list[list[int]] = []
    places = {(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.device.type == "cpu" and t.is_contiguous()}
    for begin, end in sorted(places):
        if spans and begin - spans[-1][1] < 1 << 16:  # what lies between is the allocator's
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([begin, end])
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    given = 0
    for begin, end in spans:
        for at in range(-(-begin // PAGE) * PAGE, end // PAGE * PAGE, PAGE):
            given += PAGE * (
                madvise(at, PAGE, MADV_HUGEPAGE) == 0 and (not now or madvise(at, PAGE, MADV_COLLAPSE) == 0)
            )
    return given
