r"""Gaussians with four kinds of covariance: what a mixture needs of each, and nothing else.

K Gaussians in R^D are means mu (K, D) and a *scale*, a square root of Sigma_k = L_k L_k^T:

    full (K, D, D) lower triangular | tied (D, D), one for all | diag (K, D) deviations | spherical (K,) deviations

The M-step is the exact maximiser of the expected log-likelihood subject to Sigma_k >= floor * I: eigenvalues of the
weighted scatter below the floor are raised to it. Adding the floor to the diagonal (as is usual) is not a maximiser,
and loses the guarantee that the likelihood never falls.

Letters: r (B, K) responsibilities, n (K,) their sums, s1 (K, D) = sum_b r x, s2 = sum_b r x x^T in the kind's own
packing. Everything is float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

CHUNK = 1 << 17  # entries of the largest temporary of an E-step: it should stay in the second-level cache


def floored(sigma: Tensor, floor: float) -> Tensor:
    """Cholesky factors of (..., D, D) scatters after raising eigenvalues below `floor` to it."""
    eye = floor * torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device)
    low = torch.linalg.cholesky_ex(sigma - eye).info != 0  # some eigenvalue is below the floor
    factor = torch.linalg.cholesky_ex(sigma).L
    if low.any():
        value, vector = torch.linalg.eigh(sigma[low])
        # sigma = (V sqrt(lambda)) (V sqrt(lambda))^T = R^T R by QR, which keeps small eigenvalues that squaring loses
        r = torch.linalg.qr((vector * value.clamp(min=floor).sqrt()[..., None, :]).mT).R
        factor[low] = r.mT * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return factor


def inverse_wishart(psi: Tensor, nu: float, scale: Tensor) -> Tensor:
    """log IW(Sigma; Psi, nu) of Sigma = L L^T from L (..., D, D), (...)."""
    d = scale.shape[-1]
    root = torch.linalg.cholesky(psi)
    half_psi = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    half_sigma = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    trace = torch.linalg.solve_triangular(scale, root.expand_as(scale), upper=False).square().sum((-2, -1))
    constant = 0.5 * nu * d * math.log(2) + float(torch.mvlgamma(torch.tensor(0.5 * nu, dtype=torch.float64), d))
    return nu * half_psi - (nu + d + 1) * half_sigma - 0.5 * trace - constant


class Covariance(ABC):
    """How a mixture's Gaussians are stretched. Stateless: the scale is passed in."""

    name: str

    @abstractmethod
    def shape(self, k: int, d: int) -> tuple[int, ...]:
        """Shape of the scale."""

    @abstractmethod
    def free(self, k: int, d: int) -> int:
        """Number of free parameters, for BIC and AIC."""

    @abstractmethod
    def select(self, scale: Tensor, which: slice | Tensor) -> Tensor:
        """The scale of some of the components."""

    @abstractmethod
    def prepare(self, means: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """What `quad` needs of the components, computed once for all chunks of rows."""

    @abstractmethod
    def quad(self, x: Tensor, *prepared: Tensor) -> Tensor:
        """(x - mu_k)^T Sigma_k^-1 (x - mu_k), (B, K)."""

    @abstractmethod
    def half_log_det(self, scale: Tensor, d: int) -> Tensor:
        """log |Sigma_k| / 2, (K,)."""

    @abstractmethod
    def colour(self, z: Tensor, scale: Tensor, which: Tensor) -> Tensor:
        """L_k z for the component of each row, (B, D)."""

    @abstractmethod
    def packed(self, k: int, d: int) -> tuple[int, ...]:
        """Shape of s2."""

    @abstractmethod
    def scatter(self, r: Tensor, x: Tensor) -> Tensor:
        """s2 of a chunk, for the components r has columns for."""

    @abstractmethod
    def centre(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor) -> Tensor:
        """sum_b r (x - mu_k)(x - mu_k)^T from the moments about the origin, packed as s2."""

    @abstractmethod
    def weight(self, n: Tensor, d: int) -> Tensor:
        """What the scatter is divided by, shaped to broadcast with it."""

    @abstractmethod
    def fit(self, weight: Tensor, scatter: Tensor, floor: float) -> Tensor:
        """The scale that maximises -weight log|Sigma| / 2 - tr(Sigma^-1 scatter) / 2 subject to Sigma >= floor I."""

    @abstractmethod
    def spent(self, scatter: Tensor, scale: Tensor) -> Tensor:
        """tr(Sigma^-1 scatter) summed over members, a scalar."""

    @abstractmethod
    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        """For each component a displacement of Mahalanobis length 1 along a widest direction, (K, D)."""

    @abstractmethod
    def narrow(self, sigma: Tensor) -> Tensor:
        """The covariance of this kind, packed as s2 of one member, that fits Sigma (D, D) best."""

    @abstractmethod
    def pull(self, nu: float, k: int, d: int) -> float:
        """Twice the powers of 1 / |Sigma| in a normal-inverse-Wishart prior: what `weight` grows by."""

    @abstractmethod
    def log_prior(self, psi: Tensor, nu: float, scale: Tensor) -> Tensor:
        """log density of the inverse-Wishart prior of Psi (D, D) and nu, or its analogue; see `priors.py`."""

    @abstractmethod
    def dense(self, scale: Tensor, k: int, d: int) -> Tensor:
        """Sigma (K, D, D)."""


class Full(Covariance):
    """Any covariance for each component."""

    name = "full"

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d, d)

    def free(self, k: int, d: int) -> int:
        return k * d * (d + 1) // 2

    def select(self, scale: Tensor, which: slice | Tensor) -> Tensor:
        return scale[which]

    def prepare(self, means: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        k, d = means.shape
        eye = torch.eye(d, dtype=scale.dtype, device=scale.device).expand(k, d, d)
        whiten = torch.linalg.solve_triangular(scale, eye, upper=False)  # L^-1
        offset = (whiten @ means[:, :, None])[:, :, 0].T.reshape(1, d * k)
        return whiten.permute(2, 1, 0).reshape(d, d * k), offset

    def quad(self, x: Tensor, *prepared: Tensor) -> Tensor:
        # One GEMM for all components, laid out (D, K) so that the sum over D runs over contiguous vectors.
        whiten, offset = prepared
        y = torch.addmm(offset, x, whiten, beta=-1)
        return y.square().view(len(x), x.shape[1], -1).sum(1)

    def half_log_det(self, scale: Tensor, d: int) -> Tensor:
        return scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def colour(self, z: Tensor, scale: Tensor, which: Tensor) -> Tensor:
        return (scale[which] @ z[:, :, None])[:, :, 0]

    def packed(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d, d)

    def scatter(self, r: Tensor, x: Tensor) -> Tensor:
        k, d = r.shape[1], x.shape[1]
        if d > 32:  # compute-bound: one GEMM a component beats forming all products
            return torch.stack([(x * r[:, j, None]).T @ x for j in range(k)])
        return (r.T @ (x[:, :, None] * x[:, None, :]).view(len(x), d * d)).view(k, d, d)

    def centre(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor) -> Tensor:
        cross = s1[:, :, None] * means[:, None, :]
        return s2 - cross - cross.mT + n[:, None, None] * means[:, :, None] * means[:, None, :]

    def weight(self, n: Tensor, d: int) -> Tensor:
        return n[:, None, None]

    def fit(self, weight: Tensor, scatter: Tensor, floor: float) -> Tensor:
        return floored(scatter / weight, floor)

    def spent(self, scatter: Tensor, scale: Tensor) -> Tensor:
        return torch.cholesky_solve(scatter, scale).diagonal(dim1=-2, dim2=-1).sum()

    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        value, vector = torch.linalg.eigh(scale @ scale.mT)
        return vector[..., -1] * value[..., -1:].sqrt()

    def narrow(self, sigma: Tensor) -> Tensor:
        return sigma

    def pull(self, nu: float, k: int, d: int) -> float:
        return nu + d + 2

    def log_prior(self, psi: Tensor, nu: float, scale: Tensor) -> Tensor:
        return inverse_wishart(psi, nu, scale).sum()

    def dense(self, scale: Tensor, k: int, d: int) -> Tensor:
        return scale @ scale.mT


class Tied(Covariance):
    """One covariance that all components share."""

    name = "tied"

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (d, d)

    def free(self, k: int, d: int) -> int:
        return d * (d + 1) // 2

    def select(self, scale: Tensor, which: slice | Tensor) -> Tensor:
        return scale

    def prepare(self, means: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        eye = torch.eye(means.shape[1], dtype=scale.dtype, device=scale.device)
        whiten = torch.linalg.solve_triangular(scale, eye, upper=False).T
        return whiten, means @ whiten

    def quad(self, x: Tensor, *prepared: Tensor) -> Tensor:
        whiten, m = prepared
        y = x @ whiten
        return (y * y).sum(1, keepdim=True) - 2 * y @ m.T + (m * m).sum(1)

    def half_log_det(self, scale: Tensor, d: int) -> Tensor:
        return scale.diagonal().log().sum().expand(1)

    def colour(self, z: Tensor, scale: Tensor, which: Tensor) -> Tensor:
        return z @ scale.T

    def packed(self, k: int, d: int) -> tuple[int, ...]:
        return (d, d)

    def scatter(self, r: Tensor, x: Tensor) -> Tensor:
        return (x * r.sum(1, keepdim=True)).T @ x

    def centre(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor) -> Tensor:
        cross = s1.T @ means
        return s2 - cross - cross.T + (means * n[:, None]).T @ means

    def weight(self, n: Tensor, d: int) -> Tensor:
        return n.sum()

    def fit(self, weight: Tensor, scatter: Tensor, floor: float) -> Tensor:
        return floored(scatter / weight, floor)

    def spent(self, scatter: Tensor, scale: Tensor) -> Tensor:
        return torch.cholesky_solve(scatter, scale).diagonal().sum()

    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        value, vector = torch.linalg.eigh(scale @ scale.T)
        return (vector[:, -1] * value[-1].sqrt()).expand(k, d)

    def narrow(self, sigma: Tensor) -> Tensor:
        return sigma

    def pull(self, nu: float, k: int, d: int) -> float:
        return nu + d + 1 + k

    def log_prior(self, psi: Tensor, nu: float, scale: Tensor) -> Tensor:
        return inverse_wishart(psi, nu, scale)

    def dense(self, scale: Tensor, k: int, d: int) -> Tensor:
        return (scale @ scale.T).expand(k, d, d)


class Diagonal(Covariance):
    """Independent coordinates within a component."""

    name = "diag"

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d)

    def free(self, k: int, d: int) -> int:
        return k * d

    def select(self, scale: Tensor, which: slice | Tensor) -> Tensor:
        return scale[which]

    def prepare(self, means: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        precision = scale**-2
        return precision.T, -2 * (means * precision).T, (means * means * precision).sum(1)

    def quad(self, x: Tensor, *prepared: Tensor) -> Tensor:
        # Expanding the square turns it into two GEMMs; means near the origin keep the cancellation harmless.
        square, cross, constant = prepared
        return torch.addmm(torch.addmm(constant, x, cross), x * x, square)

    def half_log_det(self, scale: Tensor, d: int) -> Tensor:
        return scale.log().sum(-1)

    def colour(self, z: Tensor, scale: Tensor, which: Tensor) -> Tensor:
        return z * scale[which]

    def packed(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d)

    def scatter(self, r: Tensor, x: Tensor) -> Tensor:
        return r.T @ (x * x)

    def centre(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor) -> Tensor:
        return s2 - 2 * s1 * means + n[:, None] * means.square()

    def weight(self, n: Tensor, d: int) -> Tensor:
        return n[:, None]

    def fit(self, weight: Tensor, scatter: Tensor, floor: float) -> Tensor:
        return (scatter / weight).clamp(min=floor).sqrt()

    def spent(self, scatter: Tensor, scale: Tensor) -> Tensor:
        return (scatter / scale.square()).sum()

    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        widest = scale.argmax(1, keepdim=True)
        return torch.zeros_like(scale).scatter(1, widest, scale.gather(1, widest))

    def narrow(self, sigma: Tensor) -> Tensor:
        return sigma.diagonal()

    def pull(self, nu: float, k: int, d: int) -> float:
        return nu + 3

    def log_prior(self, psi: Tensor, nu: float, scale: Tensor) -> Tensor:
        return inverse_wishart(psi.diagonal()[:, None, None], nu, scale[..., None, None]).sum()

    def dense(self, scale: Tensor, k: int, d: int) -> Tensor:
        return torch.diag_embed(scale**2)


class Spherical(Covariance):
    """One variance for each component."""

    name = "spherical"

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k,)

    def free(self, k: int, d: int) -> int:
        return k

    def select(self, scale: Tensor, which: slice | Tensor) -> Tensor:
        return scale[which]

    def prepare(self, means: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return means, scale**-2

    def quad(self, x: Tensor, *prepared: Tensor) -> Tensor:
        means, precision = prepared
        return ((x * x).sum(1, keepdim=True) - 2 * x @ means.T + (means * means).sum(1)) * precision

    def half_log_det(self, scale: Tensor, d: int) -> Tensor:
        return d * scale.log()

    def colour(self, z: Tensor, scale: Tensor, which: Tensor) -> Tensor:
        return z * scale[which, None]

    def packed(self, k: int, d: int) -> tuple[int, ...]:
        return (k,)

    def scatter(self, r: Tensor, x: Tensor) -> Tensor:
        return r.T @ (x * x).sum(1)

    def centre(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor) -> Tensor:
        return s2 - 2 * (s1 * means).sum(1) + n * means.square().sum(1)

    def weight(self, n: Tensor, d: int) -> Tensor:
        return n * d

    def fit(self, weight: Tensor, scatter: Tensor, floor: float) -> Tensor:
        return (scatter / weight).clamp(min=floor).sqrt()

    def spent(self, scatter: Tensor, scale: Tensor) -> Tensor:
        return (scatter / scale.square()).sum()

    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        first = torch.zeros(k, d, dtype=scale.dtype, device=scale.device)
        first[:, 0] = scale
        return first

    def narrow(self, sigma: Tensor) -> Tensor:
        return sigma.diagonal().mean()

    def pull(self, nu: float, k: int, d: int) -> float:
        return nu + 2 + d

    def log_prior(self, psi: Tensor, nu: float, scale: Tensor) -> Tensor:
        return inverse_wishart(psi.diagonal().mean()[None, None], nu, scale[..., None, None]).sum()

    def dense(self, scale: Tensor, k: int, d: int) -> Tensor:
        return torch.diag_embed((scale**2)[:, None].expand(k, d))


COVARIANCES: dict[str, Covariance] = {c.name: c for c in (Full(), Tied(), Diagonal(), Spherical())}
