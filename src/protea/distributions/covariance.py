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
    def fit(self, n: Tensor, s1: Tensor, s2: Tensor, floor: float) -> Tensor:
        """The scale that maximises the expected log-likelihood about the means s1 / n; n > 0."""

    @abstractmethod
    def spent(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor, scale: Tensor) -> Tensor:
        """sum_b,k r (x - mu_k)^T Sigma_k^-1 (x - mu_k), a scalar, from the statistics alone."""

    @abstractmethod
    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        """For each component a displacement of Mahalanobis length 1 along a widest direction, (K, D)."""

    @abstractmethod
    def dense(self, scale: Tensor, k: int, d: int) -> Tensor:
        """Sigma (K, D, D)."""


def _centred(n: Tensor, s1: Tensor, s2: Tensor, means: Tensor) -> Tensor:
    """Scatter about `means` from scatter about the origin, (K, D, D)."""
    cross = s1[:, :, None] * means[:, None, :]
    return s2 - cross - cross.mT + n[:, None, None] * means[:, :, None] * means[:, None, :]


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

    def fit(self, n: Tensor, s1: Tensor, s2: Tensor, floor: float) -> Tensor:
        means = s1 / n[:, None]
        return floored(s2 / n[:, None, None] - means[:, :, None] * means[:, None, :], floor)

    def spent(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor, scale: Tensor) -> Tensor:
        solved = torch.cholesky_solve(_centred(n, s1, s2, means), scale)
        return solved.diagonal(dim1=-2, dim2=-1).sum()

    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        value, vector = torch.linalg.eigh(scale @ scale.mT)
        return vector[..., -1] * value[..., -1:].sqrt()

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
        return x.T @ x  # responsibilities sum to one over components

    def fit(self, n: Tensor, s1: Tensor, s2: Tensor, floor: float) -> Tensor:
        return floored((s2 - (s1 / n[:, None]).T @ s1) / n.sum(), floor)

    def spent(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor, scale: Tensor) -> Tensor:
        cross = s1.T @ means
        centred = s2 - cross - cross.T + (means * n[:, None]).T @ means
        return torch.cholesky_solve(centred, scale).diagonal().sum()

    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        value, vector = torch.linalg.eigh(scale @ scale.T)
        return (vector[:, -1] * value[-1].sqrt()).expand(k, d)

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

    def fit(self, n: Tensor, s1: Tensor, s2: Tensor, floor: float) -> Tensor:
        return (s2 / n[:, None] - (s1 / n[:, None]) ** 2).clamp(min=floor).sqrt()

    def spent(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor, scale: Tensor) -> Tensor:
        return ((s2 - 2 * s1 * means + n[:, None] * means**2) / scale**2).sum()

    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        widest = scale.argmax(1, keepdim=True)
        return torch.zeros_like(scale).scatter(1, widest, scale.gather(1, widest))

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

    def fit(self, n: Tensor, s1: Tensor, s2: Tensor, floor: float) -> Tensor:
        return ((s2 / n - ((s1 / n[:, None]) ** 2).sum(1)) / s1.shape[1]).clamp(min=floor).sqrt()

    def spent(self, n: Tensor, s1: Tensor, s2: Tensor, means: Tensor, scale: Tensor) -> Tensor:
        return ((s2 - 2 * (s1 * means).sum(1) + n * (means**2).sum(1)) / scale**2).sum()

    def axis(self, scale: Tensor, k: int, d: int) -> Tensor:
        first = torch.zeros(k, d, dtype=scale.dtype, device=scale.device)
        first[:, 0] = scale
        return first

    def dense(self, scale: Tensor, k: int, d: int) -> Tensor:
        return torch.diag_embed((scale**2)[:, None].expand(k, d))


COVARIANCES: dict[str, Covariance] = {c.name: c for c in (Full(), Tied(), Diagonal(), Spherical())}
