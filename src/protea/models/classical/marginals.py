r"""Independent marginals: the floor that every other model has to beat, with an exact likelihood.

    p(x | y) = prod_f p_f(x_f | y),        p(x) = sum_y p(y) p(x | y)

Every field f is a row of bins, and what is learnt is the mass of each bin, by counting with Lidstone's pseudo-count:
mass = (count + alpha) / (total + alpha * bins). The kinds of field differ only in what a bin is:

    category, bounded grid    one bin a code or level
    real                      equal-mass bins between the extremes, uniform density within, and two exponential tails
    unbounded grid            the same over whole cells: uniform within a bin, and two geometric tails (an exponential
                              tail cut into cells is geometric, so that one formula serves both)
    missing                   one more bin, where the field may be missing

Tails hold one pseudo-row like any other bin: a new value falls below n others with probability 1 / (n + 1). They end
where the schema says that values do. Lidstone 1920; Scott 1992, "Multivariate density estimation".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from protea.core import Conditionable, Countable, Model, Normalised, Stats
from protea.errors import ConfigError, DataError
from protea.models.entry import Entry
from protea.models.labels import refuse_labels
from protea.rng import Streams, permutation
from protea.space import Rows, Space

MAX_LEVELS = 1024  # a grid of more is binned


class Marginals(Normalised, Countable, Conditionable):
    """Independent fields, for each class; exact probability (mass x density) in the space's own units.

    Args:
        space: vector, table or image.
        bins: bins of each real or unbounded field, between its extremes.
        smoothing: pseudo-count alpha > 0 of every bin.

    Raises:
        ConfigError: a setting that is not positive, or a space of tokens.
    """

    binned: Tensor
    field: Tensor
    first: Tensor
    grid: Tensor
    high: Tensor
    low: Tensor
    missing: Tensor
    own: Tensor
    start: Tensor
    step: Tensor
    unit: Tensor
    class_prior: Tensor
    edges: Tensor
    tails: Tensor

    def __init__(self, space: Space, bins: int = 64, smoothing: float = 1.0) -> None:
        super().__init__()
        if space.kind not in ENTRY.suits:
            raise ConfigError(f"Independent marginals do not describe a {space.kind} space.", "Use ngram for text.")
        if bins < 1 or not smoothing > 0:
            raise ConfigError(f"bins={bins} and smoothing={smoothing} must be positive.", "Try 64 and 1.0.")
        self.space, self.bins, self.smoothing = space, bins, smoothing
        self.groups = max(len(space.classes), 1)
        fields = space.fields
        self.n_fields = len(fields)
        # Grids of very many levels are binned as if unbounded; their tails end at the bounds all the same.
        kinds = ["codes" if f.kind == "category" or 0 < f.levels <= MAX_LEVELS else "binned" for f in fields]
        binned = [i for i, kind in enumerate(kinds) if kind == "binned"]
        self.block = 64 if self.n_fields > 256 else 512
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
        # Fitted: bin edges in steps, scale of the lower and upper tails, log mass of every bin.
        edges = torch.linspace(-bins / 2, bins / 2, bins + 1, dtype=torch.float64)
        self.register_buffer("edges", edges.repeat(len(binned), 1))
        self.register_buffer("tails", torch.ones(len(binned), 2, dtype=torch.float64))
        self.register_buffer("class_prior", torch.full((self.groups,), 1 / self.groups, dtype=torch.float64))
        self.log_mass = nn.Parameter(torch.zeros(self.groups, self.total, dtype=torch.float64), requires_grad=False)
        self._cached: tuple[tuple[int, int], Tensor] | None = None  # the distribution functions, until masses change
        self._normalise(torch.zeros_like(self.log_mass))

    # ---- where a value falls ----

    def _locate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of every entry (B, F), -1 for impossible values, and its log density within the bin (B, F)."""
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
        log_density = torch.where(absent, 0.0, log_density)
        return torch.where(bad, -1, self.start + inside), log_density

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

    def _alive(self) -> Tensor:
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

    def _by_class(self, x: Tensor) -> Tensor:
        """log p(x | y) for every class, (B, classes)."""
        bin_, log_density = self._locate(x)
        log_p = torch.stack([row[bin_.clamp(min=0)] for row in self.log_mass], 1) + log_density[:, None]
        return torch.where((bin_ < 0)[:, None], -math.inf, log_p).sum(2)

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Exact log p(x | cond) in nats, (B,) float64; -inf for values the schema rules out, finite for all others."""
        if not self.space.classes:
            refuse_labels(cond)
        rows = max(1, (1 << 22) // (self.n_fields * self.groups))
        labels = [None] * -(-len(x) // rows) if cond is None or self.groups == 1 else cond.split(rows)
        out = [self._log_prob(part, y) for part, y in zip(x.split(rows), labels)]
        return torch.cat(out) if out else self.log_mass.new_zeros(0)

    def _log_prob(self, x: Tensor, cond: Tensor | None) -> Tensor:
        if cond is None:
            return torch.logsumexp(self._by_class(x) + self.class_prior.log(), 1)
        bin_, log_density = self._locate(x)
        log_p = self.log_mass[cond[:, None], bin_.clamp(min=0)] + log_density
        return torch.where(bin_ < 0, -math.inf, log_p).sum(1)

    # ---- learning ----

    @torch.no_grad()
    def initialise(self, rows: Rows, seed: int = 0) -> None:
        """Set the edges from the rows' quantiles, the class frequencies, and masses that are the prior's."""
        if self.space.classes and rows.y is not None and bool((rows.y >= 0).any()):
            known = rows.y[rows.y >= 0]
            self.class_prior.copy_(torch.bincount(known, minlength=self.groups).double() / len(known))
        x = rows.x.reshape(len(rows), self.n_fields)
        for h, f in enumerate(self.binned.tolist()):
            value = x[:, f].double()
            value = value[~value.isnan()]
            if len(value):
                cells = torch.round(value / self.step[h]) if self.grid[h] else value
                edges = _grid_edges(cells, self.bins) if self.grid[h] else _real_edges(cells, self.bins)
                self.edges[h] = edges.clamp(self.low[h], self.high[h])
                width = self.edges[h].diff()
                width = width[width > 0]
                self.tails[h] = torch.stack((width[0], width[-1])) if len(width) else 1.0
        self._normalise(torch.zeros_like(self.log_mass))

    @torch.no_grad()
    def expect(self, x: Tensor, cond: Tensor | None = None) -> Stats:
        """Counts of every bin for each class; rows of unknown label (-1) count by their posterior p(y | x)."""
        bin_, log_density = self._locate(x)
        if bool((bin_ < 0).any()):
            row, f = (bin_ < 0).nonzero()[0].tolist()
            raise DataError(
                f"Row {row} holds {x.reshape(len(x), -1)[row, f].item()} in field {self.space.fields[f].name!r}, "
                "which its schema rules out.",
                "Open the data again so that the schema covers it.",
            )
        counts = torch.zeros_like(self.log_mass)
        log_prob = log_density.sum()
        flat = bin_.reshape(-1)
        if cond is None or self.groups == 1 or bool((cond < 0).any()):
            joint = self._by_class(x) - log_density.sum(1, keepdim=True) + self.class_prior.log()
            log_p = torch.logsumexp(joint, 1)
            share = torch.exp(joint - log_p[:, None])
            if cond is not None and self.groups > 1:
                known = cond >= 0
                own = joint.gather(1, cond.clamp(min=0)[:, None])[:, 0] - self.class_prior.log()[cond.clamp(min=0)]
                share = torch.where(known[:, None], nn.functional.one_hot(cond.clamp(min=0), self.groups), share)
                log_p = torch.where(known, own, log_p)
            for c in range(self.groups):
                weight = share[:, c].repeat_interleave(self.n_fields)
                counts[c] = torch.bincount(flat, weight, minlength=self.total)
            log_prob = log_prob + log_p.sum()
        else:
            index = (cond[:, None] * self.total + bin_).reshape(-1)
            counts = torch.bincount(index, minlength=counts.numel()).view_as(counts).double()
            log_prob = log_prob + torch.where(counts > 0, counts * self.log_mass, 0.0).sum()
        return {"counts": counts, "log_prob": log_prob, "count": log_prob.new_tensor(float(len(x)))}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        """mass = (count + alpha) / (total + alpha * bins): the posterior mode under a Dirichlet prior."""
        self._normalise(stats["counts"])

    def _normalise(self, counts: Tensor) -> None:
        mass = torch.where(self._alive(), counts + self.smoothing, 0.0)
        per_field = mass.new_zeros(self.groups, self.n_fields).index_add_(1, self.field, mass)
        self.log_mass.copy_((mass / per_field[:, self.field]).log())

    def log_prior(self) -> Tensor:
        """alpha * sum log mass: expectation-maximisation never lowers the rows' log-likelihood plus this."""
        return self.smoothing * self.log_mass[:, self._alive()].sum()

    # ---- drawing and conditioning ----

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        if not self.space.classes:
            refuse_labels(cond)
        if cond is None:
            cond = rng.child("label").categorical(self.class_prior.log().expand(len(rng), -1))
        return self._draw(rng, cond)

    def _draw(self, rng: Streams, cond: Tensor) -> Tensor:
        u = rng.child("bin").uniform(self.n_fields, dtype=torch.float64).clamp(max=1 - 1e-9)
        u = u + (cond[:, None] * self.n_fields + torch.arange(self.n_fields, device=u.device))
        bin_ = torch.searchsorted(self._cdf(), u, right=True) - cond[:, None] * self.total - self.start
        x = (bin_ + self.first) * self.unit
        if len(self.binned):
            place = rng.child("place").uniform(len(self.binned), dtype=torch.float64)
            x[:, self.binned] = self._place(bin_[:, self.binned], place)
        x = torch.where(bin_ == self.own, math.nan, x)
        return x.to(self.space.dtype).reshape(len(rng), *self.space.event)

    def _cdf(self) -> Tensor:
        """One ascending sequence over classes and fields: field j's distribution function rises from j to j + 1."""
        key = (self.log_mass.data_ptr(), self.log_mass._version)
        if self._cached is None or self._cached[0] != key:
            running = self.log_mass.exp().cumsum(1)
            ends = running[:, self.start + self.own + self.missing.long() - 1]
            begins = torch.cat((torch.zeros_like(ends[:, :1]), ends[:, :-1]), 1)
            column = torch.arange(self.groups, device=running.device)[:, None] * self.n_fields + self.field
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

    def given(self, x: Tensor, observed: Tensor) -> Model:
        """p(. | x[observed]): the observed entries as they are, the others independent given p(y | x[observed])."""
        return ConditionalMarginals(self, x, observed)


class ConditionalMarginals(Normalised):
    """Independent marginals given some entries of one row (*event), or of B rows each with its own pattern.

    Draw i completes row i mod B.
    """

    def __init__(self, joint: Marginals, x: Tensor, observed: Tensor) -> None:
        super().__init__()
        if x.shape != observed.shape or tuple(x.shape[-len(joint.space.event) :]) != joint.space.event:
            raise DataError(
                f"Observed entries of shape {tuple(observed.shape)} do not fit x {tuple(x.shape)}.",
                f"Both must be {joint.space.event}, or have one more leading axis.",
            )
        self.joint, self.space, self.block = joint, joint.space, joint.block
        self.x = x.reshape(-1, *joint.space.event)
        self.seen = observed.reshape(-1, joint.n_fields)
        self.log_class = torch.log_softmax(self._entries(self.x, self.seen) + joint.class_prior.log(), 1)

    def _entries(self, x: Tensor, chosen: Tensor) -> Tensor:
        """log p of the chosen entries for every class, (B, classes)."""
        bin_, log_density = self.joint._locate(x)
        log_p = torch.stack([row[bin_.clamp(min=0)] for row in self.joint.log_mass], 1) + log_density[:, None]
        log_p = torch.where((bin_ < 0)[:, None], -math.inf, log_p)
        return torch.where(chosen[:, None], log_p, 0.0).sum(2)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        row = (rng.ids % len(self.x)).to(self.x.device)
        if cond is None:
            cond = rng.child("label").categorical(self.log_class[row])
        new = self.joint._draw(rng, cond)
        return torch.where(self.seen[row].reshape(new.shape), self.x[row].to(new.dtype), new)

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """log p of the entries that were not observed, (B,); row i under row i mod B of the conditions."""
        row = torch.arange(len(x), device=x.device) % len(self.x)
        log_p = self._entries(x, ~self.seen[row])
        if cond is not None and self.joint.groups > 1:
            return log_p.gather(1, cond[:, None])[:, 0]
        return torch.logsumexp(log_p + self.log_class[row], 1)


def _real_edges(value: Tensor, bins: int) -> Tensor:
    """bins + 1 equal-mass edges from just below the least to just above the greatest value; repeats at the end."""
    low, high = float(value.min()), float(value.max())
    spread = high - low if high > low else 1e-3 * max(abs(low), 1.0)
    levels = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    edges = _quantiles(value, levels)
    edges[0], edges[-1] = low - 1e-6 * spread, high + 1e-6 * spread
    if high == low:
        edges[0], edges[-1] = low - 0.5 * spread, low + 0.5 * spread
    return _pad(edges.unique(), bins)


def _grid_edges(cell: Tensor, bins: int) -> Tensor:
    """bins + 1 edges between cells: every distinct value its own bin, or else the frequent ones and quantiles."""
    value, count = cell.unique(return_counts=True)
    edges = torch.cat((value - 0.5, value + 0.5)).unique()
    if len(edges) > bins + 1:
        keep = max(bins // 3, 0)
        heavy = value[count.argsort(descending=True)[:keep]]
        heavy = heavy[torch.isin(heavy, value[count * bins >= count.sum()])]
        rest = _quantiles(cell, torch.linspace(0, 1, bins + 1 - 2 * len(heavy), dtype=torch.float64)).floor() + 0.5
        rest[0] = value[0] - 0.5
        edges = torch.cat((rest, heavy - 0.5, heavy + 0.5)).unique()
    return _pad(edges, bins)


def _quantiles(value: Tensor, levels: Tensor) -> Tensor:
    ordered = value.sort().values
    position = levels * (len(ordered) - 1)
    left = position.floor().long()
    right = (left + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[left], ordered[right], position - left)


def _pad(edges: Tensor, bins: int) -> Tensor:
    return torch.cat((edges, edges[-1:].expand(bins + 1 - len(edges))))


@dataclass(frozen=True)
class MarginalsConfig:
    """Settings of `marginals`; see `Marginals`."""

    bins: int = 64
    smoothing: float = 1.0


def build(space: Space, config: MarginalsConfig) -> Model:
    """Independent marginals, in the space's own units."""
    return Marginals(space, config.bins, config.smoothing)


def suggest(space: Space, rows: Rows, seconds: float) -> MarginalsConfig:
    """Bins by the rows' number, 2 n^(2/5); the pseudo-count of greatest leave-one-out likelihood, which is exact:
    sum over bins of c log((c - 1 + alpha) / (n - 1 + alpha K))."""
    n = max(len(rows), 1)
    config = MarginalsConfig(bins=int(min(max(2 * n**0.4, 8), 128)))
    rows = rows[permutation(n, 0, "marginals suggest")[:5000]]
    model = Marginals(space, config.bins, 1.0)
    model.initialise(rows)
    counts = model.expect(rows.x, rows.y if space.classes else None)["counts"]
    alive = model._alive().double()
    totals = counts.new_zeros(model.groups, model.n_fields).index_add_(1, model.field, counts)[:, model.field]
    size = alive.new_zeros(model.n_fields).index_add_(0, model.field, alive)[model.field]

    def left_out(alpha: float) -> float:
        p = (counts - 1 + alpha).clamp(min=1e-300) / (totals - 1 + alpha * size).clamp(min=1e-300)
        return float(torch.where(counts > 0, counts * p.log(), 0.0).sum())

    return replace(config, smoothing=max((1.0, 0.3, 0.1, 0.03, 0.01, 0.003), key=left_out))


ENTRY = Entry(
    name="marginals",
    family="classical",
    title="Independent marginals",
    source="Lidstone 1920, Note on the general case of the Bayes-Laplace formula for inductive probabilities",
    suits=frozenset({"vector", "table", "image"}),
    config=MarginalsConfig,
    build=build,
    suggest=suggest,
)
