r"""Augmenting a classifier with generated rows: does it learn more from real rows, generated rows, or both?

With D the real labelled rows and S rows drawn from p(x | y), n of each class, one classifier learns

    real: from D        synthetic: from S (TSTR, "train on synthetic, test on real")        both: from D and S

and all three are judged on the same real held-out rows. What is compared is the *paired* difference d_{st} over seeds s
(of the rows generated, and of the model where it learns afresh) and held-out rows t, with the interval of
`learning_curve.estimate`. Macro F1 is the mean over classes of 2 TP / (2 TP + FP + FN); it is no mean over rows, so the
rows' part of its variance comes from the bootstrap.

A model that learnt from D alone knows nothing that D does not say: what it can add is its assumptions (that pixels of a
class are Gaussian, say). Where they hold, a classifier without them gains; where D is plenty, there is nothing to gain.

Esteban, Hyland & Rätsch 2017, "Real-valued (medical) time series generation with recurrent conditional GANs" (TSTR);
Antoniou, Storkey & Edwards 2017, "Data augmentation generative adversarial networks".
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protea.core import Model
from protea.errors import ConfigError, DataError, NotSupported
from protea.evaluation.figure import resample_weights
from protea.evaluation.likelihood import class_prior
from protea.inference.contenders import Contender, Discriminative, Generative, Trained
from protea.inference.labelling import Labelling, labelling, require_classes
from protea.inference.learning_curve import Estimate, estimate
from protea.inference.semi_supervised import join
from protea.rng import Streams, fold
from protea.space import Rows, Space
from protea.spaces.sampling import constrained_sample

MARGIN = 0.01  # a gain of accuracy below it is not worth its rows
RAREST = 2000  # draws of a table's joint for one row of a class, before it is given up
REPLICATES = 200
KINDS = ("real", "synthetic", "both")


def generate(model: Model | Sequence[Model], counts: Sequence[int], seed: int = 0) -> Rows:
    """Rows with labels: counts[c] of class c, in the order of the classes, in canonical units.

    Args:
        model: of p(x | y); or of a table with a target, drawn until each class has its rows (exact: p(x, y) given y);
            or one model for each class.
        counts: rows of each class.
        seed: row i of a class depends on the seed, the class and i alone (of a table, on the seed and i).

    Raises:
        ConfigError: counts or models that do not fit the classes. NotSupported: no labels, a model that ignores them,
            or one of a table that hardly ever draws a class.

    >>> from protea.models.classical.gmm import GaussianMixture
    >>> from protea.spaces import Vector
    >>> model = GaussianMixture((1,), 1, classes=2); model.space = Vector(("x",), ("low", "high"))
    >>> model.means[1] = 50.0
    >>> rows = generate(model, [2, 3])
    >>> rows.y.tolist(), (rows.x[:, 0] > 25).tolist()
    ([0, 0, 1, 1, 1], [False, False, True, True, True])
    """
    models = [model] if isinstance(model, Model) else list(model)
    where = labelling(models[0].space)
    if len(counts) != len(where.names) or min(counts) < 0 or sum(counts) == 0:
        raise ConfigError(f"{list(counts)} rows for {len(where.names)} classes.", "Give a number for each class.")
    if not isinstance(model, Model) and len(models) != len(where.names):
        raise ConfigError(f"{len(models)} models for {len(where.names)} classes.", "Give one model, or one a class.")
    if isinstance(model, Model) and where.column is not None:
        return _of_a_table(model, where, counts, seed)
    prior = class_prior(model) if isinstance(model, Model) else None
    if isinstance(model, Model) and (prior is None or len(prior) != len(where.names)):
        raise NotSupported("The model was trained without labels.", "Fit it on labelled data, or one for each class.")
    parts, labels = [], []
    for c, n in enumerate(counts):
        cond = torch.full((n,), c) if isinstance(model, Model) else None
        source = model if isinstance(model, Model) else models[c]
        drawn = constrained_sample(source, n, cond, rng=Streams(fold(seed, "generate", c), torch.arange(n))).x
        parts.append(where.put(drawn, c))
        labels.append(torch.full((n,), c))
    y = torch.cat(labels) if where.column is None else None
    return Rows(torch.cat(parts), y, torch.arange(sum(counts)))


def _of_a_table(model: Model, where: Labelling, counts: Sequence[int], seed: int) -> Rows:
    """Draws of the joint, sorted by their label; the first counts[c] of each class."""
    kept: list[list[Tensor]] = [[] for _ in counts]
    have, drawn, batch = [0] * len(counts), 0, max(256, 2 * sum(counts))
    while short := [c for c, n in enumerate(counts) if have[c] < n]:
        scarce = [c for c in short if drawn > RAREST * max(have[c], 1)]
        if scarce:
            raise NotSupported(
                f"The model draws the class {where.names[scarce[0]]!r} {have[scarce[0]]} times in {drawn:,}.",
                "Fit it on more rows of that class, or fit one model for each class.",
            )
        streams = Streams(fold(seed, "generate"), torch.arange(drawn, drawn + batch))
        x, drawn = constrained_sample(model, batch, rng=streams).x, drawn + batch
        label = where.of(Rows(x, None, torch.arange(batch)))
        for c in short:
            mine = x[label == c]
            kept[c].append(mine)
            have[c] += len(mine)
    x = torch.cat([torch.cat(parts)[:n] for parts, n in zip(kept, counts) if n])
    return Rows(x, None, torch.arange(len(x)))


class _Fed(Contender):
    """A classifier fed by a generative model that learns from the very rows it is given."""

    kind = "discriminative"

    def __init__(self, classifier: Contender, generator: Generative, n: int = 100) -> None:
        if n < 1:
            raise ConfigError(f"{n} generated rows a class make no sense.", "Give 1 or more.")
        self.classifier, self.generator, self.n = classifier, generator, n
        self.name = self.named(classifier.name, generator.name)

    @abstractmethod
    def named(self, classifier: str, generator: str) -> str: ...

    @abstractmethod
    def mix(self, real: Rows, made: Rows) -> Rows:
        """What the classifier learns from."""

    def learn(self, space: Space, labelled: Rows, unlabelled: Rows | None = None, seed: int = 0) -> Trained:
        where = labelling(space)
        model = self.generator.learn(space, labelled, unlabelled, seed).density()
        made = generate(model, _counts(where, labelled, self.n), seed)
        return self.classifier.learn(space, self.mix(labelled, made), None, seed)


class OnGenerated(_Fed):
    """A classifier that learns from n generated rows a class alone (TSTR); rows without labels go to the generator."""

    def named(self, classifier: str, generator: str) -> str:
        return f"{classifier} on {generator} rows"

    def mix(self, real: Rows, made: Rows) -> Rows:
        return made


class Augmented(_Fed):
    """A classifier that learns from the real rows and n generated ones a class."""

    def named(self, classifier: str, generator: str) -> str:
        return f"{classifier} + {generator} rows"

    def mix(self, real: Rows, made: Rows) -> Rows:
        return join(real, made)


def _counts(where: Labelling, labelled: Rows, n: int | Sequence[int]) -> list[int]:
    """n rows of each class that the real rows show: a model knows nothing of the others."""
    if not isinstance(n, int):
        return list(n)
    seen = torch.bincount(where.of(labelled).clamp(min=0), minlength=len(where.names))
    return [n if s else 0 for s in seen.tolist()]


@dataclass(frozen=True)
class Augmentation:
    """What a classifier reached.

    Args:
        accuracy, f1: by "real", "synthetic" and "both"; F1 is the mean over classes.
        gain: paired difference of accuracy, "both" or "synthetic" minus "real"; gain_f1 of macro F1.
        words: the verdict.
    """

    accuracy: dict[str, Estimate]
    f1: dict[str, Estimate]
    gain: dict[str, Estimate]
    gain_f1: dict[str, Estimate]
    words: str

    def to_json(self) -> dict[str, Any]:
        tables = {name: {k: e.to_json() for k, e in getattr(self, name).items()}
                  for name in ("accuracy", "f1", "gain", "gain_f1")}  # fmt: skip
        return {**tables, "words": self.words}


def verdict(gain: Estimate) -> str:
    """Three answers: the gain is above 0; no gain worth having is left (below `MARGIN`); neither can be told.

    >>> [verdict(Estimate(v, v - 0.02, v + 0.02)) for v in (0.03, 0.0, -0.03)]
    ['synthetic rows help', 'undecided', 'synthetic rows do not help']
    """
    if gain.low > 0:
        return "synthetic rows help"
    return "synthetic rows do not help" if gain.high < MARGIN else "undecided"


def verdicts(sizes: Sequence[int], gains: Sequence[Estimate]) -> str:
    """The verdict at every number of labels, in one line.

    >>> verdicts([20, 50], [Estimate(0.03, 0.01, 0.05), Estimate(0.0, -0.001, 0.001)])
    '20 labels: synthetic rows help (+0.030, +0.010 .. +0.050); 50 labels: synthetic rows do not help (+0.000, -0.001 .. +0.001).'
    """  # noqa: E501
    return "; ".join(f"{n:,} labels: {verdict(g)} {_signed(g)}" for n, g in zip(sizes, gains)) + "."


def _signed(e: Estimate) -> str:
    return f"({e.value:+.3f}, {e.low:+.3f} .. {e.high:+.3f})"


def augment(
    model: Model | Sequence[Model] | Generative, space: Space, labelled: Rows, test: Rows, *,
    n: int | Sequence[int] = 100, classifier: Contender | None = None, seeds: int = 5,
) -> Augmentation:  # fmt: skip
    """Accuracy and macro F1 of a classifier that learns from real rows, from generated ones, and from both.

    Args:
        model: a trained conditional model, one trained model for each class, or a `Generative`, which learns from
            `labelled` afresh with every seed.
        space: of the rows.
        labelled: the real rows, with labels.
        test: real held-out rows, with labels.
        n: generated rows of each class; or the number for every class (the classes' shares, say, where the classifier
            is to know them: balanced rows teach it that classes are equally frequent).
        classifier: None: softmax regression with l2 = 1.
        seeds: how often rows are generated, two or more.

    Raises:
        ConfigError: fewer than two seeds, or counts that make no sense. NotSupported: see `generate`.
        DataError: one class only, or no labelled test rows.
    """
    where, classifier = labelling(space), classifier or Discriminative(1.0)
    labels, truth = where.of(labelled), where.of(test)
    require_classes(labels, where, "The rows to learn from")
    if seeds < 2:
        raise ConfigError(f"{seeds} seeds give no interval.", "Give 2 or more.")
    if bool((labels < 0).any()) or bool((truth < 0).any()) or len(test) == 0:
        raise DataError("Some rows to learn from or to be judged on have no label.", "Leave them out.")
    counts = _counts(where, labelled, n)
    said = {kind: torch.empty(seeds, len(test), dtype=torch.int64) for kind in KINDS}
    for s in range(seeds):
        source = model
        if isinstance(source, Generative):
            source = source.learn(space, labelled, None, fold(s, "augment")).density()
        made = generate(source, counts, fold(s, "augment"))
        for kind, rows in zip(KINDS, (labelled, made, join(labelled, made))):
            said[kind][s] = classifier.learn(space, rows, None, s).log_posterior(test.x).argmax(1)
    correct = {kind: (found == truth).double() for kind, found in said.items()}
    weights = torch.ones(1, len(test), dtype=torch.float64)
    weights = torch.cat((weights, resample_weights(len(test), REPLICATES, 0, "augment")))
    f1 = {kind: torch.stack([macro_f1(row, truth, len(where.names), weights) for row in found])
          for kind, found in said.items()}  # fmt: skip
    gain = {kind: estimate(correct[kind] - correct["real"]) for kind in KINDS[1:]}
    words = f"{verdict(gain['both'])}: real and synthetic rows against real ones {_signed(gain['both'])}"
    return Augmentation(
        {kind: estimate(c) for kind, c in correct.items()}, {kind: _bootstrapped(f) for kind, f in f1.items()},
        gain, {kind: _bootstrapped(f1[kind] - f1["real"]) for kind in KINDS[1:]}, words,
    )  # fmt: skip


def macro_f1(said: Tensor, truth: Tensor, classes: int, weights: Tensor) -> Tensor:
    """Mean over the classes seen or said of 2 TP / (2 TP + FP + FN), (R,), for weights (R, T) of the rows (T,).

    >>> macro_f1(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3, torch.ones(1, 3, dtype=torch.float64))
    tensor([0.6667], dtype=torch.float64)
    """
    a, b = (torch.nn.functional.one_hot(codes, classes).double() for codes in (said, truth))
    hits, total = weights @ (a * b), weights @ (a + b)  # total = 2 TP + FP + FN
    return (2 * hits / total.clamp(min=1.0)).sum(1) / (total > 0).sum(1)


def _bootstrapped(figures: Tensor) -> Estimate:
    """(seeds, 1 + replicates), the first without resampling: the mean, with the variance of seeds and that of rows."""
    from scipy.stats import t

    seeds = len(figures)
    value = float(figures[:, 0].mean())
    variance = float(figures[:, 0].var()) / seeds + float(figures[:, 1:].mean(0).var())
    half = float(t.ppf(0.975, seeds - 1)) * math.sqrt(variance)
    return Estimate(value, value - half, value + half)
