r"""Learning curves: accuracy and log loss against the number n of labels, with repeated, paired draws.

Draw r of the pool is one stratified permutation: its first rows show every class once, and every beginning of it has
the classes in about the pool's shares. Size n takes its first n rows. All contenders see the same rows and are judged
on the same held-out rows, so that they are compared in pairs: for contenders a and b, draw r and held-out row t,
d_{rt} = correct_a - correct_b. The difference is the mean of d, and

    Var = s^2(mean_t d_{rt}) / R + s^2(mean_r d_{rt}) / T,           95 % interval: mean +- t_{R-1} sqrt(Var)

so that it says how much both other draws of the training rows and other held-out rows would move it. "Ahead" means that
the interval leaves out 0; either side can be.

Ng & Jordan 2002, "On Discriminative vs. Generative Classifiers: A comparison of logistic regression and naive Bayes":
logistic regression has the lower asymptotic error, reached with O(d) labels; naive Bayes reaches its higher one with
O(log d). The curves show whether, and where, they cross on the data at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protea.data import Dataset
from protea.errors import ConfigError, DataError, NotSupported
from protea.inference.contenders import Contender, Generative
from protea.inference.labelling import Labelling, labelling, require_classes
from protea.inference.semi_supervised import join, require_marginal
from protea.rng import Streams, fold, permutation
from protea.space import Rows

TEST_ROWS = 2000
MOST_LABELS = 2000  # of the default sizes
UNLABELLED = 5000
Told = Callable[[str], None]


@dataclass(frozen=True)
class Estimate:
    """A mean over draws and held-out rows with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    @property
    def sign(self) -> int:
        """1 above 0, -1 below, 0 where the interval holds 0."""
        return int(self.low > 0) - int(self.high < 0)


def estimate(each: Tensor) -> Estimate:
    """The mean of (draws, rows) with the interval of the module's docstring.

    >>> estimate(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    from scipy.stats import t

    draws, rows = each.shape
    value = float(each.mean())
    of_draws = float(each.mean(1).var()) / draws if draws > 1 else 0.0
    of_rows = float(each.mean(0).var()) / rows if rows > 1 else 0.0
    half = float(t.ppf(0.975, max(draws - 1, 1))) * math.sqrt(of_draws + of_rows)
    return Estimate(value, value - half, value + half)


def default_sizes(pool: int, classes: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 ... labels: from two a class (at least 10) to 0.8 of the pool, at most 2,000.

    >>> default_sizes(1600, 10)
    [20, 50, 100, 200, 500, 1000]
    """
    series = [m * 10**e for e in range(1, 7) for m in (1, 2, 5)]
    return [n for n in series if max(10, 2 * classes) <= n <= min(0.8 * pool, MOST_LABELS)]


class Draws:
    """The nested, paired draws of labelled rows, and the held-out rows they are judged on.

    Args:
        dataset: labelled; its train and validation parts are the pool, its holdout the test.
        seed: of the draws.

    Raises:
        DataError: one class only, or labels that are not classes. NotSupported: no labels.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        self.where: Labelling = labelling(dataset.space)
        self.space, self.seed = dataset.space, seed
        everything = join(dataset.train, dataset.validation)
        labels = self.where.of(everything)
        require_classes(labels, self.where, f"The data of {dataset.name}")
        self.pool, self.nameless = everything[labels >= 0], everything[labels < 0]
        self.labels = labels[labels >= 0]
        known = self.where.of(dataset.holdout) >= 0
        self.test = dataset.holdout[known][:TEST_ROWS]
        self.truth = self.where.of(self.test)
        if len(self.test) == 0:
            raise DataError(f"The held-out part of {dataset.name} has no labels.", "Label more rows.")

    def order(self, draw: int) -> Tensor:
        """Row numbers of the pool in the order of a draw: the j-th of m rows of a class stands at (j + u) / m."""
        shuffled = permutation(len(self.pool), self.seed, "curve", draw)
        y = self.labels[shuffled]
        place = torch.zeros(len(y), dtype=torch.float64)
        offset = Streams(fold(self.seed, "curve", draw), len(self.where.names)).uniform(1, dtype=torch.float64)[:, 0]
        for c in y.unique().tolist():
            mine = (y == c).nonzero()[:, 0]
            place[mine] = (torch.arange(len(mine)) + offset[c]) / len(mine)
            place[mine[0]] = -1.0
        return shuffled[place.argsort(stable=True)]

    def labelled(self, draw: int, n: int) -> Rows:
        """The first n rows of a draw."""
        return self.pool[self.order(draw)[:n]]

    def unlabelled(self, draw: int, n: int, most: int = UNLABELLED) -> Rows:
        """The rows after the first n of a draw, at most `most`, without their labels; then those that never had any."""
        rest = self.where.hide(self.pool[self.order(draw)[n:]])
        return join(rest, self.where.hide(self.nameless))[:most] if len(self.nameless) else rest[:most]

    def judge(self, log_posterior: Tensor) -> tuple[Tensor, Tensor]:
        """Correct (T,) and -log p(truth) (T,) in nats, the latter at most 50: a probability of 0 has no mean."""
        own = log_posterior.gather(1, self.truth[:, None])[:, 0]
        return (log_posterior.argmax(1) == self.truth).double(), (-own).clamp(max=50.0)


@dataclass
class Curve:
    """What one contender reached: (sizes, draws, held-out rows) of correct answers and of log losses in nats."""

    name: str
    kind: str
    correct: Tensor
    loss: Tensor

    def to_json(self, sizes: Sequence[int]) -> dict[str, Any]:
        points = [
            {"n": n, "accuracy": estimate(c).to_json(), "log_loss": estimate(l).to_json(),
             "accuracy_of_draws": c.mean(1).tolist()}
            for n, c, l in zip(sizes, self.correct, self.loss)
        ]  # fmt: skip
        return {"name": self.name, "kind": self.kind, "points": points}


@dataclass
class Comparison:
    """Paired difference of accuracy, first minus second, at every size; and what it says in plain words."""

    first: str
    second: str
    points: list[Estimate]
    words: str

    def to_json(self, sizes: Sequence[int]) -> dict[str, Any]:
        points = [{"n": n, **e.to_json(), "ahead": (self.second, None, self.first)[e.sign + 1]}
                  for n, e in zip(sizes, self.points)]  # fmt: skip
        return {"first": self.first, "second": self.second, "points": points, "words": self.words}


def compare_curves(first: Curve, second: Curve, sizes: Sequence[int]) -> Comparison:
    """The paired comparison of two curves."""
    points = [estimate(a - b) for a, b in zip(first.correct, second.correct)]
    return Comparison(first.name, second.name, points, in_words(first.name, second.name, sizes, points))


def in_words(first: str, second: str, sizes: Sequence[int], points: Sequence[Estimate]) -> str:
    """Where each is ahead as labels grow, in one sentence.

    >>> e = Estimate
    >>> in_words("naive-bayes", "logistic", [10, 50, 500], [e(0.1, 0.05, 0.15), e(0, -0.1, 0.1), e(-0.02, -0.03, -0.01)])
    'naive-bayes is ahead at 10 labels (by 0.100); no difference can be told at 50 labels; logistic is ahead at 500 labels (by 0.020).'
    """  # noqa: E501
    parts, i = [], 0
    while i < len(points):
        j = i
        while j + 1 < len(points) and points[j + 1].sign == points[i].sign:
            j += 1
        span = f"at {sizes[i]:,} labels" if i == j else f"from {sizes[i]:,} to {sizes[j]:,} labels"
        if points[i].sign == 0:
            parts.append(f"no difference can be told {span}")
        else:
            most = max(abs(p.value) for p in points[i : j + 1])
            parts.append(
                f"{first if points[i].sign > 0 else second} is ahead {span} (by {'up to ' * (j > i)}{most:.3f})"
            )
        i = j + 1
    return "; ".join(parts) + "."


def learning_curves(
    draws: Draws, contenders: Sequence[Contender], sizes: Sequence[int], repeats: int = 10,
    unlabelled: int | None = None, tell: Told | None = None,
) -> list[Curve]:  # fmt: skip
    """The curve of every contender; with `unlabelled`, also of every generative one with so many rows without labels.

    Args:
        draws: the rows.
        contenders: what is compared; each learns afresh at every size and draw.
        sizes: numbers of labels, each at least the number of classes and at most the pool.
        repeats: draws, two or more for an interval.
        unlabelled: rows without labels that the generative contenders also learn from; None for none.
        tell: is told progress.

    Raises:
        ConfigError: sizes or repeats that make no sense. NotSupported: a model that cannot use unlabelled rows.
    """
    classes = len(draws.labels.unique())
    if repeats < 2:
        raise ConfigError(f"{repeats} repeats give no interval.", "Give 2 or more.")
    if not sizes or min(sizes) < classes or max(sizes) > len(draws.pool):
        raise ConfigError(
            f"The numbers of labels {list(sizes)} do not fit {len(draws.pool):,} rows of {classes} classes.",
            f"Each must lie in {classes} .. {len(draws.pool)}.",
        )
    jobs: list[tuple[Contender, bool]] = [(c, False) for c in contenders]
    if unlabelled is not None:
        if not any(isinstance(c, Generative) for c in contenders):
            raise NotSupported("No contender is generative.", "Name a model: --models gmm.")
        first = draws.labelled(0, sizes[0])
        for contender in contenders:
            if isinstance(contender, Generative):  # told before anything has cost time
                require_marginal(contender.untrained(draws.space, first))
                jobs.append((contender, True))
    curves = []
    for contender, semi in jobs:
        shape = (len(sizes), repeats, len(draws.test))
        correct, loss = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        name = f"{contender.name} + unlabelled" if semi else contender.name
        for i, n in enumerate(sizes):
            for r in range(repeats):
                more = draws.unlabelled(r, n, unlabelled or 0) if semi else None
                trained = contender.learn(draws.space, draws.labelled(r, n), more, fold(draws.seed, "learn", r))
                correct[i, r], loss[i, r] = draws.judge(trained.log_posterior(draws.test.x))
            if tell is not None:
                tell(f"{name}: {n:,} labels, accuracy {float(correct[i].mean()):.3f}")
        curves.append(Curve(name, contender.kind, correct, loss))
    return curves
