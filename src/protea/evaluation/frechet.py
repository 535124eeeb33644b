r"""Fréchet and kernel distances between two sets of features.

Fréchet (Dowson and Landau 1982; Heusel et al. 2017): for Gaussians fitted to the two sets

    d^2 = |mu - mu'|^2 + tr(S) + tr(S') - 2 tr((S S')^(1/2)).

With any factors S = L L^T and S' = M M^T the last trace is the nuclear norm |L^T M|_*, which needs no
square root of a matrix that is not symmetric and cannot come out complex. All bootstrap replicates
are one batched eigendecomposition and one batched SVD.

Kernel distance (Binkowski et al. 2018): the unbiased squared MMD with the kernel (x.y / F + 1)^3.

The result is named for its features. It is never called "FID": that name belongs to one network's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from protea.evaluation.figure import REPLICATES, Figure, describe, recentred_interval, resample_weights
from protea.evaluation.two_sample import mmd_of_kernels

CHUNK = 32  # bootstrap replicates computed at once


def gaussian_frechet(mu: Tensor, sigma: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
    """Squared Fréchet distance of Gaussians; batched: means (..., F), covariances (..., F, F), result (...).

    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> float(gaussian_frechet(torch.zeros(2).double(), eye, torch.ones(2).double(), 4 * eye))  # 2 + 2 (2 - 1)^2
    4.0
    """
    cross = torch.linalg.svdvals(_factor(sigma).mT @ _factor(sigma2)).sum(-1)
    traces = sigma.diagonal(dim1=-2, dim2=-1).sum(-1) + sigma2.diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((mu - mu2).square().sum(-1) + traces - 2 * cross).clamp_min(0)


def frechet(
    real: Tensor, fake: Tensor, protocol: Mapping[str, Any] | None = None,
    *, seed: int = 0, replicates: int = REPLICATES,
) -> Figure:  # fmt: skip
    """Squared Fréchet distance of features (n, F) and (m, F), in double precision; lower is better.

    Biased upwards by about F / n: compare only figures of equal n, and read it beside the held-out row's.
    """
    x, y = real.double(), fake.double()
    one = torch.ones(1, len(x), dtype=torch.float64), torch.ones(1, len(y), dtype=torch.float64)
    value = float(_weighted(x, y, *one))
    w = resample_weights(len(x), replicates, seed, "real")
    v = resample_weights(len(y), replicates, seed, "fake")
    found = torch.cat([_weighted(x, y, w[i : i + CHUNK], v[i : i + CHUNK]) for i in range(0, replicates, CHUNK)])
    low, high = recentred_interval(value, found, floor=0.0)
    return Figure(value, low, high, describe(protocol, replicates, "recentred"))


def kernel_distance(
    real: Tensor, fake: Tensor, protocol: Mapping[str, Any] | None = None,
    *, seed: int = 0, replicates: int = REPLICATES,
) -> Figure:  # fmt: skip
    """Unbiased squared MMD with the polynomial kernel (x.y / F + 1)^3; may come out below 0; lower is better."""
    x, y = real.double(), fake.double()
    f = x.shape[1]
    kernels = [(a @ b.mT / f + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    value, low, high = mmd_of_kernels(*kernels, seed=seed, replicates=replicates)
    return Figure(value, low, high, describe(protocol, replicates, "recentred", kernel="(x.y/F + 1)^3"))


def _factor(sigma: Tensor) -> Tensor:
    """L with L L^T = sigma, for covariances that may be singular."""
    values, vectors = torch.linalg.eigh(sigma)
    return vectors * values.clamp_min(0).sqrt()[..., None, :]


def _weighted(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """Distances (B,) of weighted rows; weights (B, n) and (B, m) count draws."""
    return gaussian_frechet(*_moments(x, w), *_moments(y, v))


def _moments(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Means (B, F) and covariances (B, F, F) with denominator n - 1; shifted first, for accuracy."""
    n = len(x)
    shift = x.mean(0)
    c = x - shift
    mean = w @ c / n
    second = (
        torch.einsum("bn,nf,ng->bfg", w, c, c) if len(c.T) <= 8 else torch.stack([(c * r[:, None]).mT @ c for r in w])
    )
    return mean + shift, (second - n * mean[:, :, None] * mean[:, None, :]) / max(n - 1, 1)
