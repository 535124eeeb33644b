r"""How varied the generated rows are.

Vendi score (Friedman and Dieng 2023): exp of the entropy of the eigenvalues of K / n, with K the similarities of
all pairs and 1 on the diagonal: the effective number of different rows. For cosine similarities K / n = X X^T / n has
the eigenvalues of the F x F matrix X^T X / n, which is what is computed when F < n.

The judge's similarity is exp(-|x - y|^2 / (2 h^2)) with h the median distance of the real rows: a cosine sees only
directions, and cannot count more than F of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protea.evaluation.figure import REPLICATES, Figure, describe, mean_figure, recentred_interval, resample_weights


def vendi_score(x: Tensor) -> Tensor:
    """Vendi score of features (n, F) under cosine similarity.

    >>> [round(float(vendi_score(x)), 6) for x in (torch.eye(5), torch.ones(5, 3))]
    [5.0, 1.0]
    """
    x = x.double()
    x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-300)
    n, f = x.shape
    return _effective(torch.linalg.eigvalsh((x.mT @ x if f < n else x @ x.mT) / n))


def vendi_of_kernel(k: Tensor, weights: Tensor | None = None) -> Tensor:
    """Vendi score of similarities (n, n); with weights (B, n) summing to n, (B,) scores."""
    k = k.double()
    if weights is None:
        return _effective(torch.linalg.eigvalsh(k / len(k)))
    root = (weights / len(k)).sqrt()
    return torch.stack([_effective(torch.linalg.eigvalsh(k * r[:, None] * r)) for r in root])


def vendi(
    x: Tensor, protocol: Mapping[str, Any] | None = None,
    *, bandwidth: float = 1.0, rows: int = 400, seed: int = 0, replicates: int = 40,
) -> Figure:  # fmt: skip
    """Vendi score of the first `rows` of (n, F). Read it beside the held-out rows' own: nearer is better."""
    x = x[:rows].double()
    k = torch.exp(-torch.cdist(x, x).square() / (2 * bandwidth**2))
    value = float(vendi_of_kernel(k))
    found = vendi_of_kernel(k, resample_weights(len(x), replicates, seed))
    low, high = recentred_interval(value, found, floor=1.0)
    facts = {"similarity": "RBF", "bandwidth": bandwidth, "rows": len(x)}
    return Figure(value, low, high, describe(protocol, replicates, "recentred", **facts))


def _effective(eigenvalues: Tensor) -> Tensor:
    return torch.special.entr(eigenvalues.clamp_min(0)).sum().exp()


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
