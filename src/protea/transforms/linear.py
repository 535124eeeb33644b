r"""Linear bijections: permutation, learned mixing by an LU factorisation, whitening fitted to data.

Kingma & Dhariwal 2018, "Glow" (eq. 10): z = L U x + b with L unit lower triangular and U upper
triangular, so that log |det| = sum log |U_ii| costs nothing and the inverse is two triangular
solves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from protea.rng import permutation
from protea.transforms.bijection import Bijection


class Permute(Bijection):
    """A fixed permutation of the entries, which depends on the seed alone."""

    order: Tensor
    back: Tensor

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("order", permutation(dim, seed), persistent=False)
        self.register_buffer("back", self.order.argsort(), persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return z[:, self.back]


class LULinear(Bijection):
    """z = L U x + b, learned; starts as the identity. The diagonal of U is exp(log_diagonal)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.triangles = nn.Parameter(torch.zeros(dim, dim))  # L below the diagonal, U above it
        self.log_diagonal = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U, each (D, D)."""
        lower = self.triangles.tril(-1) + torch.eye(len(self.bias), device=self.bias.device, dtype=self.bias.dtype)
        return lower, self.triangles.triu(1) + self.log_diagonal.exp().diag()

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self.factors()
        return x @ upper.T @ lower.T + self.bias, self.log_diagonal.sum().expand(len(x))

    def inverse(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        lower, upper = self.factors()
        x = solve_triangular(lower, (z - self.bias).T, upper=False, unitriangular=True)
        return solve_triangular(upper, x, upper=True).T


class Whiten(Bijection):
    """z = C^{-1} (x - mean), with C C^T the covariance of the training rows; fitted once, not learned.

    A flow that starts here starts from the best Gaussian, so that correlations however tight need
    not be learned by small steps.

    Args:
        dim: D.
        full: the whole covariance, (D, D); otherwise its diagonal.
        jitter: added to the correlation matrix's diagonal, so that it can be factorised.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, *, full: bool = True, jitter: float = 1e-6) -> None:
        super().__init__()
        self.jitter = jitter
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.eye(dim) if full else torch.ones(dim))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set mean and scale from rows x (N, D)."""
        x = x[:: 1 + int(len(x) * x.shape[1] ** 2 / 1e11)].double()  # seconds at most, not minutes
        self.mean.copy_(x.mean(0))
        deviation = x.std(0, correction=0).clamp(min=1e-4)  # a constant entry keeps a finite density
        if self.scale.ndim == 1:
            self.scale.copy_(deviation)
            return
        u = (x - x.mean(0)) / deviation
        u = u.float() if x.shape[1] > 512 else u
        correlation = (u.T @ u / len(u)).double().fill_diagonal_(1.0)
        eye = torch.eye(len(deviation), dtype=x.dtype, device=x.device)
        # Fewer rows than entries leave the matrix singular: shrink it towards the identity.
        shrink = self.jitter + x.shape[1] / (len(x) + x.shape[1]) * 1e-2
        self.scale.copy_(deviation[:, None] * torch.linalg.cholesky((1 - shrink) * correlation + shrink * eye))

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.scale.ndim == 1:
            return (x - self.mean) / self.scale, -self.scale.log().sum().expand(len(x))
        z = solve_triangular(self.scale, (x - self.mean).T, upper=False).T
        return z, -self.scale.diagonal().log().sum().expand(len(x))

    def inverse(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.mean + (z * self.scale if self.scale.ndim == 1 else z @ self.scale.T)
