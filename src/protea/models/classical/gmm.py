r"""Gaussian mixture, learnt by expectation-maximisation.

    p(x | y) = sum_k w_{y,k} N(x; mu_{y,k}, Sigma_{y,k}),        p(x) = sum_y p(y) p(x | y)

    E-step   r_{b,k} = w_k N(x_b; mu_k, Sigma_k) / p(x_b)
    M-step   w_k = N_k / N,  mu_k = sum_b r x_b / N_k,  Sigma_k = argmax over Sigma >= floor I,   N_k = sum_b r_{b,k}

Each class owns k components. A labelled row is shared among its class's components only; a row of unknown label (-1)
among all of them, so semi-supervised learning needs nothing more.

What is guaranteed: with `reg_covar` as a floor of the eigenvalues (see `distributions/covariance.py`) the plain
log-likelihood of the rows never falls, at any step. A component that no row uses any more is revived by splitting a
heavy one into two, displaced by +-delta. By Jensen's inequality that costs at most N |delta|^2 / 2 (Mahalanobis)
nats, and delta is chosen to spend at most half of what the M-step has provably just gained; so the guarantee stands.

Dempster, Laird & Rubin 1977, "Maximum likelihood from incomplete data via the EM algorithm";
Arthur & Vassilvitskii 2007, "k-means++"; Schwarz 1978, "Estimating the dimension of a model" (BIC).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from protea.core import Conditionable, Countable, Model, Normalised, Stats
from protea.distributions.covariance import CHUNK, COVARIANCES
from protea.errors import ConfigError, nearest
from protea.models.classical.kmeans import kmeans
from protea.models.entry import Entry
from protea.models.labels import refuse_labels
from protea.models.lifted import lift
from protea.rng import Streams, fold, permutation
from protea.space import Rows, Space
from protea.transforms.relaxations import relaxation_for

Joint = Callable[[Tensor], Tensor]
SEARCH_ROWS, SEARCH_STEPS = 10_000, 10  # of the search for k
OPERATIONS_PER_SECOND = 8e9  # of EM in float64 on one core, by which the search is kept within its share
EMPTY = 1e-10  # rows: a component with less is not used by any row


class GaussianMixture(Normalised, Countable, Conditionable):
    """A mixture of k Gaussians for each class, in float64.

    Args:
        event: shape of one sample; the Gaussians live in its D = prod(event) entries.
        k: components for each class.
        covariance: "full", "tied", "diag" or "spherical".
        classes: number of labels; 0 for none.
        reg_covar: floor of every covariance's eigenvalues, in squared units of x.

    Raises:
        ConfigError: an unknown covariance, or k < 1.

    >>> x = Streams(0, 400).normal(2, dtype=torch.float64)
    >>> model = GaussianMixture((2,), k=2)
    >>> model.initialise(Rows(x, None, torch.arange(400)))
    >>> model.maximise(model.expect(x))
    >>> model.log_prob(x[:5]).shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 2]))
    """

    class_prior: Tensor
    origin: Tensor

    def __init__(
        self, event: tuple[int, ...], k: int, covariance: str = "full", classes: int = 0, reg_covar: float = 1e-6
    ) -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise ConfigError(f"There is no covariance {covariance!r}.", nearest(covariance, COVARIANCES))
        if k < 1 or reg_covar <= 0:
            raise ConfigError(f"A mixture of k={k} components with reg_covar={reg_covar} makes no sense.",
                              "Both must be positive.")  # fmt: skip
        self.event, self.k, self.classes, self.reg_covar = tuple(event), k, classes, reg_covar
        self.dim, self.groups = math.prod(event), max(classes, 1)
        self.kind = COVARIANCES[covariance]
        self.block = 512 if self.dim <= 256 else 64

        def parameter(*shape: int, value: float = 0.0) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, value, dtype=torch.float64), requires_grad=False)

        self.log_weights = parameter(self.groups, k, value=-math.log(k))  # of components within their class
        self.means = parameter(self.groups, k, self.dim)
        self.scale = parameter(*self.kind.shape(self.groups * k, self.dim), value=1.0)
        if self.kind.name in ("full", "tied"):
            self.scale.copy_(torch.eye(self.dim, dtype=torch.float64).expand_as(self.scale))
        # Statistics are taken about the data's mean, which keeps second moments from cancelling.
        self.register_buffer("origin", torch.zeros(self.dim, dtype=torch.float64))
        self.register_buffer("class_prior", torch.full((self.groups,), 1 / self.groups, dtype=torch.float64))

    # ---- density ----

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.dim).to(torch.float64) - self.origin

    def _shares(self, x: Tensor, cond: Tensor | None) -> Iterator[tuple[Tensor | slice, slice, Joint]]:
        """Rows that use the same components, in chunks that fit the cache: (rows, components, their `_joint`)."""
        everything = slice(0, self.groups * self.k)
        parts: list[tuple[Tensor | None, slice]] = [(None, everything)]
        if cond is not None and self.classes:
            parts = [
                ((cond == c).nonzero()[:, 0], everything if c < 0 else slice(c * self.k, (c + 1) * self.k))
                for c in cond.unique().tolist()
            ]
        for rows, own in parts:
            joint = self._joint(own)
            wide = (own.stop - own.start) * (self.dim if self.kind.name == "full" else 1)
            step = max(256, CHUNK // max(wide, self.dim))
            count = len(x) if rows is None else len(rows)
            for i in range(0, count, step):
                yield (slice(i, min(i + step, count)) if rows is None else rows[i : i + step]), own, joint

    def _joint(self, own: slice) -> Joint:
        """The function from x about the origin to log w_k N(x; mu_k, Sigma_k) of some components, (B, components)."""
        scale = self.kind.select(self.scale, own)
        prepared = self.kind.prepare(self.means.view(-1, self.dim)[own] - self.origin, scale)
        marginal = own.stop - own.start == self.groups * self.k
        log_w = self.log_weights + self.class_prior.log()[:, None] if marginal else self.log_weights
        log_w = log_w.reshape(-1)[own]
        constant = log_w - self.kind.half_log_det(scale, self.dim) - 0.5 * self.dim * math.log(2 * math.pi)
        return lambda x: torch.add(constant, self.kind.quad(x, *prepared), alpha=-0.5)

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """log p(x | cond) in nats, (B,) float64; the marginal where cond is None or -1."""
        if not self.classes:
            refuse_labels(cond)
        x = self._flat(x)
        out = x.new_empty(len(x))
        for rows, _, joint in self._shares(x, cond):
            out[rows] = torch.logsumexp(joint(x[rows]), 1)
        return out

    @torch.no_grad()
    def responsibilities(self, x: Tensor) -> Tensor:
        """p(component | x), (B, classes, k): clusters, and the Bayes classifier p(y | x) when summed over k."""
        joint = self._joint(slice(0, self.groups * self.k))(self._flat(x))
        return torch.softmax(joint, 1).view(-1, self.groups, self.k)

    # ---- EM ----

    @torch.no_grad()
    def expect(self, x: Tensor, cond: Tensor | None = None) -> Stats:
        """N_k, sum r x and sum r x x^T about the origin; labels of -1 are unknown."""
        x = self._flat(x)
        total = self.groups * self.k
        stats: Stats = {
            "n": x.new_zeros(total),
            "s1": x.new_zeros(total, self.dim),
            "s2": x.new_zeros(self.kind.packed(total, self.dim)),
            "log_prob": x.new_zeros(()),
            "count": x.new_tensor(float(len(x))),
        }
        for rows, own, joint in self._shares(x, cond):
            part = x[rows]
            r = joint(part)
            top = r.amax(1, keepdim=True)
            r.sub_(top).exp_()
            mass = r.sum(1, keepdim=True)
            r.div_(mass)
            stats["log_prob"] += (top + mass.log()).sum()
            self._count(stats, r, part, own)
        return stats

    def _count(self, stats: Stats, r: Tensor, x: Tensor, own: slice) -> None:
        stats["n"][own] += r.sum(0)
        stats["s1"][own] += r.T @ x
        self.kind.select(stats["s2"], own).add_(self.kind.scatter(r, x))

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        """The M-step; revives components that no row uses (see the module's docstring)."""
        n, s1, s2 = stats["n"], stats["s1"], stats["s2"]
        live = n > EMPTY
        if not live.any():
            return
        before = None if live.all() else self._expected(stats, live)
        by_class = n.view(self.groups, self.k)
        seen = by_class.sum(1) > EMPTY
        self.log_weights[seen] = (by_class[seen] / by_class[seen].sum(1, keepdim=True)).log()
        self.means.view(-1, self.dim)[live] = self.origin + s1[live] / n[live, None]
        means = s1[live] / n[live, None]
        scatter = self.kind.centre(n[live], s1[live], self.kind.select(s2, live), means)
        fitted = self.kind.fit(self.kind.weight(n[live], self.dim), scatter, self.reg_covar)
        if self.kind.name == "tied":
            self.scale.copy_(fitted)
        else:
            self.scale[live] = fitted
        if before is not None:
            self._revive(n, live, float(self._expected(stats, live) - before))

    def _expected(self, stats: Stats, live: Tensor) -> Tensor:
        """The expected complete-data log-likelihood of the present parameters, up to a constant."""
        n, s1, s2 = stats["n"][live], stats["s1"][live], self.kind.select(stats["s2"], live)
        means = self.means.view(-1, self.dim)[live] - self.origin
        scale = self.kind.select(self.scale, live)
        weights = (n * self.log_weights.view(-1)[live]).sum()
        dets = (n * self.kind.half_log_det(scale, self.dim)).sum()
        return weights - dets - 0.5 * self.kind.spent(self.kind.centre(n, s1, s2, means), scale)

    def _revive(self, n: Tensor, live: Tensor, gain: float) -> None:
        """Split heavy components into the places of empty ones, at the cost of at most half of `gain` nats."""
        length = min(0.5, math.sqrt(max(gain, 0.0) / float(n.sum())))
        if length < 1e-4:
            return  # converged: no split can be paid for
        means, log_w = self.means.view(-1, self.dim), self.log_weights.view(-1)
        for c in range(self.groups):
            own = torch.arange(c * self.k, (c + 1) * self.k, device=n.device)
            empty = own[~live[own]]
            heavy = own[n[own].argsort(descending=True)][: min(len(empty), int(live[own].sum()))]
            for e, h in zip(empty.tolist(), heavy.tolist()):
                one = self.kind.select(self.scale, slice(h, h + 1))
                delta = length * self.kind.axis(one, 1, self.dim)[0]
                means[e], means[h] = means[h] - delta, means[h] + delta
                log_w[h] -= math.log(2)
                log_w[e] = log_w[h]
                if self.kind.name != "tied":
                    self.scale[e] = self.scale[h]

    @torch.no_grad()
    def initialise(self, rows: Rows, seed: int = 0) -> None:
        """k-means++ centres and a few Lloyd steps for each class, then one M-step from the hard assignment.

        Each covariance is averaged with the class's own, which weighs as many rows as there are dimensions, so
        that a cluster of few rows does not start as a spike.
        """
        x = rows.x.reshape(len(rows), self.dim).to(torch.float64)
        self.origin.copy_(x.mean(0))
        x = x - self.origin
        if self.classes and rows.y is not None:
            known = rows.y[rows.y >= 0]
            if len(known):
                self.class_prior.copy_(torch.bincount(known, minlength=self.classes).double() / len(known))
        total = self.groups * self.k
        n, s1 = x.new_zeros(total), x.new_zeros(total, self.dim)
        s2 = x.new_zeros(self.kind.packed(total, self.dim))
        for c in range(self.groups):
            own = slice(c * self.k, (c + 1) * self.k)
            mine = slice(None) if not self.classes or rows.y is None else (rows.y == c).nonzero()[:, 0]
            part, ids = x[mine], rows.ids[mine]
            if len(part) == 0:  # a class without a row: as if it were all of them
                part, ids = x, rows.ids
            centres, nearest_centre = kmeans(part, ids, self.k, fold(seed, "kmeans", c))
            r = nn.functional.one_hot(nearest_centre, self.k).double()
            hold, prior = r.sum(0), float(self.dim)
            mean = part.mean(0)
            spread = self.kind.scatter(torch.ones_like(r[:, :1]), part - mean) / len(part)
            # Pseudo-rows about each cluster's own mean; an empty cluster is one pseudo-row at its centre.
            m1 = torch.where(hold[:, None] > 0, (r.T @ part) / hold.clamp(min=1)[:, None], centres)
            weight = hold.clamp(min=1)
            within = self.kind.scatter(r, part - m1[nearest_centre])
            n[own], s1[own] = weight, weight[:, None] * m1
            if self.kind.name == "tied":
                s2 += within + (m1 * weight[:, None]).T @ m1
            else:
                shape = (-1,) + (1,) * (spread.ndim - 1)
                share = (weight / (weight + prior)).view(shape)
                within = share * within / weight.view(shape) + (1 - share) * spread
                outer = torch.stack([self.kind.scatter(x.new_ones(1, 1), m[None])[0] for m in m1])
                s2[own] = weight.view(shape) * (within + outer)
        self.maximise({"n": n, "s1": s1, "s2": s2})

    # ---- drawing and conditioning ----

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        if not self.classes:
            refuse_labels(cond)
        elif cond is None:
            cond = rng.child("label").categorical(self.class_prior.log().expand(len(rng), -1))
        group = torch.zeros(len(rng), dtype=torch.int64, device=self.means.device) if cond is None else cond
        inside = rng.child("component").categorical(self.log_weights[group])
        z = rng.child("noise").normal(self.dim, dtype=torch.float64)
        which = group * self.k + inside
        x = self.means.view(-1, self.dim)[which] + self.kind.colour(z, self.scale, which)
        return x.reshape(len(rng), *self.event)

    def given(self, x: Tensor, observed: Tensor) -> Model:
        """The exact conditional p(. | x[observed]), a mixture again; see `ConditionalMixture`."""
        from protea.models.classical.conditional import ConditionalMixture

        return ConditionalMixture(self, x, observed)

    # ---- choice of k ----

    def free_parameters(self) -> int:
        """Number of free parameters (class frequencies are not counted)."""
        total = self.groups * self.k
        return total - self.groups + total * self.dim + self.kind.free(total, self.dim)

    def bic(self, x: Tensor, cond: Tensor | None = None) -> float:
        """Bayesian information criterion, free log B - 2 log p(x): lower is better."""
        return self.free_parameters() * math.log(len(x)) - 2 * float(self.log_prob(x, cond).sum())

    def aic(self, x: Tensor, cond: Tensor | None = None) -> float:
        """Akaike's information criterion, 2 free - 2 log p(x): lower is better."""
        return 2 * self.free_parameters() - 2 * float(self.log_prob(x, cond).sum())


@dataclass(frozen=True)
class GMMConfig:
    """Settings of `gmm`; see `GaussianMixture`."""

    k: int = 8
    covariance: str = "full"
    reg_covar: float = 1e-6


def build(space: Space, config: GMMConfig) -> Model:
    """A Gaussian mixture of the relaxed space."""
    relaxation = relaxation_for(space)
    inner = GaussianMixture(relaxation.event, config.k, config.covariance, len(space.classes), config.reg_covar)
    return lift(space, relaxation, inner)


def suggest(space: Space, rows: Rows, seconds: float) -> GMMConfig:
    """k and the covariance of lowest BIC after a few EM steps on a subsample, k = 1, 2, 4 ... while BIC falls.

    The search may cost about a tenth of the budget, shared by the kinds of covariance. It counts operations rather
    than time, so that the same data and budget give the same mixture on every machine. A tied covariance is tried up
    to 1,024 dimensions and full ones up to 100; beyond that diagonal ones are all that is affordable.
    """
    classes = len(space.classes)
    relaxation = relaxation_for(space)
    rows = rows[permutation(len(rows), 0, "gmm suggest")[:SEARCH_ROWS]]
    relaxation.fit(rows.x)
    v, _ = relaxation.lift(rows.x, Streams(0, rows.ids))
    lifted = Rows(v, rows.y if classes else None, rows.ids)
    d = math.prod(relaxation.event)
    kinds = ["diag"] + ["tied"] * (d <= 1024) + ["full"] * (d <= 100)
    best, lowest = GMMConfig(k=1, covariance="diag"), math.inf
    for kind in kinds:
        left = 0.1 * seconds * OPERATIONS_PER_SECOND / len(kinds)
        k, previous = 1, math.inf
        while k <= max(1, min(256, len(v) // (2 * max(classes, 1)))):
            left -= SEARCH_STEPS * len(v) * k * d * (8 if kind == "diag" else 4 * d)
            if left < 0 and k > 1:
                break
            config = replace(best, k=k, covariance=kind)
            bic = _short_fit(config, lifted, classes)
            if bic < lowest:
                best, lowest = config, bic
            if bic >= previous:
                break
            k, previous = 2 * k, bic
    return best


def _short_fit(config: GMMConfig, rows: Rows, classes: int) -> float:
    model = GaussianMixture(tuple(rows.x.shape[1:]), config.k, config.covariance, classes, config.reg_covar)
    model.initialise(rows)
    for _ in range(SEARCH_STEPS):
        model.maximise(model.expect(rows.x, rows.y))
    return model.bic(rows.x, rows.y)


ENTRY = Entry(
    name="gmm",
    family="classical",
    title="Gaussian mixture",
    source="Dempster, Laird & Rubin 1977, Maximum likelihood from incomplete data via the EM algorithm",
    suits=frozenset({"vector", "table", "image"}),
    config=GMMConfig,
    build=build,
    suggest=suggest,
)
