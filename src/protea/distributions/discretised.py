r"""Normals rounded to a grid, so that whole numbers, prices and dates have exact masses.

    P(x | k) = Phi((x + s/2 - mu) / sigma) - Phi((x - s/2 - mu) / sigma),       x in s Z

A hidden z ~ N(mu_k, sigma_k^2) was rounded to the nearest multiple of the step s. Where the field is bounded, values
beyond were recorded as the bound: the first and last cells reach to infinity, as they do for clipped pixels. EM through
z is exact. With a = (x - s/2 - mu) / sigma, b = (x + s/2 - mu) / sigma and Z = Phi(b) - Phi(a),

    E[z | x] = mu + sigma (phi(a) - phi(b)) / Z,       E[(z - mu)^2 | x] = sigma^2 (1 + (a phi(a) - b phi(b)) / Z)

are the moments of a truncated normal, and the M-step is the normal's, with sigma not below a floor. So the likelihood
of the recorded values never falls, and Sheppard's correction (the rounding's s^2 / 12) comes by itself.

NaN is an unknown entry, integrated out (`Optional` makes it a value). Dempster, Laird & Rubin 1977, section 4.2
(grouped, censored data); Johnson, Kotz & Balakrishnan 1994, "Continuous univariate distributions", 10.1 (moments).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions.family import Density, Family, placed
from protea.errors import ConfigError
from protea.rng import Streams
from protea.space import Field

NARROW = 1e-3  # width of a cell in sigmas below which differences of Phi are taken as a series
FLOOR, RELATIVE = 0.05, 1e-4  # of sigma, in steps (all mass on one value) and in standard deviations of the column


class Discretised(Family):
    """K members over D columns of grids, independent given the member.

    Args:
        members: K.
        fields: 'grid' fields, one a column: their steps and bounds.

    Parameters, which may be set: `means` and `sigmas`, (K, D), in units of x.

    Raises:
        ConfigError: a field that is not a grid.

    >>> family = Discretised(1, [Field("children", "grid")])
    >>> x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    >>> [round(p, 4) for p in family.log_prob(x).exp()[:, 0].tolist()]  # N(0, 1) rounded to whole numbers
    [0.2417, 0.3829, 0.2417]
    """

    step: Tensor
    low: Tensor
    high: Tensor
    origin: Tensor
    floor: Tensor

    def __init__(self, members: int, fields: Sequence[Field]) -> None:
        super().__init__()
        wrong = [f.name for f in fields if f.kind != "grid"]
        if wrong or not fields:
            raise ConfigError(f"The fields {wrong[:5]} are not grids.", "Use a Gaussian or a histogram for them.")
        self.members, self.event, self.dim = members, (len(fields),), len(fields)
        self.width = 4 * self.dim

        def constant(name: str, values: list[float]) -> None:
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)

        constant("step", [f.step for f in fields])
        constant("low", [f.low for f in fields])
        constant("high", [f.high for f in fields])
        zero = torch.zeros(members, self.dim, dtype=torch.float64)
        self.means = nn.Parameter(zero, requires_grad=False)
        self.sigmas = nn.Parameter(zero + self.step, requires_grad=False)
        # Statistics are taken about the data's mean, which keeps second moments from cancelling.
        self.register_buffer("origin", torch.zeros(self.dim, dtype=torch.float64))
        self.register_buffer("floor", FLOOR * self.step)  # of sigma

    # ---- cells ----

    def _flat(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Grid values (B, D) with 0 where unknown, what is known, and rows that hold an impossible value (B, 1)."""
        x = x.reshape(len(x), self.dim).to(torch.float64)
        known = ~x.isnan() if observed is None else observed.reshape(len(x), self.dim) & ~x.isnan()
        x = torch.where(known, torch.round(x / self.step) * self.step, 0.0)
        half = 0.5 * self.step
        bad = known & ((x < self.low - half) | (x > self.high + half))
        return x, known, bad.any(1, keepdim=True)

    def _cell(self, x: Tensor, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and log Z of every row, member and column, (B, K, D)."""
        half, x = 0.5 * self.step, x[:, None]
        a = torch.where(x - half < self.low, -math.inf, (x - half - mean) / sigma)
        b = torch.where(x + half > self.high, math.inf, (x + half - mean) / sigma)
        return a, b, log_mass(a, b)

    def density(self, own: slice | None = None) -> Density:
        mean, sigma = (self.means, self.sigmas) if own is None else (self.means[own], self.sigmas[own])

        def log_p(x: Tensor, observed: Tensor | None) -> Tensor:
            x, known, bad = self._flat(x, observed)
            _, _, log_z = self._cell(x, mean, sigma)
            return torch.where(bad, -math.inf, torch.where(known[:, None], log_z, 0.0).sum(2))

        return log_p

    # ---- learning ----

    @torch.no_grad()
    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        """n, sum r E[z] and sum r E[z^2] about `origin`, (members, D) each."""
        mean, sigma = (self.means, self.sigmas) if own is None else (self.means[own], self.sigmas[own])
        x, known, _ = self._flat(x, observed)
        first, second = truncated_moments(*self._cell(x, mean, sigma))
        weight = r.to(torch.float64)[:, :, None] * known[:, None]
        n, first, second = weight.sum(0), (weight * first).sum(0) * sigma, (weight * second).sum(0) * sigma.square()
        mean = mean - self.origin
        stats = {"n": n, "z1": n * mean + first, "z2": n * mean.square() + 2 * mean * first + second}
        return {name: placed(t, own, self.members) for name, t in stats.items()}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        n = stats["n"]
        live = n > 1e-10
        mean = stats["z1"] / n.clamp(min=1e-10)
        variance = stats["z2"] / n.clamp(min=1e-10) - mean.square()
        sigma = torch.maximum(variance.clamp(min=0).sqrt(), self.floor)
        self.means.copy_(torch.where(live, self.origin + mean, self.means))
        self.sigmas.copy_(torch.where(live, sigma, self.sigmas))

    def expected(self, stats: Stats) -> Tensor:
        n, z1, z2, mean = stats["n"], stats["z1"], stats["z2"], self.means - self.origin
        square = z2 - 2 * mean * z1 + n * mean.square()
        return -(n * self.sigmas.log() + 0.5 * square / self.sigmas.square()).sum()

    @torch.no_grad()
    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """Moments of the recorded values; each variance joined by a row's weight of that of all rows."""
        x, known, _ = self._flat(x, observed)
        r = r.to(torch.float64)
        rows = known.double().sum(0).clamp(min=1)
        centre = x.sum(0) / rows
        spread = (torch.where(known, x - centre, 0.0).square().sum(0) / rows).clamp(min=1e-300)
        spread = torch.maximum(spread, self.step.square())
        n = r.T @ known.double()
        shift = (r.T @ torch.where(known, x - centre, 0.0)) / n.clamp(min=1e-10)
        square = (r.T @ torch.where(known, x - centre, 0.0).square()) / n.clamp(min=1e-10) - shift.square()
        self.origin.copy_(centre)
        self.floor.copy_(torch.maximum(FLOOR * self.step, RELATIVE * spread.sqrt()))
        self.means.copy_(centre + shift)
        self.sigmas.copy_(((n * square.clamp(min=0) + 2 * spread) / (n + 2)).sqrt())
        self.sigmas.copy_(torch.maximum(self.sigmas, self.floor))

    def free(self) -> int:
        return 2 * self.members * self.dim

    # ---- drawing and completing ----

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        z = rng.child("normal").normal(self.dim, dtype=torch.float64)
        z = self.means[which] + self.sigmas[which] * z
        return torch.minimum(torch.maximum(torch.round(z / self.step) * self.step, self.low), self.high)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        return torch.where(observed, x.to(torch.float64), self.draw(rng, which).reshape(x.shape))

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        """E[x | k]: the normal's mean, or, where values are clipped to bounds, that of the clipped normal."""
        low, high = (bound - self.means for bound in (self.low, self.high))
        a, b = low / self.sigmas, high / self.sigmas
        density = torch.exp(-0.5 * a.square()) - torch.exp(-0.5 * b.square())
        inside = torch.special.ndtr(b) - torch.special.ndtr(a)
        mean = self.means * inside + self.sigmas * density / math.sqrt(2 * math.pi)
        mean = mean + torch.where(low.isfinite(), self.low * torch.special.ndtr(a), 0.0).nan_to_num(0.0)
        mean = mean + torch.where(high.isfinite(), self.high * torch.special.ndtr(-b), 0.0).nan_to_num(0.0)
        return torch.where(observed[:, None], x.to(torch.float64)[:, None], mean)


def log_mass(a: Tensor, b: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)), a < b, accurate in both tails and for narrow cells.

    For a cell of width w about m, Phi(b) - Phi(a) = w phi(m) (1 + (m^2 - 1) w^2 / 24 + O(w^4)), and differences of
    log Phi elsewhere, mirrored so that the smaller tail is taken.

    >>> log_mass(torch.tensor([30.0]).double(), torch.tensor([math.inf]).double()).item()  # log Phi(-30)
    -454.32124395634327
    """
    mirrored = a + b > 0
    low, high = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
    middle, width = 0.5 * (low + high), high - low
    narrow = (width < NARROW) & (width * middle.abs() < NARROW)
    m, w = torch.where(narrow, middle, 0.0), torch.where(narrow, width, 1.0)
    series = w.log() - 0.5 * m.square() - 0.5 * math.log(2 * math.pi)
    series = series + torch.log1p((m.square() - 1) * w.square() / 24)
    upper = torch.special.log_ndtr(torch.where(narrow, 0.0, high))
    lower = torch.special.log_ndtr(torch.where(narrow, -1.0, low))
    gap = (lower - upper).clamp(max=-1e-300)
    return torch.where(narrow, series, upper + torch.log(-torch.expm1(gap)))


def truncated_moments(a: Tensor, b: Tensor, log_z: Tensor) -> tuple[Tensor, Tensor]:
    """E[u] and E[u^2] of a standard normal between a and b of mass exp(log_z).

    >>> a, b = torch.tensor([0.0]).double(), torch.tensor([math.inf]).double()
    >>> [round(float(m), 6) for m in truncated_moments(a, b, log_mass(a, b))]  # sqrt(2 / pi) and 1
    [0.797885, 1.0]
    """
    left, right = (torch.exp(-0.5 * e.square() - 0.5 * math.log(2 * math.pi) - log_z) for e in (a, b))
    ends = torch.where(a.isfinite(), a * left, 0.0) - torch.where(b.isfinite(), b * right, 0.0)
    first, second = left - right, 1 + ends
    width, middle = b - a, 0.5 * (a + b)
    narrow = (width < NARROW) & (width * middle.abs() < NARROW)
    m, w = torch.where(narrow, middle, 0.0), torch.where(narrow, width, 0.0)
    first = torch.where(narrow, m * (1 - w.square() / 12), first)
    second = torch.where(narrow, first.square() + w.square() / 12, second)
    first = torch.minimum(torch.maximum(first, a), b)
    return first, torch.maximum(second, first.square())
