r"""Histograms: K members over the same bins, of numbers, codes and missing values at once.

    p(x | k) = prod_f m_{k, f, b(x_f)} d_f(x_f)

Every field f is a row of bins b, shared by the members; d_f is the density within the bin, which does not depend on k.
What a member has of its own is the mass m of each bin. Kinds of field differ only in what a bin is:

    category, bounded grid    one bin a code or level
    real                      equal-mass bins between the extremes, uniform density within, and two exponential tails
    unbounded grid            the same over whole cells: uniform within a bin, and two geometric tails (an exponential
                              tail cut into cells is geometric, so that one formula serves both)
    missing                   one more bin, where the field may be missing: NaN is a value

M-step, the posterior mode under a Dirichlet prior of c pseudo-counts a bin:

    m_{k,b} = (n_{k,b} + c_b) / sum_b' (n_{k,b'} + c_b'),     c_b = alpha (Lidstone),  or  c_b = s q_b (m-estimate)

where q is the histogram of all rows together. With s, a member that sees few rows looks like all rows rather than like
a flat distribution, which is what lets a mixture have many members. Tails hold pseudo-counts like any other bin: under
alpha = 1 a new value falls below n others with probability about 1 / n. They end where the schema says that values do.

Lidstone 1920; Cestnik 1990, "Estimating probabilities: a crucial task in machine learning" (m-estimate);
Scott 1992, "Multivariate density estimation".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions.bins import edges_of_grid, edges_of_reals
from protea.distributions.family import Density, Family, placed
from protea.errors import ConfigError, DataError
from protea.rng import Streams
from protea.space import Field

MAX_LEVELS = 1024  # a grid of more is binned


class Histogram(Family):
    """K histograms over the fields of an observation; NaN is a value of fields that may be missing.

    Args:
        members: K.
        fields: one a flattened entry of an observation.
        event: shape of one observation; None: (len(fields),).
        bins: bins of each real or unbounded field, between its extremes.
        smoothing: pseudo-count alpha > 0 of every bin.
        strength: s, pseudo-rows distributed as all rows are, which take the place of alpha in members; 0 for none.

    Raises:
        ConfigError: a setting that is not positive.
        DataError: (`expect`) a value that its field rules out.

    >>> x = torch.tensor([[0.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
    >>> family = Histogram(1, [Field("colour", "category", levels=3)], smoothing=1.0)
    >>> family.initialise(x, torch.ones(4, 1, dtype=torch.float64))
    >>> family.log_prob(x).exp()[:, 0].tolist()  # (count + 1) / (4 + 3)
    [0.42857142857142855, 0.42857142857142855, 0.2857142857142857, 0.2857142857142857]
    """

    binned: Tensor
    edges: Tensor
    field: Tensor
    first: Tensor
    grid: Tensor
    high: Tensor
    low: Tensor
    missing: Tensor
    own: Tensor
    pseudo: Tensor
    start: Tensor
    step: Tensor
    tails: Tensor
    unit: Tensor

    def __init__(
        self, members: int, fields: Sequence[Field], event: tuple[int, ...] | None = None, *, bins: int = 64,
        smoothing: float = 1.0, strength: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if bins < 1 or not smoothing > 0 or not strength >= 0:
            raise ConfigError(f"bins={bins} and smoothing={smoothing} must be positive, strength={strength} not "
                              "negative.", "Try 64, 1.0 and 0.")  # fmt: skip
        self.members, self.bins, self.smoothing, self.strength = members, bins, smoothing, strength
        self.fields, self.n_fields = list(fields), len(fields)
        self.event = (self.n_fields,) if event is None else tuple(event)
        self.width = 1 + self.n_fields // members  # every row holds its bins, whatever the members
        self.nan_is_value = any(field.missing for field in fields)
        # Grids of very many levels are binned as if unbounded; their tails end at the bounds all the same.
        kinds = ["codes" if f.kind == "category" or 0 < f.levels <= MAX_LEVELS else "binned" for f in fields]
        binned = [i for i, kind in enumerate(kinds) if kind == "binned"]
        missing = torch.tensor([field.missing for field in fields])
        own = torch.tensor([bins + 2 if kind == "binned" else field.levels for field, kind in zip(fields, kinds)])
        sizes = own + missing.long()
        self.total = int(sizes.sum())

        def constant(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)  # follows from the schema: not saved

        constant("start", sizes.cumsum(0) - sizes)  # the first bin of each field
        units = [field.step if field.kind == "grid" else 1.0 for field in fields]
        unit = torch.tensor(units, dtype=torch.float64)
        first = [f.low / u if f.kind == "grid" and math.isfinite(f.low) else 0.0 for f, u in zip(fields, units)]
        constant("unit", unit)
        constant("first", torch.tensor(first, dtype=torch.float64).round())  # the value of code 0, in units
        constant("missing", missing)
        constant("own", own)  # number of bins, the missing one not counted
        constant("field", torch.repeat_interleave(torch.arange(self.n_fields), sizes))  # of each bin
        constant("binned", torch.tensor(binned, dtype=torch.int64))
        grid = torch.tensor([fields[f].kind == "grid" for f in binned], dtype=torch.bool)
        step = unit[binned]
        constant("grid", grid)
        constant("step", step)
        half = 0.5 * grid.double()  # values of a grid sit in the middle of their cell
        low = torch.tensor([fields[f].low for f in binned], dtype=torch.float64) / step - half
        high = torch.tensor([fields[f].high for f in binned], dtype=torch.float64) / step + half
        constant("low", low)
        constant("high", high)
        # Fitted: bin edges in steps, scale of the lower and upper tails, pseudo-counts, log mass of every bin.
        edges = torch.linspace(-bins / 2, bins / 2, bins + 1, dtype=torch.float64)
        self.register_buffer("edges", edges.repeat(len(binned), 1))
        self.register_buffer("tails", torch.ones(len(binned), 2, dtype=torch.float64))
        self.register_buffer("pseudo", torch.full((self.total,), float(smoothing), dtype=torch.float64))
        self.log_mass = nn.Parameter(torch.zeros(members, self.total, dtype=torch.float64), requires_grad=False)
        self._cached: tuple[tuple[int, int], Tensor] | None = None  # the distribution functions, until masses change
        self._normalise(torch.zeros_like(self.log_mass))

    # ---- where a value falls ----

    def locate(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The bin of every entry (B, F) and its log density within the bin (B, F).

        The bin is `total` where an entry is not observed and `total + 1` where the field rules its value out.
        """
        x = x.reshape(len(x), self.n_fields).to(torch.float64)
        absent = x.isnan()
        code = torch.round(x.nan_to_num(0.0) / self.unit) - self.first
        bad = (code < 0) | (code >= self.own)
        inside = code.clamp(0, 2.0**40).long()
        log_density = torch.zeros_like(x)
        if len(self.binned):
            where, log_d, outside = self._histogram(x[:, self.binned].nan_to_num(0.0))
            inside[:, self.binned], log_density[:, self.binned], bad[:, self.binned] = where, log_d, outside
        inside = torch.where(absent, self.own, inside)
        bad = torch.where(absent, ~self.missing, bad)
        bin_ = torch.where(bad, self.total + 1, self.start + inside)
        gone = absent | bad
        if observed is not None:
            hidden = ~observed.reshape(len(x), self.n_fields)
            bin_, gone = torch.where(hidden, self.total, bin_), gone | hidden
        return bin_, torch.where(gone, 0.0, log_density)

    def _histogram(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bin, log density within it, and whether the value is impossible, of the binned fields, (B, H) each."""
        x = torch.where(self.grid, torch.round(x / self.step), x)
        edges, k = self.edges, self.bins
        outside = (x < self.low) | (x > self.high)
        last = torch.nextafter(edges[:, -1], edges[:, 0])
        x = torch.where((edges[:, -1] >= self.high) & (x > last), last, x)  # the schema's maximum has no tail to be in
        bin_ = torch.searchsorted(edges, x.T.contiguous(), right=True).T  # 0 lower tail, 1 .. k, k + 1 upper tail
        inner = (bin_ - 1).clamp(0, k - 1)
        column = torch.arange(len(self.binned), device=x.device)
        width = (edges[column, inner + 1] - edges[column, inner]).clamp(min=1e-300)
        below, above = bin_ == 0, bin_ == k + 1
        span = self._spans()
        log_d = -width.log()
        for side, here, depth in ((0, below, edges[:, 0] - x), (1, above, x - edges[:, -1])):
            s, reach = self.tails[:, side], span[:, side]
            # grid: depth counts whole cells, from 1/2; P(j) = e^(-j/s) (1 - e^(-1/s)); real: e^(-d/s) / s
            shape = torch.where(self.grid, torch.log(-torch.expm1(-1 / s)) - (depth - 0.5) / s, -s.log() - depth / s)
            log_d = torch.where(here, shape - torch.log(-torch.expm1(-reach / s)), log_d)
        return bin_, log_d, outside

    def _spans(self) -> Tensor:
        """How far each tail reaches, (H, 2); 0 where it does not exist."""
        return torch.stack((self.edges[:, 0] - self.low, self.high - self.edges[:, -1]), 1).clamp(min=0)

    def living(self) -> Tensor:
        """Bins that may hold mass: not those of zero width."""
        alive = torch.ones(self.total, dtype=torch.bool, device=self.edges.device)
        if len(self.binned):
            inner = self.edges.diff(dim=1) > 0
            tails = self._spans() > 0
            rows = torch.cat((tails[:, :1], inner, tails[:, 1:]), 1)
            place = self.start[self.binned, None] + torch.arange(self.bins + 2, device=rows.device)
            alive[place] = rows
        return alive

    # ---- density ----

    def density(self, own: slice | None = None) -> Density:
        log_mass = self.log_mass if own is None else self.log_mass[own]
        ends = log_mass.new_tensor([[0.0], [-math.inf]]).expand(2, len(log_mass))  # not observed, impossible
        weight = torch.cat((log_mass.T, ends)).contiguous()

        def log_p(x: Tensor, observed: Tensor | None) -> Tensor:
            bin_, log_density = self.locate(x, observed)
            if not len(bin_):
                return weight.new_zeros(0, weight.shape[1])
            return nn.functional.embedding_bag(bin_, weight, mode="sum") + log_density.sum(1, keepdim=True)

        return log_p

    # ---- learning ----

    @torch.no_grad()
    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        """Counts of every bin, (members, bins)."""
        bin_, _ = self.locate(x, observed)
        bad = bin_ > self.total
        if bool(bad.any()):
            row, f = bad.nonzero()[0].tolist()
            raise DataError(
                f"Row {row} holds {x.reshape(len(x), -1)[row, f].item()} in field {self.fields[f].name!r}, "
                "which its schema rules out.",
                "Open the data again so that the schema covers it.",
            )
        counts = r.new_zeros(self.total + 1, r.shape[1])
        for column in bin_.T.contiguous():
            counts.index_add_(0, column, r)
        counts = counts[:-1].T
        return {"counts": placed(counts, own, self.members).contiguous()}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        self._normalise(stats["counts"])

    def _normalise(self, counts: Tensor) -> None:
        mass = torch.where(self.living(), counts + self.pseudo, 0.0)
        per_field = mass.new_zeros(len(mass), self.n_fields).index_add_(1, self.field, mass)
        self.log_mass.copy_((mass / per_field[:, self.field]).log())

    def expected(self, stats: Stats) -> Tensor:
        counts = stats["counts"]
        return torch.where(counts > 0, counts * self.log_mass, 0.0).sum()

    @torch.no_grad()
    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """Bins from the rows' quantiles, pseudo-counts, and each member's masses."""
        self.place(x, observed)
        self.maximise(self.expect(x, r, None, observed))

    @torch.no_grad()
    def coordinates(self, x: Tensor) -> Tensor:
        """Numbers as the places of their bins, codes as indicators, each field of variance 1; missing is one more."""
        self.place(x)
        bin_ = self.locate(x)[0] - self.start
        parts = []
        for f, field in enumerate(self.fields):
            here, gone = bin_[:, f].clamp(0, int(self.own[f]) - 1), bin_[:, f] == self.own[f]
            if field.kind == "category":
                c = nn.functional.one_hot(bin_[:, f].clamp(0, int(self.own[f])), int(self.own[f]) + 1).double()
            else:
                place = here.double()
                mean = place[~gone].mean() if bool((~gone).any()) else place.new_zeros(())
                c = torch.stack((torch.where(gone, mean, place), gone * self.bins / 2), 1)
            c = c - c.mean(0)
            parts.append(c / c.square().mean(0).sum().clamp(min=1e-12).sqrt())
        return torch.cat(parts, 1)

    @torch.no_grad()
    def place(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Bins from the rows' quantiles, pseudo-counts, and masses that are the prior's."""
        seen = x.reshape(len(x), self.n_fields)
        mask = None if observed is None else observed.reshape(len(x), self.n_fields)
        for h, f in enumerate(self.binned.tolist()):
            value = seen[:, f].double() if mask is None else seen[mask[:, f], f].double()
            value = value[~value.isnan()]
            if len(value):
                cells = torch.round(value / self.step[h]) if self.grid[h] else value
                edges = edges_of_grid(cells, self.bins) if self.grid[h] else edges_of_reals(cells, self.bins)
                self.edges[h] = edges.clamp(self.low[h], self.high[h])
                width = self.edges[h].diff()
                width = width[width > 0]
                self.tails[h] = torch.stack((width[0], width[-1])) if len(width) else 1.0
        self.pseudo.fill_(self.smoothing)
        none = torch.zeros_like(self.log_mass)
        if self.strength:
            one = x.new_ones(len(x), 1, dtype=torch.float64)
            part = slice(0, 1) if self.members > 1 else None
            self._normalise(self.expect(x, one, part, observed)["counts"][:1].expand_as(none))
            self.pseudo.copy_(self.strength * self.log_mass[0].exp())
        self._normalise(none)

    def log_prior(self) -> Tensor:
        """sum_b c_b log m_b, the Dirichlet prior of every member."""
        alive = self.living()
        return (self.pseudo[alive] * self.log_mass[:, alive]).sum()

    def free(self) -> int:
        return self.members * int(self.living().sum() - self.n_fields)

    # ---- drawing and completing ----

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        u = rng.child("bin").uniform(self.n_fields, dtype=torch.float64).clamp(max=1 - 1e-9)
        u = u + (which[:, None] * self.n_fields + torch.arange(self.n_fields, device=u.device))
        bin_ = torch.searchsorted(self._cdf(), u, right=True) - which[:, None] * self.total - self.start
        x = (bin_ + self.first) * self.unit
        if len(self.binned):
            place = rng.child("place").uniform(len(self.binned), dtype=torch.float64)
            x[:, self.binned] = self._place(bin_[:, self.binned], place)
        x = torch.where(bin_ == self.own, math.nan, x)
        return x.reshape(len(rng), *self.event)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        return torch.where(observed, x.to(torch.float64), self.draw(rng, which))

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        """Means of numbers, the most probable codes of categories, both of values that are not missing."""
        return torch.where(observed[:, None], x.to(torch.float64)[:, None], self.means())

    def blend(self, x: Tensor, observed: Tensor, r: Tensor) -> Tensor:
        """Means of numbers; of categories the most probable code of the mixture, not of one member."""
        r = r.to(torch.float64)
        here = r @ self._present()  # how probable it is, under the mixture, that a value is there
        mean = (r[:, :, None] * (self._present() * self.means().reshape(self.members, -1))).sum(1)
        mean = mean / here.clamp(min=1e-300)
        for f, field in enumerate(self.fields):
            if field.kind == "category":
                a = int(self.start[f])
                mean[:, f] = (r @ self.log_mass[:, a : a + int(self.own[f])].exp()).argmax(1).double()
        return torch.where(observed, x, mean.reshape(x.shape).to(x.dtype))

    def _present(self) -> Tensor:
        """1 - p(NaN | k) of every field, (members, F)."""
        last = torch.where(self.missing, self.start + self.own, 0)
        return torch.where(self.missing, -torch.expm1(self.log_mass[:, last]), 1.0)

    def means(self) -> Tensor:
        """E[x_f | k, x_f is there] of numbers, the most probable code of categories, (members, *event)."""
        value = self.unit[self.field] * (
            torch.arange(self.total, device=self.unit.device) - self.start[self.field] + self.first[self.field]
        )
        if len(self.binned):
            place = self.start[self.binned, None] + torch.arange(self.bins + 2, device=value.device)
            value[place] = self._centres()
        here = torch.arange(self.total, device=value.device) != (self.start + self.own)[self.field]
        mass = torch.where(here, self.log_mass.exp(), 0.0)
        per_field = mass.new_zeros(self.members, self.n_fields).index_add_(1, self.field, mass)
        mean = mass.new_zeros(self.members, self.n_fields).index_add_(1, self.field, mass * value)
        mean = mean / per_field.clamp(min=1e-300)
        for f, field in enumerate(self.fields):
            if field.kind == "category":
                a = int(self.start[f])
                mean[:, f] = mass[:, a : a + int(self.own[f])].argmax(1).double()
        return mean.reshape(self.members, *self.event)

    def _centres(self) -> Tensor:
        """The mean of every bin of the binned fields, (H, bins + 2)."""
        edges, s, reach = self.edges, self.tails, self._spans()
        gone = torch.where(reach.isfinite(), reach, 0.0) / torch.expm1(torch.where(reach > 0, reach / s, 1.0))
        cut = torch.where(reach.isfinite() & (reach > 0), gone, 0.0)  # of a tail that ends
        depth = torch.where(self.grid[:, None], 0.5 + 1 / torch.expm1(1 / s), s) - cut
        inner = 0.5 * (edges[:, 1:] + edges[:, :-1])
        return torch.cat((edges[:, :1] - depth[:, :1], inner, edges[:, -1:] + depth[:, 1:]), 1) * self.step[:, None]

    def _cdf(self) -> Tensor:
        """One ascending sequence over members and fields: field j's distribution function rises from j to j + 1."""
        key = (self.log_mass.data_ptr(), self.log_mass._version)
        if self._cached is None or self._cached[0] != key:
            running = self.log_mass.exp().cumsum(1)
            ends = running[:, self.start + self.own + self.missing.long() - 1]
            begins = torch.cat((torch.zeros_like(ends[:, :1]), ends[:, :-1]), 1)
            column = torch.arange(self.members, device=running.device)[:, None] * self.n_fields + self.field
            cdf = column + (running - begins[:, self.field]) / (ends - begins)[:, self.field]
            self._cached = (key, cdf.reshape(-1))
        return self._cached[1]

    def _place(self, bin_: Tensor, u: Tensor) -> Tensor:
        """A value within a bin of a binned field, from a uniform number."""
        edges, k = self.edges, self.bins
        inner = (bin_ - 1).clamp(0, k - 1)
        column = torch.arange(len(self.binned), device=u.device)
        left, right = edges[column, inner], edges[column, inner + 1]
        depth = -self.tails * torch.log1p(u[..., None] * torch.expm1(-self._spans() / self.tails))
        x = left + u * (right - left)
        x = torch.where(bin_ == 0, edges[:, 0] - depth[..., 0], x)
        x = torch.where(bin_ == k + 1, edges[:, -1] + depth[..., 1], x)
        # Cells run from j - 1/2 to j + 1/2; ceil(x - 1/2) keeps the right end of a bin within it.
        return torch.where(self.grid, torch.ceil(x - 0.5) * self.step, x)
