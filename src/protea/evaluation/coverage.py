r"""Precision, recall, density and coverage by k-nearest-neighbour balls.

With B(x) the open ball round x that reaches its k-th nearest neighbour of its own set,

    precision = share of generated rows in any real ball           (Kynkäänniemi et al. 2019)
    recall    = share of real rows in any generated ball
    density   = mean number of real balls a generated row is in, / k       (Naeem et al. 2020)
    coverage  = share of real balls that hold a generated row

Intervals resample the rows each mean runs over, given the balls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from protea.evaluation.figure import REPLICATES, Figure, mean_figure


def prdc(
    real: Tensor, fake: Tensor, protocol: Mapping[str, Any] | None = None,
    *, k: int = 5, seed: int = 0, replicates: int = REPLICATES,
) -> dict[str, Figure]:  # fmt: skip
    """Precision, recall, density, coverage of features (n, F) and (m, F); higher is better, 1 the best.

    Density alone may pass 1: generated rows crowd where real rows are dense.
    """
    x, y = real.double(), fake.double()
    k = min(k, len(x) - 1, len(y) - 1)
    exact = "donot_use_mm_for_euclid_dist"  # a copy is at distance exactly 0
    d = torch.cdist(x, y, compute_mode=exact)
    r_real, r_fake = (torch.cdist(a, a, compute_mode=exact).kthvalue(k + 1, 1).values for a in (x, y))
    inside = d < r_real[:, None]  # (n, m): generated row j lies in the ball of real row i
    rows = {
        "precision": inside.any(0),
        "recall": (d < r_fake).any(1),
        "density": inside.double().sum(0) / k,
        "coverage": inside.any(1),
    }
    facts = {**(protocol or {}), "k": k}
    return {name: mean_figure(value, facts, seed=seed, replicates=replicates) for name, value in rows.items()}
