r"""Have the chains mixed, and how many independent draws are they worth?

For draws x[t, m] of M chains of length N, each split in two halves (so that a chain that drifts disagrees with itself):

    W = mean within-chain variance,  B/N = variance of chain means,  var+ = (N-1)/N W + B/N,  R-hat = sqrt(var+ / W)

on rank-normalised draws z = Phi^{-1}((rank - 3/8) / (S + 1/4)), and again on |x - median| folded, whichever is larger:
so that infinite variances and chains of unequal spread are seen as well. Below 1.01 is good, above 1.05 is not.

    ESS = N M / tau,   tau = -1 + 2 sum_t (rho_2t + rho_2t+1) while the pairs are positive, made monotone (Geyer 1992)

Vehtari, Gelman, Simpson, Carpenter & Buerkner 2021, "Rank-normalization, folding, and localization: an improved R-hat".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protea.errors import DataError


def _split(x: Tensor) -> Tensor:
    """(N, M) to halves (N // 2, 2 M), in float64."""
    if x.ndim != 2 or len(x) < 4 or not bool(torch.isfinite(x).all()):
        raise DataError(f"Draws of shape {tuple(x.shape)} cannot be diagnosed.",
                        "Give finite draws (steps, chains) of at least 4 steps.")  # fmt: skip
    half = len(x) // 2
    return torch.cat((x[:half], x[-half:]), 1).double()


def rank_normalised(x: Tensor) -> Tensor:
    """Normal scores of the ranks of all draws, ties sharing their mean rank, shaped as x.

    >>> rank_normalised(torch.tensor([[1.0, 5.0, 2.0]])).sign().tolist()
    [[-1.0, 1.0, 0.0]]
    """
    flat = x.reshape(-1).double()
    _, code, count = torch.unique(flat, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    rank = (last - (count - 1) / 2)[code]
    return torch.special.ndtri((rank - 0.375) / (len(flat) + 0.25)).reshape(x.shape)


def _potential(z: Tensor) -> float:
    n = len(z)
    within = z.var(0).mean()
    between = z.mean(0).var()
    if within == 0:
        return 1.0 if between == 0 else math.inf
    return float((((n - 1) / n * within + between) / within).sqrt())


def rhat(x: Tensor) -> float:
    """Split, rank-normalised, folded R-hat of one quantity's draws (steps, chains); 1 is perfect.

    Raises:
        DataError: fewer than 4 steps, or draws that are not finite.

    >>> from protea.rng import Streams
    >>> rhat(Streams(0, 500).normal(4)) < 1.01
    True
    """
    halves = _split(x)
    folded = (halves - halves.median()).abs()
    return max(_potential(rank_normalised(halves)), _potential(rank_normalised(folded)))


def ess(x: Tensor) -> float:
    """Effective number of independent draws for the mean of one quantity's draws (steps, chains).

    >>> from protea.rng import Streams
    >>> 1500 < ess(Streams(0, 500).normal(4)) < 2500
    True
    """
    z = _split(x)
    n, m = z.shape
    centred = z - z.mean(0)
    size = 2 ** (2 * n - 1).bit_length()
    spectrum = torch.fft.rfft(centred, size, dim=0).abs().square()
    autocovariance = torch.fft.irfft(spectrum, size, dim=0)[:n] / n
    within = (autocovariance[0] * n / (n - 1)).mean()
    if within == 0:
        return float(n * m)
    total = (n - 1) / n * within + (z.mean(0).var() if m > 1 else 0.0)
    rho = 1 - (within - autocovariance.mean(1)) / total
    rho[0] = 1.0
    pairs = rho[: n - n % 2].reshape(-1, 2).sum(1)
    stop = (pairs <= 0).nonzero()
    pairs = pairs[: int(stop[0]) if len(stop) else len(pairs)]
    tau = -1 + 2 * float(torch.cummin(pairs, 0).values.sum())
    return n * m / max(tau, 1 / math.log10(n * m))
