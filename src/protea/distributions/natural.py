r"""Gaussians as an exponential family: one matrix product for all densities, one for all statistics.

    log p(x | k) = <eta_k, phi(x)>,     phi(x) = (T(x), x, 1),     statistics of weights r:  \sum_b r_{bk} phi(x_b)

with T(x) the D (D + 1) / 2 products x_i x_j, i <= j, of a full covariance, the D squares of a diagonal one, |x|^2 of a
spherical one. With P = Sigma^-1,

    eta = (-P_ii / 2 and -P_ij, i < j;    P mu;    -mu^T P mu / 2 - log|Sigma| / 2 - D log(2 pi) / 2).

Whitening takes K D^2 multiplications a row, this K D (D + 1) / 2, and the products serve twice. The price is
cancellation: the error of log p is about eps |P| |x|^2 (x about the data's mean), so rows where that is above TOLERANCE
are left to whitening. phi is laid out (F, B), in which every product of columns runs over contiguous memory.

Wainwright & Jordan 2008, "Graphical models, exponential families, and variational inference", section 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-2}  # nats of rounding in log p(x | k)


class Natural(ABC):
    """One kind of covariance. Stateless."""

    @abstractmethod
    def terms(self, d: int) -> int:
        """Length of T(x)."""

    @abstractmethod
    def products(self, x: Tensor, out: Tensor) -> Callable[[], object]:
        """The function that computes T of what is in x (D, B) into out (terms, B).

        It serves many chunks of rows: making views of the parts takes as long as multiplying them.
        """

    @abstractmethod
    def precision(self, means: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """T's coefficients (K, terms), P mu (K, D), and the Frobenius norms of P (K,)."""

    @abstractmethod
    def unpack(self, sums: Tensor, d: int) -> Tensor:
        """Sums of T (K, terms) as second moments in the packing of `Covariance.packed`."""


class NaturalFull(Natural):
    def terms(self, d: int) -> int:
        return d * (d + 1) // 2

    def products(self, x: Tensor, out: Tensor) -> Callable[[], object]:
        parts = [(x[i:], x[i], part) for i, part in enumerate(out.split(list(range(len(x), 0, -1))))]
        return lambda: [torch.mul(a, b, out=part) for a, b, part in parts]

    def precision(self, means: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = torch.cholesky_inverse(scale)
        i, j = torch.triu_indices(p.shape[-1], p.shape[-1], device=p.device)
        half = torch.where(i == j, -0.5, -1.0).to(p.dtype)
        return p[:, i, j] * half, (p @ means[:, :, None])[:, :, 0], p.square().sum((1, 2)).sqrt()

    def unpack(self, sums: Tensor, d: int) -> Tensor:
        i, j = torch.triu_indices(d, d, device=sums.device)
        out = sums.new_zeros(len(sums), d, d)
        out[:, i, j] = sums
        out[:, j, i] = sums
        return out


class NaturalDiagonal(Natural):
    def terms(self, d: int) -> int:
        return d

    def products(self, x: Tensor, out: Tensor) -> Callable[[], object]:
        return lambda: torch.mul(x, x, out=out)

    def precision(self, means: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = scale**-2
        return -0.5 * p, p * means, p.square().sum(1).sqrt()

    def unpack(self, sums: Tensor, d: int) -> Tensor:
        return sums


class NaturalSpherical(Natural):
    def terms(self, d: int) -> int:
        return 1

    def products(self, x: Tensor, out: Tensor) -> Callable[[], object]:
        return lambda: torch.sum(x.square(), 0, keepdim=True, out=out)

    def precision(self, means: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = scale**-2
        return -0.5 * p[:, None], p[:, None] * means, p * math.sqrt(means.shape[1])

    def unpack(self, sums: Tensor, d: int) -> Tensor:
        return sums[:, 0]


NATURAL: dict[str, Natural] = {"full": NaturalFull(), "diag": NaturalDiagonal(), "spherical": NaturalSpherical()}


def features(kind: Natural, origin: Tensor, worst: float) -> Callable[[Tensor], Tensor | None]:
    """The function from rows (B, D) to phi about `origin`, (F, B); None where rounding would weigh, or entries are NaN.

    The result lies in one buffer, overwritten by the next call. worst is the largest norm of P.
    """
    d = len(origin)
    terms = kind.terms(d)
    limit = TOLERANCE[origin.dtype] / torch.finfo(origin.dtype).eps / max(worst, 1e-300)
    buffers: dict[int, tuple[Tensor, Tensor, Callable[[], object]]] = {}  # by the number of rows

    def phi(x: Tensor) -> Tensor | None:
        if len(x) not in buffers:
            out = origin.new_empty(terms + d + 1, len(x))
            out[-1] = 1.0
            buffers.clear()
            buffers[len(x)] = out, out[terms:-1], kind.products(out[terms:-1], out[:terms])
        out, centred, products = buffers[len(x)]
        torch.sub(x.T, origin[:, None], out=centred)
        low, high = centred.aminmax()
        if not d * float(torch.maximum(-low, high)) ** 2 <= limit:  # a bound of |x|^2; also where it is NaN
            return None
        products()
        return out

    return phi
