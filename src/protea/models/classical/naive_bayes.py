r"""Naive Bayes: a prior of classes, and features that are independent given the class.

    p(y, x) = pi_y prod_j p(x_j | theta_yj),        p(y | x) = pi_y p(x | y) / sum_c pi_c p(x | c)

It is a mixture whose member is the class. Where labels stand beside the rows (images, vectors) every class has one
member of its own; where they are a column of a table, that column is one more independent feature, which names the
member (`distributions/label.py`). So EM over rows without a label (Nigam et al. 2000), exact conditionals and draws
(first y ~ pi, then x_j ~ p(x_j | y)) are those of `Mixture`, and log_prob is that of a whole row, label included where
it is a column.

Kinds of features and their smoothing theta = (n_cj + alpha) / (n_c + alpha k) are those of the families: Bernoulli,
categorical, multinomial, histogram; Gaussian variances have `var_smoothing` times the largest variance added, as
scikit-learn's have. Adding s to a variance is the M-step of data to which independent noise of variance s was added.

Maron 1961, "Automatic indexing: an experimental inquiry"; McCallum & Nigam 1998, "A comparison of event models for
naive Bayes text classification"; Lidstone 1920.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protea.core import Model, Stats
from protea.distributions.family import Family
from protea.distributions.gaussian import Gaussian
from protea.distributions.label import Label
from protea.distributions.product import Product
from protea.errors import ConfigError, DataError
from protea.models.classical.mixed import columns_family, in_space, usual_kinds
from protea.models.classical.mixture import PREFIX, Mixture
from protea.models.entry import Entry
from protea.models.labels import class_shares
from protea.rng import permutation
from protea.space import Field, Rows, Space
from protea.spaces import Table


class NaiveBayes(Mixture):
    """A Bayes classifier that is a distribution of rows: it scores, draws, completes and learns without labels.

    Args:
        family: one member a class, independent over the features.
        classes: number of classes.
        target: the column of rows that holds the label, in a table; None where labels stand beside the rows.
        missing: whether a label that is missing is a value of the target column.
        var_smoothing: what is added to variances of Gaussian features, as a share of the largest variance.
        weight_prior: alpha >= 1, the concentration of a Dirichlet prior of the classes of a target column; 2 is
            Laplace's, under which a class that was never seen is possible.

    Raises:
        ConfigError: fewer than one class, negative smoothing, a family of other members.

    >>> from protea.distributions.bernoulli import Bernoulli
    >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    >>> model = NaiveBayes(Bernoulli(2, (2,)), classes=2)
    >>> model.initialise(Rows(x, y, torch.arange(3)))
    >>> model.log_posterior(torch.tensor([[1.0, 0.0]])).exp().tolist()  # 2/3 3/4 1/2 against 1/3 1/3 1/3
    [[0.8709677419354839, 0.1290322580645161]]
    """

    blur: Tensor

    def __init__(
        self, family: Family, classes: int, target: int | None = None, *, missing: bool = False,
        var_smoothing: float = 1e-9, weight_prior: float = 1.0,
    ) -> None:  # fmt: skip
        if classes < 1 or family.members != classes or not var_smoothing >= 0:
            raise ConfigError(
                f"{classes} classes, a family of {family.members} members and var_smoothing={var_smoothing} "
                "make no classifier.", "Give one member a class, and smoothing of at least 0.")  # fmt: skip
        if target is None:
            super().__init__(family, 1, classes, weight_prior)
        else:
            size = family.event[0] + 1
            others = [c for c in range(size) if c != target]
            whole = Product([([target], Label(classes, missing)), (others, family)])
            super().__init__(whole, classes, 0, weight_prior)
        self.labels, self.target, self.features, self.var_smoothing = classes, target, family, var_smoothing
        self.register_buffer("blur", torch.zeros((), dtype=torch.float64))

    # ---- the classifier ----

    @property
    def class_log_prior(self) -> Tensor:
        """log pi, (classes,)."""
        return self.class_prior.log() if self.target is None else self.log_weights[0]

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(y, x) in nats for every class y, (B, classes). A target column of x is not read."""
        observed = None
        if self.target is not None:
            observed = torch.ones_like(x, dtype=torch.bool)
            observed[:, self.target] = False
        return self.family.log_prob(x, observed) + self.class_log_prior

    def log_posterior(self, x: Tensor) -> Tensor:
        """log p(y | x), (B, classes), by log-sum-exp.

        A row that is impossible in every class (a symbol never seen, without smoothing) says nothing about its class:
        it gets the prior, and never NaN.
        """
        joint = self.log_joint(x)
        nowhere = torch.isneginf(joint).all(1, keepdim=True)
        return torch.log_softmax(torch.where(nowhere, self.class_log_prior, joint), 1)

    # ---- learning ----

    @torch.no_grad()
    def initialise(self, rows: Rows, seed: int = 0) -> None:
        """Count the labelled rows: what is learnt already, unless some rows have no label.

        Raises:
            DataError: labels that are not whole numbers from 0 to classes - 1 (-1 or NaN where unknown).
        """
        y = self._known(rows)
        self.class_prior.copy_(class_shares(y, self.labels) if self.target is None else self.class_prior)
        if not bool((y >= 0).any()):
            super().initialise(rows, seed)
            return
        seen = y >= 0
        x = rows.x[seen]
        r = torch.nn.functional.one_hot(y[seen], self.labels).to(torch.float64)
        self.family.initialise(x, r)
        self.blur.fill_(self.var_smoothing * self._largest_variance(x))
        stats = {PREFIX + name: value for name, value in self.family.expect(x, r).items()}
        self.maximise(stats | {"n": r.sum(0)})
        self._recount(x, r)
        for label in [part for part in self.family.modules() if isinstance(part, Label)]:
            label.initialise(rows.x[:, self.target], torch.ones(len(rows), 1, dtype=torch.float64))

    def _known(self, rows: Rows) -> Tensor:
        """Labels (N,) int64, -1 where unknown."""
        if self.target is not None:
            return rows.x[:, self.target].nan_to_num(-1.0).long()
        if rows.y is None:
            raise DataError("Naive Bayes was given rows without labels.", "Give labels y (N,), -1 where unknown.")
        return self._labels(rows.y)

    def _gaussians(self) -> list[tuple[str, Gaussian]]:
        """Gaussian features, with the place of their statistics."""
        found: list[tuple[str, Gaussian]] = []

        def look(family: Family, prefix: str) -> None:
            if isinstance(family, Gaussian):
                found.append((prefix, family))
            elif isinstance(family, Product):
                for i, (_, part) in enumerate(family):
                    look(part, f"{prefix}{i}.")
            elif isinstance(inner := getattr(family, "inner", None), Family):
                look(inner, prefix)

        look(self.family, PREFIX)
        return found

    def _largest_variance(self, x: Tensor) -> float:
        """Of all Gaussian features together, as scikit-learn takes it."""
        largest = 0.0
        for family in [gaussian for _, gaussian in self._gaussians()]:
            columns = self._columns(family, x)
            known = ~columns.isnan()
            n = known.sum(0).clamp(min=1)
            mean = torch.where(known, columns, 0.0).sum(0) / n
            spread = torch.where(known, columns - mean, 0.0).square().sum(0) / n
            largest = max(largest, float(spread.max()))
        return largest

    def _recount(self, x: Tensor, r: Tensor) -> None:
        """Gaussian variances again, about the classes' means: about the mean of all rows, those of nearly constant
        columns lose digits."""
        for _, family in self._gaussians():
            columns = self._columns(family, x)[:, None]
            weight = r[:, :, None] * ~columns.isnan()
            n, value = weight.sum(0), columns.nan_to_num(0.0)
            mean = (weight * value).sum(0) / n.clamp(min=1)
            square = (weight * (value - mean).square()).sum(0) / n.clamp(min=1) + self.blur
            seen = n > 0
            family.means.copy_(torch.where(seen, mean, family.means))
            family.covariances = torch.where(seen, square.clamp(min=family.floor), family.covariances)

    def _columns(self, wanted: Family, x: Tensor) -> Tensor:
        """The columns of x that a part of the family describes, (B, d)."""

        def look(family: Family, x: Tensor) -> Tensor | None:
            if family is wanted:
                return x
            if isinstance(family, Product):
                return next((y for c, part in family if (y := look(part, x[:, c])) is not None), None)
            inner = getattr(family, "inner", None)
            return look(inner, x) if isinstance(inner, Family) else None

        found = look(self.family, x.reshape(len(x), -1).to(torch.float64))
        assert found is not None
        return found

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        """Counts to probabilities, moments to Gaussians with `var_smoothing`."""
        stats = dict(stats)
        for prefix, family in self._gaussians():
            stats[prefix + "s2"] = stats[prefix + "s2"] + self.blur * stats[prefix + "n"].view(family.members, -1)
        super().maximise(stats)


# ---- in a space ----


@dataclass(frozen=True)
class NaiveBayesConfig:
    """Settings of `naive-bayes`; see `NaiveBayes` and `columns_family`.

    `kinds` is one of gaussian, bernoulli, categorical, multinomial, histogram for each feature (the target is none), or
    one name for all; "auto" takes categorical for codes and gaussian for other numbers.
    """

    kinds: str | tuple[str, ...] = "auto"
    smoothing: float = 1.0
    bins: int = 32
    var_smoothing: float = 1e-9
    weight_prior: float = 2.0


def refuses(space: Space) -> str:
    """Why naive Bayes cannot model a space; "" if it can."""
    if not isinstance(space, Table):
        return "" if space.classes else "Naive Bayes needs labelled data, and these have no labels."
    if space.target is None:
        return "Naive Bayes needs a column of labels, and this table names no target."
    if space.target_index is None or space.fields[space.target_index].kind != "category":
        return f"Naive Bayes needs a target of categories; {space.target!r} is a number or part of a combination."
    return "" if len(space.fields) > 1 else "Naive Bayes needs a feature beside the target."


def feature_fields(space: Space) -> tuple[Sequence[Field], int | None]:
    """The fields of the features, and the target's column in a table.

    Raises:
        ConfigError: the space names no labels.
    """
    if why := refuses(space):
        raise ConfigError(why, "Name the column of labels: --target COLUMN (target=... in Python).")
    target = space.target_index if isinstance(space, Table) else None
    return [f for i, f in enumerate(space.fields) if i != target], target


def build(space: Space, config: NaiveBayesConfig) -> Model:
    """Naive Bayes in the space's own units: of its labels, or of a table's target column."""
    fields, target = feature_fields(space)
    kinds = config.kinds
    if isinstance(kinds, str):
        kinds = usual_kinds(fields) if kinds == "auto" else [kinds] * len(fields)
    label = None if target is None else space.fields[target]
    classes = len(space.classes) if label is None else label.levels
    family: Family = columns_family(classes, fields, kinds, smoothing=config.smoothing, bins=config.bins, floor=1e-30)
    if target is None:
        family = in_space(family, space)
    model = NaiveBayes(
        family, classes, target, missing=label is not None and label.missing,
        var_smoothing=config.var_smoothing, weight_prior=config.weight_prior,
    )  # fmt: skip
    model.space = space
    return model


SEARCH_ROWS, SEARCH_ENTRIES = 10_000, 4_000_000  # of the search: wide rows are many numbers each
WIDE = 40  # features beyond which they all get the same kind


def suggest(space: Space, rows: Rows, seconds: float) -> NaiveBayesConfig:
    """For each number Gaussian or histogram, then the pseudo-count: whichever scores held-out rows best.

    Since features are independent, each can be judged alone: by log p(x_j | y) of a fifth of the rows.
    """
    fields, target = feature_fields(space)
    most = min(SEARCH_ROWS, max(500, SEARCH_ENTRIES // len(fields)))
    rows = rows[permutation(len(rows), 0, "naive bayes suggest")[:most]]
    train, test = rows[: 4 * len(rows) // 5], rows[4 * len(rows) // 5 :]
    base = NaiveBayesConfig(bins=int(min(max(2 * len(rows) ** 0.4, 8), 64)))
    if not len(train) or not len(test):
        return base
    choices = [usual_kinds(fields, "gaussian"), usual_kinds(fields, "histogram")]
    if len(fields) > WIDE and any(field.kind == "grid" for field in fields):
        base = replace(base, kinds=tuple(choices[1]))  # a rounded normal costs a hundred times a histogram an entry
    elif choices[0] != choices[1]:
        scores = torch.stack([_scores(space, replace(base, kinds=tuple(k)), train, test, target) for k in choices])
        if len(fields) > WIDE:
            scores = scores.sum(1, keepdim=True).expand_as(scores)
        kinds = [choices[i][f] for f, i in enumerate(scores.argmax(0).tolist())]
        base = replace(base, kinds=tuple(kinds))

    def whole(alpha: float) -> float:
        config = replace(base, smoothing=alpha)
        model = _learnt(space, config, train)
        return float(model.log_prob(test.x, test.y if target is None else None).clamp(min=-1e6).sum())

    return replace(base, smoothing=max((1.0, 0.3, 0.1, 0.03, 0.01), key=whole))


def _learnt(space: Space, config: NaiveBayesConfig, rows: Rows) -> NaiveBayes:
    model = build(space, config)
    assert isinstance(model, NaiveBayes)
    model.initialise(rows)
    return model


def _scores(space: Space, config: NaiveBayesConfig, train: Rows, test: Rows, target: int | None) -> Tensor:
    """Sum over held-out rows of log p(x_j | their class), for each feature j; one number where there are many."""
    model = _learnt(space, config, train)
    y = model._known(test)
    x, y = test.x[y >= 0], y[y >= 0]
    flat = torch.ones(len(x), len(space.fields), dtype=torch.bool)
    features = [f for f in range(len(space.fields)) if f != target]
    if len(features) > WIDE:
        return _own(model.family.log_prob(x), y)[None].expand(len(features)) / len(features)
    out = []
    for f in features:
        only = torch.zeros_like(flat)
        only[:, f] = True
        out.append(_own(model.family.log_prob(x, only.view(x.shape)), y))
    return torch.stack(out)


def _own(log_p: Tensor, y: Tensor) -> Tensor:
    return log_p.gather(1, y[:, None]).clamp(min=-1e6).sum()


ENTRY = Entry(
    name="naive-bayes",
    family="classical",
    title="Naive Bayes",
    source="Maron 1961, Automatic indexing: an experimental inquiry",
    suits=frozenset({"vector", "table", "image"}),
    config=NaiveBayesConfig,
    build=build,
    suggest=suggest,
    refuses=refuses,
)
