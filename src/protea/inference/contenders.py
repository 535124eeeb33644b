"""Two ways to a classifier, under one interface: model p(x, y) and use Bayes' rule, or model p(y | x) alone.

What a discriminative classifier cannot do raises `NotSupported`: it has no p(x) to sample, to score, to impute or to
learn from rows without labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from protea.core import Model
from protea.errors import NotSupported
from protea.inference.inputs import Inputs
from protea.inference.labelling import Labelling, labelling, require_classes
from protea.inference.logistic import SoftmaxRegression
from protea.inference.posterior import posterior
from protea.inference.semi_supervised import learn_semi
from protea.rng import Streams
from protea.space import Rows, Space
from protea.training import Budget, fit
from protea.training import config as settings_of
from protea.training.run import build, find


class Trained(ABC):
    """A trained classifier."""

    @abstractmethod
    def log_posterior(self, x: Tensor) -> Tensor:
        """log p(y | x), (B, classes)."""

    @abstractmethod
    def density(self) -> Model:
        """The model of x.

        Raises:
            NotSupported: there is none.
        """


class Contender(ABC):
    """A way to learn a classifier from rows."""

    name: str
    kind: Literal["generative", "discriminative"]

    @abstractmethod
    def learn(self, space: Space, labelled: Rows, unlabelled: Rows | None = None, seed: int = 0) -> Trained:
        """Learn from rows with labels and, where it can, from rows without.

        Raises:
            NotSupported: unlabelled rows, and no way to use them. DataError: labels of one class only.
        """


class _Linear(Trained):
    def __init__(self, inputs: Inputs, model: SoftmaxRegression) -> None:
        self.inputs, self.model = inputs, model

    def log_posterior(self, x: Tensor) -> Tensor:
        return self.model.log_posterior(self.inputs(x))

    def density(self) -> Model:
        raise NotSupported(
            "Logistic regression models p(y | x) only: it has no density of x, hence no samples and no imputation.",
            "Use a generative model: see `protea models`.",
        )


class Discriminative(Contender):
    """Softmax regression on standardised inputs.

    Args:
        l2: of the penalty, see `SoftmaxRegression`; 1e-6 is as good as none and always has a solution.
        name: what it is called in results.
    """

    kind = "discriminative"

    def __init__(self, l2: float = 1.0, name: str = "logistic") -> None:
        self.l2, self.name = l2, name

    def learn(self, space: Space, labelled: Rows, unlabelled: Rows | None = None, seed: int = 0) -> Trained:
        if unlabelled is not None:
            raise NotSupported(
                "Logistic regression models p(y | x) only: rows without labels tell it nothing.",
                "Use a generative model, whose p(x) learns from them.",
            )
        where = labelling(space)
        labels = where.of(labelled)
        require_classes(labels, where, "The rows to learn from")
        inputs = Inputs(space, where).fit(labelled.x)
        return _Linear(inputs, SoftmaxRegression(len(where.names), self.l2).fit(inputs(labelled.x), labels))


class _Bayes(Trained):
    def __init__(self, model: Model, where: Labelling) -> None:
        self.model, self.where = model, where

    def log_posterior(self, x: Tensor) -> Tensor:
        return posterior(self.model, x).log_prob

    def density(self) -> Model:
        return self.model


class Generative(Contender):
    """A model of `MODELS` with Bayes' rule on top.

    Args:
        model: its name.
        settings: overrides of the suggested settings.
        budget: of one fit; models that learn by EM usually converge long before.
        weight: lambda of unlabelled rows.

    Raises:
        ConfigError: no such model.
    """

    kind = "generative"

    def __init__(
        self, model: str, settings: Mapping[str, Any] | None = None, budget: Budget | None = None, weight: float = 1.0
    ) -> None:
        self.name, self.settings, self.weight = model, dict(settings or {}), weight
        self.budget = budget or Budget(seconds=5.0)
        self.entry = find(model)

    def untrained(self, space: Space, rows: Rows, seed: int = 0) -> Model:
        """The model with settings suggested for these rows."""
        suggested = self.entry.suggest(space, rows, self.budget.seconds or 5.0)
        config = settings_of.from_json(self.entry.config, self.settings, suggested)
        return build(self.name, space, config, seed)

    def learn(self, space: Space, labelled: Rows, unlabelled: Rows | None = None, seed: int = 0) -> Trained:
        where = labelling(space)
        require_classes(where.of(labelled), where, "The rows to learn from")
        model = self.untrained(space, labelled, seed)
        if unlabelled is not None:
            learn_semi(model, labelled, unlabelled, weight=self.weight, budget=self.budget, seed=seed)
            return _Bayes(model, where)
        model.initialise(labelled, seed)
        fit(model, labelled, budget=self.budget, judge=None, progress=None, seed=seed)
        return _Bayes(model.eval(), where)


def sample_of(trained: Trained, n: int, seed: int = 0) -> Tensor:
    """n rows drawn from a trained classifier's model of x; NotSupported where there is none."""
    return trained.density().sample(n, rng=Streams(seed, torch.arange(n)))
