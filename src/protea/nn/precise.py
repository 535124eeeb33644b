"""Numbers that must not be rounded to sixteen bits: float32 at least, and double where the model is in double."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """x in float32, or in its own type where that is finer.

    >>> precise(torch.ones(1, dtype=torch.bfloat16)).dtype, precise(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
