r"""Coupling: one part of the vector, untouched, says how the other part is bent.

Dinh et al. 2017, "Density estimation using Real NVP"; with splines, Durkan et al. 2019. For a
split x = (a, b):   a' = a,   b'_i = spline(b_i; theta_i(a, y)). The Jacobian is triangular, so the
log-determinant is the sum of the splines' log-slopes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protea.transforms.bijection import Bijection
from protea.transforms.spline import Knots, knots, parameters_per_spline, spline, spline_inverse


def halves(dim: int, parity: int) -> Tensor:
    """(dim,) True where a coupling transforms; the two parities share the work (dim 1 is always transformed).

    >>> halves(3, 0).tolist(), halves(3, 1).tolist()
    ([False, True, True], [True, False, False])
    """
    mask = torch.arange(dim) >= dim // 2
    return mask if parity % 2 == 0 or dim == 1 else ~mask


class SplineCoupling(Bijection):
    """A coupling by monotone rational-quadratic splines.

    Args:
        mask: (D,) True for the entries that are transformed.
        conditioner: a module (a (B, D - n), y) -> (B, n * (3 * bins - 1)) for the n transformed entries.
        bins: K, bins of each spline.
        bound: the splines act on [-bound, bound].
    """

    order: Tensor
    back: Tensor

    def __init__(self, mask: Tensor, conditioner: nn.Module, *, bins: int = 8, bound: float = 5.0) -> None:
        super().__init__()
        self.conditioner, self.bins, self.bound = conditioner, bins, bound
        order = torch.cat(((~mask).nonzero()[:, 0], mask.nonzero()[:, 0]))
        self.kept, self.bent = int((~mask).sum()), int(mask.sum())
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def _knots(self, a: Tensor, y: Tensor | None) -> Knots:
        theta = self.conditioner(a, y).reshape(len(a), self.bent, parameters_per_spline(self.bins))
        return knots(theta, bound=self.bound)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b = x[:, self.order].split((self.kept, self.bent), 1)
        b, log_slope = spline(b, self._knots(a, y))
        return torch.cat((a, b), 1)[:, self.back], log_slope.sum(1)

    def inverse(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        a, b = z[:, self.order].split((self.kept, self.bent), 1)
        return torch.cat((a, spline_inverse(b, self._knots(a, y))), 1)[:, self.back]
