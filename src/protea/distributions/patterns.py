r"""Rows grouped by which of their entries are observed: what depends on the pattern is computed once for each.

B rows of P distinct patterns become R runs of at most C rows each, C = 2 ceil(B / P): a pattern of more rows than C
takes several runs, so R <= 3 P / 2, and with padding R C <= 3 B + 2 P, whatever the patterns are.
There is no loop over rows or patterns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Runs(NamedTuple):
    """Rows laid out by pattern; see the module's docstring.

    mask (P, D) are the patterns, run (R,) the pattern of each run, in order; index (R, C) its rows, and valid (R, C)
    is False where index is padding (it then names row 0).
    """

    mask: Tensor
    run: Tensor
    index: Tensor
    valid: Tensor


def runs(observed: Tensor) -> Runs:
    """Group the rows of observed (B, D), B >= 1.

    >>> found = runs(torch.tensor([[True, False], [False, False], [True, False]]))
    >>> found.mask.tolist(), found.index[found.valid].tolist()
    ([[False, False], [True, False]], [1, 0, 2])
    """
    mask, which, count = observed.unique(dim=0, return_inverse=True, return_counts=True)
    order = which.argsort(stable=True)
    cap = min(2 * -(-len(observed) // len(mask)), int(count.max()))
    pieces = (count + cap - 1) // cap
    run = torch.arange(len(mask), device=mask.device).repeat_interleave(pieces)
    first = (pieces.cumsum(0) - pieces)[run]  # the first run of the same pattern
    offset = (torch.arange(len(run), device=mask.device) - first)[:, None] * cap + torch.arange(cap, device=mask.device)
    valid = offset < count[run][:, None]
    start = (count.cumsum(0) - count)[run][:, None]
    index = torch.where(valid, order[(start + offset).clamp(max=len(order) - 1)], 0)
    return Runs(mask, run, index, valid)
