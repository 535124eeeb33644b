r"""A Gaussian mixture given some of its entries: again a Gaussian mixture, exactly.

With o the observed and u the other entries, for each component

    mu_{u|o} = mu_u + Sigma_uo Sigma_oo^-1 (x_o - mu_o),    Sigma_{u|o} = Sigma_uu - Sigma_uo Sigma_oo^-1 Sigma_ou,
    w_{k|o} proportional to w_k N(x_o; mu_o, Sigma_oo)

(Bishop 2006, "Pattern recognition and machine learning", section 2.3.1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protea.core import Normalised
from protea.distributions.covariance import floored
from protea.errors import DataError
from protea.rng import Streams

if TYPE_CHECKING:
    from protea.models.classical.gmm import GaussianMixture


class ConditionalMixture(Normalised):
    """p(x_u | x_o) for one row, or for B rows each with its own pattern of observed entries.

    Draw i completes row i mod B, so `sample(B)` completes every row once and `sample(m * B)` m times.

    Args:
        mixture: the joint distribution.
        x: (*event) or (B, *event); entries that are not observed are ignored (NaN is allowed there).
        observed: boolean, shaped as x.

    Raises:
        DataError: shapes that do not match, or an observed entry that is not finite.
    """

    log_class: Tensor
    log_weights: Tensor
    mean: Tensor
    pattern: Tensor
    scale: Tensor
    seen: Tensor

    def __init__(self, mixture: GaussianMixture, x: Tensor, observed: Tensor) -> None:
        super().__init__()
        if x.shape != observed.shape or tuple(x.shape[-len(mixture.event) :]) != mixture.event:
            raise DataError(
                f"Observed entries of shape {tuple(observed.shape)} do not fit x {tuple(x.shape)} and {mixture.event}.",
                "Both must be (*event) or (B, *event).",
            )
        self.event, self.classes, self.k = mixture.event, mixture.classes, mixture.k
        self.dim, self.block = mixture.dim, mixture.block
        if hasattr(mixture, "space"):
            self.space = mixture.space
        seen = observed.reshape(-1, self.dim)
        value = torch.where(seen, x.reshape(-1, self.dim).to(torch.float64), 0.0)
        if not torch.isfinite(value).all():
            raise DataError("An observed entry is NaN or infinite.", "Mark missing entries as not observed.")
        total, d = mixture.groups * mixture.k, self.dim
        patterns, which = seen.unique(dim=0, return_inverse=True)
        mu, sigma = mixture.means.view(total, d), mixture.kind.dense(mixture.scale, total, d)
        # Means and scales are kept in all D entries: observed ones have scale 0 and mean x, so come back unchanged.
        mean = value[:, None, :].expand(-1, total, -1).clone()
        scale = value.new_zeros(len(patterns), total, d, d)
        evidence = value.new_zeros(len(value), total)
        for p, mask in enumerate(patterns):
            rows, o, u = (which == p).nonzero()[:, 0], mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
            residual = value[rows][:, None, o] - mu[:, o]  # (rows, K, |o|)
            chol = torch.linalg.cholesky(sigma[:, o][:, :, o])
            white = torch.linalg.solve_triangular(chol, residual.permute(1, 2, 0), upper=False)
            cross = torch.linalg.solve_triangular(chol, sigma[:, o][:, :, u], upper=False)  # L^-1 Sigma_ou
            log_det = chol.diagonal(dim1=1, dim2=2).log().sum(1)
            evidence[rows] = (-0.5 * white.square().sum(1) - log_det[:, None] - 0.5 * len(o) * math.log(2 * math.pi)).T
            mean[rows[:, None], :, u] = (mu[:, u, None] + cross.mT @ white).permute(2, 1, 0)
            if len(u):
                # Schur complements of a matrix above the floor are above it too; this only undoes rounding.
                left = floored(sigma[:, u][:, :, u] - cross.mT @ cross, mixture.reg_covar * 1e-3)
                scale[p][:, u[:, None], u] = left
        log_w = mixture.log_weights + evidence.view(-1, mixture.groups, mixture.k)
        self.register_buffer("log_weights", torch.log_softmax(log_w, 2))  # (B, classes, k)
        log_class = mixture.class_prior.log() + torch.logsumexp(log_w, 2)
        self.register_buffer("log_class", torch.log_softmax(log_class, 1))  # p(y | x_o)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("pattern", which)
        self.register_buffer("seen", seen)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        row = (rng.ids % len(self.seen)).to(self.mean.device)
        if cond is None:
            cond = rng.child("label").categorical(self.log_class[row])
        inside = rng.child("component").categorical(self.log_weights[row, cond])
        which = cond * self.k + inside
        z = rng.child("noise").normal(self.dim, dtype=torch.float64)
        x = self.mean[row, which] + (self.scale[self.pattern[row], which] @ z[:, :, None])[:, :, 0]
        return x.reshape(len(rng), *self.event)

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """log p(x_u | x_o, cond) in nats of the entries that were not observed, (B,).

        Row i of x is scored under row i of the conditions, or under the only one. Observed entries of x are not read.
        """
        x = x.reshape(len(x), self.dim).to(torch.float64)
        row = (
            torch.arange(len(x), device=x.device) % len(self.seen) if len(self.seen) > 1 else x.new_zeros(len(x)).long()
        )
        hidden = ~self.seen[row]
        # A unit variance in place of the observed entries' zero makes them drop out.
        chol = self.scale + torch.diag_embed((self.scale.diagonal(dim1=-2, dim2=-1) == 0).double())
        chol = chol[self.pattern[row]]
        residual = torch.where(hidden[:, None, :], x[:, None, :] - self.mean[row], 0.0)
        white = torch.linalg.solve_triangular(chol, residual[..., None], upper=False)[..., 0]
        log_n = -0.5 * white.square().sum(-1) - chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_n = log_n - 0.5 * math.log(2 * math.pi) * hidden.double().sum(1, keepdim=True)
        by_class = torch.logsumexp(self.log_weights[row] + log_n.view(len(x), -1, self.k), 2)
        if cond is not None and self.classes:
            return by_class.gather(1, cond[:, None])[:, 0]
        return torch.logsumexp(self.log_class[row] + by_class, 1)
