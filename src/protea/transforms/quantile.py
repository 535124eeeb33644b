r"""A monotone map of each column to a standard normal, through its training quantiles.

z = T(x) is piecewise linear through the knots (quantile(Phi(z_j)), z_j), j = 0 .. K, with linear tails that
reach the extremes of the training rows at the normal score of an extreme. The number of distinct segments
grows as 2 N^(1/3), the rate at which a histogram of N rows is consistent (Scott 1979), so that small tables
are not interpolated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_KNOTS = 65


class QuantileNormal(nn.Module):
    """T for each of `columns` columns.

    >>> import torch
    >>> t = QuantileNormal(1); x = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None] ** 3; t.fit(x)
    >>> z, log_slope = t(x)
    >>> bool(torch.allclose(t.inverse(z), x))
    True
    """

    x: Tensor
    z: Tensor
    tail: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        grid = torch.linspace(-1.0, 1.0, _KNOTS, dtype=torch.float64).expand(columns, _KNOTS).clone()
        self.register_buffer("x", grid)  # (columns, K+1) knots, strictly increasing
        self.register_buffer("z", grid.clone())  # their scores
        self.register_buffer("tail", torch.ones(columns, 2, dtype=torch.float64))  # slopes dz/dx beyond the ends

    def fit(self, value: Tensor) -> None:
        """Set the knots from (N, columns) values; NaN are left out."""
        for j in range(value.shape[1]):
            column = value[:, j][~value[:, j].isnan()].sort().values
            if len(column) < 2 or column[0] == column[-1]:  # nothing to learn: a unit slope about the constant
                centre = column[0] if len(column) else column.new_zeros(())
                self.x[j] = centre + torch.linspace(-1.0, 1.0, _KNOTS, dtype=torch.float64)
                self.z[j] = torch.linspace(-1.0, 1.0, _KNOTS, dtype=torch.float64)
                self.tail[j] = 1.0
                continue
            n = len(column)
            segments = 4
            while segments < min(_KNOTS - 1, 2 * n ** (1 / 3)):
                segments *= 2
            z_max = float(torch.special.ndtri(torch.tensor(1 - max(5.0 / n, 1e-3)).clamp(min=0.75).double()))
            z = torch.linspace(-z_max, z_max, segments + 1, dtype=torch.float64)
            position = torch.special.ndtr(z) * (n - 1)
            i = position.floor().long().clamp(max=n - 2)
            x = column[i] + (position - i) * (column[i + 1] - column[i])
            gap = 1e-6 * (column[-1] - column[0])  # ties would give an infinite density
            x = torch.cummax(x - gap * torch.arange(len(x)), 0).values + gap * torch.arange(len(x))
            fine = torch.linspace(0, segments, _KNOTS, dtype=torch.float64)
            k = fine.floor().long().clamp(max=segments - 1)
            self.x[j] = x[k] + (fine - k) * (x[k + 1] - x[k])
            self.z[j] = z[k] + (fine - k) * (z[k + 1] - z[k])
            extreme = float(torch.special.ndtri(torch.tensor(1 - 0.5 / n, dtype=torch.float64)))
            reach = max(extreme - z_max, 0.25)  # a handful of rows has no extreme beyond its last knot
            for side, room in enumerate((x[0] - column[0], column[-1] - x[-1])):
                inner = (z[1] - z[0]) / (x[1] - x[0] if side == 0 else x[-1] - x[-2])
                self.tail[j, side] = reach / room if room > 0 else inner

    def _segment(self, knots: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k = torch.searchsorted(knots, value.T.contiguous(), right=True).T.clamp(1, _KNOTS - 1) - 1  # (N, columns)

        def at(table: Tensor, index: Tensor) -> Tensor:
            return table.T.gather(0, index)

        x0, x1, z0, z1 = at(self.x, k), at(self.x, k + 1), at(self.z, k), at(self.z, k + 1)
        slope = (z1 - z0) / (x1 - x0)
        below, above = value < knots[:, 0], value >= knots[:, -1]
        slope = torch.where(below, self.tail[:, 0], torch.where(above, self.tail[:, 1], slope))
        x0, z0 = torch.where(above, x1, x0), torch.where(above, z1, z0)
        return x0, z0, slope

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """z = T(x) and log dz/dx, both (N, columns)."""
        x0, z0, slope = self._segment(self.x, value)
        return z0 + slope * (value - x0), slope.log()

    def inverse(self, z: Tensor) -> Tensor:
        """x = T^-1(z)."""
        x0, z0, slope = self._segment(self.z, z)
        return x0 + (z - z0) / slope

    def expected_inverse(self, mean: Tensor, std: Tensor) -> Tensor:
        """E[T^-1(z)] of z ~ N(mean, std^2), (..., columns) each.

        T^-1 is a sum of hinges (z - z_j)_+, whose expectation is std (t Phi(t) + phi(t)) at t = (mean - z_j) / std.
        """
        inner = (self.x[:, 1:] - self.x[:, :-1]) / (self.z[:, 1:] - self.z[:, :-1])
        slopes = torch.cat((1 / self.tail[:, :1], inner, 1 / self.tail[:, 1:]), 1)  # dx/dz, (columns, K+2)
        out = self.x[:, 0] + slopes[:, 0] * (mean - self.z[:, 0])
        for j, bend in enumerate((slopes[:, 1:] - slopes[:, :-1]).unbind(1)):
            t = (mean - self.z[:, j]) / std
            density = torch.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)
            out = out + bend * std * (t * torch.special.ndtr(t) + density)
        return out
