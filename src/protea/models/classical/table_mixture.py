r"""Mixture of mixed columns: latent class analysis, in the space's own units and with an exact likelihood.

    p(x) = sum_k w_k prod_c p_c(x_c | k)

Given the hidden class k the columns c are independent, each of its own kind: a table of probabilities for categories,
for numbers a histogram over bins that all classes share or a normal (rounded to the grid where values are whole
numbers, prices or dates, so that masses are exact), and missing is a value with its own probability. So the nats of a
row are exact, every draw is a valid row, and `given` completes rows exactly.

Where a table names a column of labels, each label has k classes of its own (Hastie & Tibshirani 1996, "Discriminant
analysis by Gaussian mixtures"): what distinguishes the labels is then what the classes are about.

What keeps many classes from fitting noise is the prior (`distributions/histogram.py`): each class begins as `strength`
rows distributed as all rows are, and moves away by as many rows as it explains.

Lazarsfeld & Henry 1968, "Latent structure analysis"; Hunt & Jorgensen 2011, "Clustering mixed data" (mixed columns);
Dempster, Laird & Rubin 1977 (EM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protea.core import Model
from protea.distributions.family import Family
from protea.distributions.label import Label
from protea.distributions.product import Product
from protea.models.classical.mixed import columns_family, in_space, usual_kinds
from protea.models.classical.mixture import Mixture
from protea.models.entry import Entry
from protea.rng import permutation
from protea.space import Rows, Space
from protea.spaces import Table

SEARCH_ROWS, SEARCH_STEPS = 20_000, 12
SEARCH_ENTRIES = 2_000_000  # of the search: wide rows are many numbers each
KIND_ROWS = 4000  # of the search for kinds of columns
SHARE = 0.2  # of the budget, that the search may take
OPERATIONS_PER_SECOND = 2e8  # entries of rows x columns x members a core counts in a second
ROUNDED = 100  # of them that a rounded normal costs where a histogram costs one
MOST_LABELS = 20  # that have classes of their own
FEW = 5000  # rows that starts of the search are made from; so many of 100 columns may have several starts


@dataclass(frozen=True)
class MixtureConfig:
    """Settings of `mixture`; see `Mixture` and `columns_family`.

    `kinds` is one of gaussian, bernoulli, categorical, multinomial, histogram for each column, or one name for all;
    "auto" takes categorical for codes and histogram for other numbers.
    """

    k: int = 32
    kinds: str | tuple[str, ...] = "auto"
    bins: int = 64
    smoothing: float = 0.3
    strength: float = 5.0
    floor: float = 1e-6
    weight_prior: float = 1.0
    restarts: int = 1


def build(space: Space, config: MixtureConfig) -> Model:
    """A mixture of products of columns, with `k` members for each label of the space."""
    kinds = config.kinds
    if isinstance(kinds, str):
        kinds = usual_kinds(space.fields, "histogram") if kinds == "auto" else [kinds] * len(space.fields)
    classes = len(space.classes)
    k = config.k if classes else _labels(space) * config.k
    model = Mixture(_family(space, config, kinds), k, classes, config.weight_prior, config.restarts)
    model.space = space
    return model


def _target(space: Space) -> int | None:
    """The column of labels of a table, if they are few."""
    target = space.target_index if isinstance(space, Table) else None
    few = target is not None and space.fields[target].kind == "category" and space.fields[target].levels <= MOST_LABELS
    return target if few else None


def _labels(space: Space) -> int:
    """How many labels have classes of their own, at least 1."""
    target = _target(space)
    return max(len(space.classes), 1) if target is None else space.fields[target].levels


def _family(space: Space, config: MixtureConfig, kinds: Sequence[str]) -> Family:
    members, target = _labels(space) * config.k, _target(space)
    columns = [c for c in range(len(space.fields)) if c != target]
    own = [space.fields[c] for c in columns]
    family: Family = columns_family(
        members, own, [kinds[c] for c in columns], smoothing=config.smoothing, strength=config.strength,
        bins=config.bins, floor=config.floor,
    )  # fmt: skip
    if target is not None:
        label = Label(_labels(space), space.fields[target].missing, config.k)
        family = Product([([target], label), (columns, family)])
    return in_space(family, space)


def suggest(space: Space, rows: Rows, seconds: float) -> MixtureConfig:
    """Kinds of columns, k and strength of the prior that score a fifth of the rows best after a few EM steps.

    Numbers are histograms or normals, all alike or each as it does best given the members found. k doubles while
    held-out rows gain by it and the search stays within a fifth of the budget, counted in operations rather than by the
    clock, so that the same data and budget give the same mixture on every machine. (BIC would count the bins of every
    histogram as parameters in full, which the prior does not let them be.)
    """
    small = len(rows) <= FEW and len(space.fields) <= 100
    most = min(SEARCH_ROWS, max(500, SEARCH_ENTRIES // len(space.fields)))
    rows = rows[permutation(len(rows), 0, "mixture suggest")[:most]]
    train, test = rows[: 4 * len(rows) // 5], rows[4 * len(rows) // 5 :]
    bins = int(min(max(2 * len(rows) ** 0.4, 8), 128))
    base = MixtureConfig(k=1, bins=bins, floor=_floor(space, rows.x))
    if len(train) < 2 or not len(test):
        return base
    operations = SHARE * seconds * OPERATIONS_PER_SECOND
    histogram, normal = usual_kinds(space.fields, "histogram"), usual_kinds(space.fields, "gaussian")
    rows_of_class = len(train) // _labels(space)
    few = replace(base, k=_power(min(8, rows_of_class // 8)), kinds=tuple(histogram))
    if histogram != normal:
        search = _Search(space, train[:KIND_ROWS], test[:KIND_ROWS], 0.4 * operations)
        other = replace(few, kinds=tuple(normal))
        if search.affords(other):
            each = replace(few, kinds=search.each_column(few, normal))
            few = search.best([few, other, each])
        operations -= 0.4 * operations - search.left
    search = _Search(space, train, test, operations)
    while few.k > 1 and not search.affords(few):
        few = replace(few, k=few.k // 2)
    best = search.best([few])
    for step in (2.0, 0.5):
        while 1 <= (k := int(step * best.k)) <= rows_of_class // 8 and search.affords(replace(best, k=k)):
            if search.best([best, replace(best, k=k)]) == best:
                break
            best = replace(best, k=k)
        if best.k > few.k:
            break
    for strength in (20.0, 1.0, 50.0):
        other = replace(best, strength=strength)
        best = search.best([best, other]) if search.affords(other) else best
    return replace(best, restarts=3 if small else 1)


class _Search:
    """Held-out scores of short fits, each made once, within a number of operations."""

    def __init__(self, space: Space, train: Rows, test: Rows, operations: float) -> None:
        self.space, self.train, self.test, self.left = space, train, test, operations
        self.scores: dict[MixtureConfig, float] = {}

    def cost(self, config: MixtureConfig) -> float:
        fields = self.space.fields
        kinds = [config.kinds] * len(fields) if isinstance(config.kinds, str) else config.kinds
        columns = sum(ROUNDED if k == "gaussian" and f.kind == "grid" else 1 for k, f in zip(kinds, fields))
        classes = _labels(self.space)
        tables = classes * config.bins * len(fields) * (classes + 5)  # each class's statistics have places for all
        seen = config.k if self.space.classes else classes * config.k  # members a row is weighed by
        return (SEARCH_STEPS + 5) * (len(self.train) * columns * seen + tables * config.k)

    def affords(self, config: MixtureConfig) -> bool:
        return self.cost(config) <= self.left

    def best(self, configs: Sequence[MixtureConfig]) -> MixtureConfig:
        for config in configs:
            if config not in self.scores:
                self.left -= self.cost(config)
                self.scores[config] = float(self.fit(config).log_prob(self.test.x, self.test.y).clamp(min=-1e6).sum())
        return max(configs, key=self.scores.__getitem__)

    @torch.no_grad()
    def fit(self, config: MixtureConfig) -> Mixture:
        model = build(self.space, config)
        assert isinstance(model, Mixture)
        model.initialise(self.train[:FEW])
        previous = -torch.inf
        for _ in range(SEARCH_STEPS):
            stats = model.expect(self.train.x, self.train.y)
            now = float(stats["log_prob"])
            if now - previous < 1e-5 * abs(now):
                break
            previous = now
            model.maximise(stats)
        return model

    @torch.no_grad()
    def each_column(self, config: MixtureConfig, other: Sequence[str]) -> tuple[str, ...]:
        """For every column its kind in `config` or the other, whichever scores held-out rows best given the members."""
        model = self.fit(config)
        r, r_test = (model.responsibilities(rows.x).flatten(1) for rows in (self.train, self.test))
        families = [model.family, _family(self.space, config, other)]
        families[1].initialise(self.train.x, r)
        for _ in range(3):
            families[1].maximise(families[1].expect(self.train.x, r))
        if len(self.space.fields) > 200:
            return tuple(other)
        mine = config.kinds
        columns = range(len(self.space.fields))
        scores = torch.stack([torch.stack([self._score(f, c, r_test) for c in columns]) for f in families])
        return tuple(mine[c] if i == 0 else other[c] for c, i in enumerate(scores.argmax(0).tolist()))

    def _score(self, family: Family, column: int, r: Tensor) -> Tensor:
        only = torch.zeros(len(self.test), len(self.space.fields), dtype=torch.bool)
        only[:, column] = True
        return (r * family.log_prob(self.test.x, only.view(self.test.x.shape)).clamp(min=-1e6)).sum()


def _power(n: int) -> int:
    """The greatest power of two up to n, at least 1."""
    return 1 << max(n, 1).bit_length() - 1


def _floor(space: Space, x: Tensor) -> float:
    """1e-6 of the least variance among the columns of reals."""
    reals = [c for c, f in enumerate(space.fields) if f.kind == "real"]
    values = x.reshape(len(x), -1)[:, reals].double()
    known = ~values.isnan()
    mean = torch.where(known, values, 0.0).sum(0) / known.sum(0).clamp(min=1)
    spread = torch.where(known, values - mean, 0.0).square().sum(0) / known.sum(0).clamp(min=1)
    spread = spread[spread > 0]
    return 1e-6 * float(spread.min()) if len(spread) else 1e-6


ENTRY = Entry(
    name="mixture",
    family="classical",
    title="Mixture of mixed columns (latent classes)",
    source="Lazarsfeld & Henry 1968, Latent structure analysis",
    suits=frozenset({"vector", "table", "image"}),
    config=MixtureConfig,
    build=build,
    suggest=suggest,
)
