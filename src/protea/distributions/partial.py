r"""Gaussians, and their scale mixtures, of which some entries are observed: the others are integrated out, exactly.

With o the observed and u the other entries of a row, Sigma_o = Sigma_oo, and for each member

    delta = (x_o - mu_o)^T Sigma_oo^-1 (x_o - mu_o),    log N(x_o) = -delta / 2 - log|Sigma_oo| / 2 - |o| log(2 pi) / 2
    E[x_u | x_o] = mu_u + Sigma_uo Sigma_oo^-1 (x_o - mu_o)
    Cov[x_u | x_o] = Sigma_uu - Sigma_uo Sigma_oo^-1 Sigma_ou

Entries keep their places: Sigma_oo is completed to D x D by the identity on u, whose residual is zero, so that one
batched Cholesky factorisation serves all patterns and members. Independent coordinates need matrix products only.

Ghahramani & Jordan 1994, "Supervised learning from incomplete data via an EM approach"; Little & Rubin, "Statistical
analysis with missing data", chapter 11. Letters: x (B, D), zero where it is not observed; mu (K, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from protea.distributions.patterns import runs

ENTRIES = 1 << 19  # of the largest temporary


class _Block(NamedTuple):
    """Some runs of rows: P patterns, R runs of C rows, K members; J is K, or 1 where members share a covariance."""

    rows: Tensor  # (R, C)
    valid: Tensor  # (R, C)
    mask: Tensor  # (P, D), 1.0 where observed
    local: Tensor  # (R,) the pattern of each run
    chol: Tensor  # (P, J, D, D)
    white: Tensor  # (R, K, D, C), L^-1 (x_o - mu_o)


def _blocks(x: Tensor, observed: Tensor, mu: Tensor, sigma: Tensor) -> Iterator[_Block]:
    k, d = mu.shape
    mask, run, index, valid = runs(observed)
    step = max(1, ENTRIES // (k * d * (d + index.shape[1])))
    for i in range(0, len(run), step):
        some, local = run[i : i + step].unique_consecutive(return_inverse=True)
        m = mask[some].to(x.dtype)
        square = sigma * (m[:, None, :, None] * m[:, None, None, :]) + torch.diag_embed(1 - m)[:, None]
        chol = torch.linalg.cholesky(square)
        rows = index[i : i + step]
        residual = (x[rows][:, None] - mu[:, None]) * m[local][:, None, None]
        white = torch.linalg.solve_triangular(chol[local], residual.mT, upper=False)
        yield _Block(rows, valid[i : i + step], m, local, chol, white)


def distance(x: Tensor, observed: Tensor, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(x_o - mu_o)^T Sigma_oo^-1 (x_o - mu_o) and log|Sigma_oo| / 2 of every member, (B, K) each.

    sigma is (K, D, D), or (1, D, D) where it is shared.
    """
    delta, half = x.new_zeros(len(x), len(mu)), x.new_zeros(len(x), len(mu))
    for b in _blocks(x, observed, mu, sigma) if len(x) else ():
        log_det = b.chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)[b.local][..., None]
        value = b.white.square().sum(2)
        delta[b.rows[b.valid]] = value.mT[b.valid]
        half[b.rows[b.valid]] = log_det.expand_as(value).mT[b.valid]
    return delta, half


def moments(x: Tensor, observed: Tensor, w: Tensor, r: Tensor, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """sum_b w E[x] (K, D) and sum_b w E[x] E[x]^T + r Cov[x] (K, D, D) given the observed entries; w, r (B, K)."""
    k, d = mu.shape
    s1, s2 = x.new_zeros(k, d), x.new_zeros(k, d, d)
    for b in _blocks(x, observed, mu, sigma) if len(x) else ():
        full = _expectation(x, b, mu, sigma)
        weighted = full * (w[b.rows] * b.valid[..., None]).mT[:, :, None]
        s1 += weighted.sum((0, 3))
        s2 += torch.einsum("rkdc,rkec->kde", weighted, full)
        each = (r[b.rows] * b.valid[..., None]).sum(1)  # (R, K)
        hold = each.new_zeros(len(b.mask), k).index_add_(0, b.local, each)
        cross = torch.linalg.solve_triangular(b.chol, b.mask[:, None, :, None] * sigma, upper=False)
        hidden = 1 - b.mask
        left = (sigma - cross.mT @ cross) * (hidden[:, None, :, None] * hidden[:, None, None, :])
        s2 += (hold[..., None, None] * left).sum(0)
    return s1, s2


def expectation(x: Tensor, observed: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """E[x | x_o] of every member, (B, K, D)."""
    out = x.new_zeros(len(x), *mu.shape)
    for b in _blocks(x, observed, mu, sigma) if len(x) else ():
        out[b.rows[b.valid]] = _expectation(x, b, mu, sigma).permute(0, 3, 1, 2)[b.valid]
    return out


def _expectation(x: Tensor, b: _Block, mu: Tensor, sigma: Tensor) -> Tensor:
    """(R, K, D, C)."""
    solved = torch.linalg.solve_triangular(b.chol[b.local].mT, b.white, upper=True)
    full = mu[:, :, None] + sigma @ solved
    return torch.where(b.mask[b.local][:, None, :, None] > 0, x[b.rows].mT[:, None], full)


def deviations(observed: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Square roots of the diagonal of Cov[x | x_o] of every member, (B, K, D); 0 where an entry is observed."""
    out = mu.new_zeros(len(observed), *mu.shape)
    for b in _blocks(mu.new_zeros(observed.shape), observed, mu, sigma) if len(observed) else ():
        cross = torch.linalg.solve_triangular(b.chol, b.mask[:, None, :, None] * sigma, upper=False)
        left = sigma.diagonal(dim1=-2, dim2=-1) - cross.square().sum(2)
        root = left.clamp(min=0).sqrt() * (1 - b.mask)[:, None]
        out[b.rows[b.valid]] = root[b.local][:, None].expand(*b.rows.shape, len(mu), -1)[b.valid]
    return out


def conditioned(z: Tensor, x: Tensor, observed: Tensor, sigma: Tensor) -> Tensor:
    """Draws z of N(mu, Sigma) turned into draws given x_o: z + Sigma_{.o} Sigma_oo^-1 (x_o - z_o), (B, D).

    So no conditional covariance is factorised (Matheron's rule: Journel & Huijbregts 1978, "Mining geostatistics").
    sigma (B, D, D) is each row's.
    """
    m = observed.to(z.dtype)
    square = sigma * (m[:, :, None] * m[:, None, :]) + torch.diag_embed(1 - m)
    solved = torch.cholesky_solve(((x - z) * m)[..., None], torch.linalg.cholesky(square))
    return torch.where(observed, x, z + (sigma @ solved)[..., 0])


# ---- independent coordinates: variance (K, D) ----


def distance_diagonal(x: Tensor, observed: Tensor, mu: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """As `distance`."""
    m, precision = observed.to(x.dtype), 1 / variance
    delta = x.square() @ precision.T - 2 * x @ (mu * precision).T + m @ (mu.square() * precision).T
    return delta, 0.5 * m @ variance.log().T


def moments_diagonal(
    x: Tensor, observed: Tensor, w: Tensor, r: Tensor, mu: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """sum_b w E[x] and sum_b w E[x]^2 + r Var[x], (K, D) each."""
    hidden = (~observed).to(x.dtype)
    hold = w.T @ hidden
    return w.T @ x + hold * mu, w.T @ x.square() + hold * mu.square() + (r.T @ hidden) * variance
