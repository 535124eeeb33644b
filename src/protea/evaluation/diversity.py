r"""How varied the generated rows are.

Vendi score (Friedman and Dieng 2023): exp of the entropy of the eigenvalues of K / n, with K the
cosine similarities of features: the effective number of different rows. K / n = X X^T / n has the
eigenvalues of the F x F matrix X^T X / n, which is what is computed when F < n.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protea.evaluation.figure import REPLICATES, Figure, describe, mean_figure, recentred_interval, resample_weights


def vendi_score(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Vendi score of features (n, F) under cosine similarity; with weights (B, n) summing to n, (B,) scores.

    >>> [round(float(vendi_score(x)), 6) for x in (torch.eye(5), torch.ones(5, 3))]
    [5.0, 1.0]
    """
    x = x.double()
    x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-300)
    n, f = x.shape
    w = torch.ones(1, n, dtype=torch.float64) if weights is None else weights
    scores = []
    for row in w:
        scaled = x * (row / n).sqrt()[:, None]
        values = torch.linalg.eigvalsh(scaled.mT @ scaled if f < n else scaled @ scaled.mT).clamp_min(0)
        scores.append(torch.special.entr(values).sum().exp())
    found = torch.stack(scores)
    return found[0] if weights is None else found


def vendi(
    x: Tensor, protocol: Mapping[str, Any] | None = None, *, seed: int = 0, replicates: int = REPLICATES
) -> Figure:
    """Vendi score of generated features (n, F). Read it beside the held-out rows' own: nearer is better."""
    value = float(vendi_score(x))
    cost = min(x.shape) ** 3
    replicates = max(20, min(replicates, int(2e8 / cost)))  # an eigendecomposition each
    low, high = recentred_interval(value, vendi_score(x, resample_weights(len(x), replicates, seed)), floor=1.0)
    return Figure(value, low, high, describe(protocol, replicates, "recentred", similarity="cosine"))


def row_keys(x: Tensor) -> np.ndarray:
    """(n,) the bytes of each row (n, *event), equal where rows are equal (NaN equals NaN, -0 equals 0)."""
    flat = torch.nan_to_num(x.detach().cpu().reshape(len(x), -1).double(), nan=9.87654321e300) + 0.0
    rows = np.ascontiguousarray(flat.numpy())
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]


def repeated(x: Tensor) -> Tensor:
    """(n,) whether a row equals an earlier one.

    >>> repeated(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])).tolist()
    [False, False, True]
    """
    _, first = np.unique(row_keys(x), return_index=True)
    again = torch.ones(len(x), dtype=torch.bool)
    again[torch.from_numpy(first)] = False
    return again


def duplicates(
    x: Tensor, protocol: Mapping[str, Any] | None = None, *, seed: int = 0, replicates: int = REPLICATES
) -> Figure:
    """The share of generated rows (n, *event) that repeat an earlier one exactly."""
    return mean_figure(repeated(x), protocol, seed=seed, replicates=replicates)


def modes_covered(real: Tensor, fake: Tensor, modes: int, least: float = 0.2) -> tuple[int, int]:
    """How many modes the generated rows reach: (covered, all).

    Args:
        real, fake: mode numbers (n,) and (m,) in [0, modes).
        least: a mode counts as covered when it has at least this share of the rows its real frequency promises.

    Only modes are judged that promise at least 10 rows, where chance alone does not empty one.
    """
    expected = torch.bincount(real, minlength=modes).double() * (len(fake) / len(real))
    found = torch.bincount(fake, minlength=modes).double()
    judged = expected >= 10
    return int((judged & (found >= least * expected)).sum()), int(judged.sum())
