"""The judge: every figure of one data set's samples, under one protocol.

A `Judge` is made once a data set: it fits features on the training rows, and holds one set of real rows
against which all models and null rows are measured, in equal numbers.

    judge = Judge(dataset)
    judgement = judge.evaluate(samples)
    print(judgement.metrics["c2st_accuracy"], judgement.audit["passed"])
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from protea.core import Model
from protea.data.dataset import Dataset
from protea.errors import DataError
from protea.evaluation.copies import copies, equal_to_any
from protea.evaluation.coverage import prdc
from protea.evaluation.diversity import duplicates, modes_covered, vendi
from protea.evaluation.features import (
    Features,
    classifier,
    grams,
    image_view,
    pca,
    random_conv,
    raw,
    table_view,
    whitened,
)
from protea.evaluation.figure import REPLICATES, Figure, over_seeds
from protea.evaluation.frechet import frechet, kernel_distance
from protea.evaluation.likelihood import Likelihood, class_prior, likelihood
from protea.evaluation.tabular import accuracy_of_labels, association_error, column_error, usefulness
from protea.evaluation.text import ReferenceNGram, bits_per_byte_ngram, distinct_n, self_bleu, words
from protea.evaluation.two_sample import Classifier, c2st, median_bandwidth, mmd, one_thread, sliced_wasserstein
from protea.rng import Streams, fold, permutation
from protea.space import Rows

MOST_REAL = 2000  # held-out rows compared
MOST_TRAIN = 40_000  # training rows searched for near copies; exact ones are looked for in all
WIDE = 128  # raw features beyond are reduced to their principal components
SAMPLES = {"vector": 2000, "table": 5000, "image": 1000, "tokens": 500, "series": 1000}  # generated for one judgement
MODES = 8
PATIENCE = 60.0  # seconds of sampling beyond what two-sample figures need


@dataclass(frozen=True)
class Judgement:
    """What the judge found.

    Args:
        metrics: figures by their fixed names (`metrics.METRICS`).
        audit: copies ("passed", "copies", "p_value", "exact_copies", "pairs" ...), "modes" [covered, all], "columns".
        likelihood: held-out likelihood of a model, where it has one.
        samples_per_s: of a model.
        samples, labels: what was judged.
    """

    metrics: dict[str, Figure]
    audit: dict[str, Any]
    likelihood: Likelihood | None = None
    samples_per_s: float | None = None
    samples: Tensor | None = field(default=None, repr=False)
    labels: Tensor | None = field(default=None, repr=False)


class Judge:
    """Judges samples against the held-out rows of a data set.

    Args:
        dataset: split data. The same number of real and generated rows is compared, min(holdout, validation,
            2000), so that the null row of real data is measured exactly as the models are.
        seed: of folds, bootstrap and null permutations; recorded.
        replicates: bootstrap draws.
        patience: seconds that samples beyond those of two-sample figures may take of a slow sampler.

    Raises:
        DataError: fewer than 10 held-out rows.
    """

    def __init__(
        self, dataset: Dataset, *, seed: int = 0, replicates: int = REPLICATES, patience: float = PATIENCE
    ) -> None:
        held = len(dataset.holdout)
        if held < 10:
            raise DataError(f"{dataset.name} has {held} held-out rows.", "Judging needs at least 10: give more data.")
        self.dataset, self.space, self.seed, self.replicates = dataset, dataset.space, seed, replicates
        self.kind, self.patience = dataset.space.kind, patience
        spare = len(dataset.validation) if len(dataset.validation) >= 10 else held
        self.n = min(held, spare, MOST_REAL)
        self.samples_wanted = max(self.n, min(SAMPLES[self.kind], max(len(dataset.train), 500)))
        chosen = permutation(held, fold(0, "judge"))[: self.n].sort().values
        self.real: Rows = dataset.holdout[chosen]
        self.train: Rows = dataset.train[permutation(len(dataset.train), fold(0, "judge-train"))[:MOST_TRAIN]]

    def evaluate(self, samples: Tensor, labels: Tensor | None = None) -> Judgement:
        """All figures of samples (N, *event) in canonical units, with their labels (N,) where they have some.

        The first n enter two-sample figures, all of them the audit and train-on-synthetic.

        Raises:
            DataError: fewer than 10 samples, of another shape, or not finite where the space has no missing values.
        """
        self._check(samples)
        x = samples[: self.n]
        facts = self._facts(x)
        metrics = {**self._quality(x, facts), **self._own(x, facts), **self._useful(samples, labels)}
        audit = self._audit(samples)
        metrics["copies"] = audit.pop("figure")
        if self.kind == "table":
            metrics["column_error"], audit["columns"] = column_error(
                self._flat(self.real.x), self._flat(x), self.space.fields, facts, **self._options
            )
        return Judgement(metrics, audit, samples=samples, labels=labels)

    def evaluate_model(self, model: Model, *, n: int | None = None, seed: int = 0, k: int = 8) -> Judgement:
        """Sample a model, time it, judge the samples, add its held-out likelihood.

        Args:
            n: samples; default by kind of space. A conditional model gets labels by the training frequencies.
            k: draws of a likelihood bound.
        """
        n = n or self.samples_wanted
        prior = class_prior(model)
        labels = None
        if prior is not None:
            labels = Streams(fold(seed, "judge-labels"), n).categorical(prior.log().expand(n, -1))
        samples, rate = self._draw(model, n, labels, fold(seed, "judge-samples"))
        labels = None if labels is None else labels[: len(samples)]
        found = self.evaluate(samples, labels)
        held_out = likelihood(model, self.real, {"split": self.dataset.split_hash}, k=k, seed=self.seed)
        return Judgement(found.metrics, found.audit, held_out, rate, samples, labels)

    def _draw(self, model: Model, n: int, labels: Tensor | None, seed: int) -> tuple[Tensor, float]:
        """Up to n samples and samples a second: what two-sample figures need, and the rest if a minute is enough."""
        parts, first, start = [], min(n, self.n), time.perf_counter()
        for low, high in ((0, first), (first, n)):
            if low and (n - first) / (first / (time.perf_counter() - start)) > self.patience:
                break
            cond = None if labels is None else labels[low:high]
            parts.append(model.sample(high - low, cond, rng=Streams(seed, torch.arange(low, high))))
        return torch.cat(parts), sum(map(len, parts)) / max(time.perf_counter() - start, 1e-9)

    # --- what is fitted once

    @cached_property
    def features(self) -> Features:
        """The coordinates of distances and neighbours."""
        if self.kind == "image":
            enough = self.train.y is not None and len(self.train) >= 500 and len(self.space.classes) > 1
            return classifier(self.space, self.train) if enough else random_conv(self.space, self.train.x)
        base = raw(self.space, self.train.x)
        return pca(base, self.train.x) if base(self.train.x[:1]).shape[1] > WIDE or self.kind == "tokens" else base

    @cached_property
    def frechet_features(self) -> Features:
        """Those of the Fréchet distance: whitened where columns have meanings, so that no unit outweighs another."""
        if self.kind in ("image", "tokens"):
            return self.features
        base = whitened(self.space, self.train.x)
        return pca(base, self.train.x) if base(self.train.x[:1]).shape[1] > WIDE else base

    @cached_property
    def classifier_features(self) -> tuple[Features, Classifier]:
        """What the two-sample classifier sees, and which it is."""
        if self.kind in ("vector", "table"):
            return table_view(self.space, self.train.x), "trees"
        if self.kind == "image":
            return image_view(self.space, self.train.x), "linear"
        return raw(self.space, self.train.x), "linear"

    @cached_property
    def copy_features(self) -> Features:
        """Where copies are looked for: the samples themselves; of text, the passages."""
        return grams(self.space) if self.kind == "tokens" else raw(self.space, self.train.x)

    @cached_property
    def ngram(self) -> ReferenceNGram:
        """The reference that text is coded with."""
        return ReferenceNGram(self.train.x, int(getattr(self.space, "vocabulary", 256)))

    @cached_property
    def trtr(self) -> dict[tuple[int, bool], dict[str, Figure]]:
        """Train-on-real figures by number of rows, each measured once."""
        return {}

    @cached_property
    def _modes(self) -> tuple[Any, Tensor, int]:
        """(features to mode numbers, mode of each compared real and validation row, how many)."""
        z = self.features(self.train.x[:5000]).numpy()
        if self.train.y is not None and self.space.classes:
            from sklearn.neighbors import KNeighborsClassifier

            k, guess = len(self.space.classes), KNeighborsClassifier(5).fit(z, self.train.y[:5000].numpy())
        else:
            from sklearn.cluster import KMeans

            k = max(1, min(MODES, len(z) // 20))
            with one_thread():
                guess = KMeans(k, n_init=5, random_state=0).fit(z)  # type: ignore[arg-type]
        return guess, torch.from_numpy(guess.predict(z)).long(), k

    # --- figures

    @property
    def _options(self) -> dict[str, int]:
        return {"seed": self.seed, "replicates": self.replicates}

    def _facts(self, x: Tensor, features: Features | None = None) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "split": self.dataset.split_hash,
            "n_real": self.n,
            "n_generated": len(x),
            "seed": self.seed,
        }
        return {**facts, **features.facts()} if features else facts

    def _quality(self, x: Tensor, facts: Mapping[str, Any]) -> dict[str, Figure]:
        options = self._options
        sees, kind = self.classifier_features
        found = {"c2st_accuracy": c2st(sees(self.real.x), sees(x), self._facts(x, sees), classifier=kind, **options)}
        f = self.frechet_features
        found["frechet"] = frechet(f(self.real.x), f(x), self._facts(x, f), **options)
        f = self.features
        real, fake, facts = f(self.real.x), f(x), self._facts(x, f)
        found["mmd"] = mmd(real, fake, facts, **options)
        found["sliced_wasserstein"] = sliced_wasserstein(real, fake, facts, seed=self.seed)
        found["kernel_distance"] = kernel_distance(real, fake, facts, **options)
        found |= prdc(real, fake, facts, **options)
        found["vendi"] = vendi(fake, facts, bandwidth=median_bandwidth(real), seed=self.seed)
        return found

    def _own(self, x: Tensor, facts: Mapping[str, Any]) -> dict[str, Figure]:
        """Figures of one kind of space."""
        found = {"duplicates": duplicates(x, facts, **self._options)}
        if self.kind == "tokens":
            texts = words(x, self.space)
            found["bits_per_byte_ngram"] = bits_per_byte_ngram(x, self.ngram, facts, space=self.space, **self._options)
            found["self_bleu"] = self_bleu(texts, facts, **self._options)
            found["distinct_n"] = distinct_n(texts, facts, seed=self.seed)
        if self.kind == "table" and len(self.space.fields) > 1:
            real, fake = self._flat(self.real.x), self._flat(x)
            found["association_error"] = association_error(real, fake, self.space.fields, facts, seed=self.seed)
        return found

    def _useful(self, samples: Tensor, labels: Tensor | None) -> dict[str, Figure]:
        """Train on synthetic, test on real, beside train on as many real rows."""
        n = min(len(samples), len(self.train))
        if self.kind == "table":
            target = self._target
            if target is None:
                return {}

            def measure(x: Tensor, y: Tensor | None) -> dict[str, Figure]:
                facts = {**self._facts(x), "target": self.space.fields[target].name}
                return usefulness(
                    self._flat(x), self._flat(self.real.x), target, self.space.fields, facts, **self._options
                )
        elif labels is not None and self.train.y is not None and self.real.y is not None:
            f, truth = self.classifier_features[0], self.real.y

            def measure(x: Tensor, y: Tensor | None) -> dict[str, Figure]:
                assert y is not None
                facts = self._facts(x, f)
                return {"accuracy": accuracy_of_labels(f(x), y, f(self.real.x), truth, facts, **self._options)}
        else:
            return {}
        key = (n, labels is None)
        if key not in self.trtr:
            self.trtr[key] = measure(self.train.x[:n], None if self.train.y is None else self.train.y[:n])
        synthetic = measure(samples[:n], None if labels is None else labels[:n])
        return {f"tstr_{k}": v for k, v in synthetic.items()} | {f"trtr_{k}": v for k, v in self.trtr[key].items()}

    def _audit(self, samples: Tensor) -> dict[str, Any]:
        f = self.copy_features
        facts = {**self._facts(samples, f), "n_real": len(self.dataset.holdout[:MOST_REAL])}
        found = copies(
            f(samples[:MOST_REAL]), self._train_copies, f(self.dataset.holdout.x[:MOST_REAL]),
            f(self.dataset.validation.x[:MOST_REAL]), facts, **self._options,
        )  # fmt: skip
        audit = found.to_json()
        audit["exact_copies"] = int(equal_to_any(samples, self.dataset.train.x).sum())
        audit["exact_holdout"] = int(equal_to_any(samples, self.dataset.holdout.x).sum())
        audit["judged"] = len(samples)
        ids, held = self.train.ids, self.dataset.holdout.ids
        for pair in audit["pairs"]:  # row numbers of the source
            pair["train_row"] = int(ids[pair["train"]])
            pair["holdout_row"] = int(held[pair["holdout"]]) if pair["holdout"] >= 0 else None
        guess, real, k = self._modes
        fake = torch.from_numpy(guess.predict(self.features(samples).numpy())).long()
        return {**audit, "figure": found.share, "modes": list(modes_covered(real, fake, k))}

    @cached_property
    def _train_copies(self) -> Tensor:
        return self.copy_features(self.train.x)

    @cached_property
    def _target(self) -> int | None:
        names = [f.name for f in self.space.fields]
        wanted = self.dataset.target
        return names.index(str(wanted)) if wanted is not None and str(wanted) in names else None

    @staticmethod
    def _flat(x: Tensor) -> Tensor:
        return x.reshape(len(x), -1).double()

    def _check(self, samples: Tensor) -> None:
        if tuple(samples.shape[1:]) != tuple(self.space.event) or len(samples) < 10:
            raise DataError(
                f"Samples of shape {tuple(samples.shape)} cannot be judged against {self.space.event} rows.",
                "Give at least 10 samples in the canonical units of the data's space.",
            )
        if samples.is_floating_point() and self.kind == "vector" and not bool(torch.isfinite(samples).all()):
            raise DataError("The samples hold NaN or infinity.", "The model has diverged: train it again.")
        if samples.is_floating_point() and bool(samples.isinf().any()):
            raise DataError("The samples hold infinity.", "The model has diverged: train it again.")


def evaluate(samples: Tensor, dataset: Dataset, *, seed: int = 0, labels: Tensor | None = None) -> Judgement:
    """Judge samples (N, *event) against a data set once. To judge several models, keep one `Judge`."""
    return Judge(dataset, seed=seed).evaluate(samples, labels)


def judge_model(
    model: Model, dataset: Dataset | Judge, *, seeds: tuple[int, ...] = (0,), n: int | None = None, k: int = 8
) -> Judgement:
    """Judge a model over one or several sampling seeds; figures of several are pooled, the audit is the worst one's."""
    judge = dataset if isinstance(dataset, Judge) else Judge(dataset)
    return pooled([judge.evaluate_model(model, n=n, seed=seed, k=k) for seed in seeds])


def pooled(found: list[Judgement]) -> Judgement:
    """One judgement from several of one protocol (other seeds of sampling or of training)."""
    if len(found) == 1:
        return found[0]
    shared = set.intersection(*(set(j.metrics) for j in found))
    metrics = {name: over_seeds([j.metrics[name] for j in found]) for name in found[0].metrics if name in shared}
    worst = min(found, key=lambda j: (j.audit["passed"], j.audit["p_value"]))
    held_out = _pooled_likelihood([j.likelihood for j in found])
    rates = [j.samples_per_s for j in found if j.samples_per_s]
    rate = sum(rates) / len(rates) if rates else None
    return Judgement(metrics, worst.audit, held_out, rate, worst.samples, worst.labels)


def _pooled_likelihood(found: list[Likelihood | None]) -> Likelihood | None:
    """Each figure over the seeds that all have it; the first seed's where some have no likelihood."""
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return found[0]

    def over(figures: list[Figure | None]) -> Figure | None:
        there = [f for f in figures if f is not None]
        return over_seeds(there) if len(there) == len(figures) else None

    return Likelihood(
        over_seeds([one.figure for one in known]), known[0].unit, known[0].exactness,
        over([one.perplexity for one in known]), over([one.per_step for one in known]),
    )  # fmt: skip
