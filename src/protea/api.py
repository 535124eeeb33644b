"""Protea from Python: `fit` a model to data, `load` a run, and use it in the user's own terms.

run = protea.fit("flow-matching", "digits", budget="60s")
run.sample(16)                 # PIL images, a DataFrame, strings or an array
run.score(images)              # nats of each, and whether they are exact or a bound
protea.load("runs/digits-flow-matching").evaluate()
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from protea.core import Bounded, Conditionable, Model, Normalised, capabilities
from protea.data import Dataset, open_data
from protea.data.rows import read_rows
from protea.errors import CheckpointError, ConfigError, DataError, NotSupported, ProteaError, nearest
from protea.evaluation.likelihood import Exactness, constant, exactness_of
from protea.models.estimated import Estimated
from protea.rng import Streams
from protea.space import Space
from protea.spaces import space_from_json
from protea.spaces.sampling import constrained_sample
from protea.training import Budget, fit_run, load_model, resume_run
from protea.training import files as disk
from protea.training.hardware import Hardware
from protea.training.run import find, read_config

if TYPE_CHECKING:
    from protea.inference.anomaly import Anomalies, Statistic
    from protea.training.progress import Progress

Shown = Literal["auto", "bar", "plain", "none"]
BATCH = 256  # rows scored at once


class Scores(NamedTuple):
    """Likelihoods of rows.

    Args:
        nats: (B,) log p(x), a lower bound or an estimate of it.
        values: (B,) the same in the space's unit, lower is better.
        unit: "bits per dimension", "bits per byte", "nats per row".
        exactness: "exact", "bound" or "estimate".
    """

    nats: Tensor
    values: Tensor
    unit: str
    exactness: Exactness


class Run:
    """A trained model and where it came from. Made by `fit` and `load`."""

    def __init__(self, path: Path, model: Model) -> None:
        self.path, self.model = path, model

    @property
    def space(self) -> Space:
        """What a sample is."""
        return self.model.space

    def sample(self, n: int, *, seed: int = 0, start: int = 0, label: str | None = None) -> Any:
        """Draw n samples in the user's form: PIL images, a DataFrame, strings, or an array.

        Sample `start + i` of a seed is always the same, however many are drawn at once.

        Args:
            n: how many.
            seed: which sequence of samples.
            start: number of the first one.
            label: only of this class, by name.

        Raises:
            ConfigError: no such class. NotSupported: the model has no classes.
        """
        return self.space.decode(self.draw(n, seed=seed, start=start, label=label))

    def draw(self, n: int, *, seed: int = 0, start: int = 0, label: str | None = None) -> Tensor:
        """The same in canonical units: (n, *event)."""
        cond = None if label is None else torch.full((n,), self._label(label), dtype=torch.int64)
        return constrained_sample(self.model, n, cond, rng=Streams(seed, torch.arange(start, start + n))).x

    def score(self, raw: Any, *, draws: int = 8, seed: int = 0) -> Scores:
        """Log-likelihoods of the user's objects (images, DataFrame, strings, array).

        Args:
            raw: what `space.encode` takes.
            draws: importance samples, where the model has only a bound.
            seed: of those draws.

        Raises:
            NotSupported: the model has no likelihood. DataError: the objects do not fit the space.
        """
        return self.score_rows(self.encode(raw), draws=draws, seed=seed)

    @torch.no_grad()
    def score_rows(self, x: Tensor, *, draws: int = 8, seed: int = 0) -> Scores:
        """The same for canonical units x (B, *event).

        NaN where no value may be missing is unknown: such rows are scored by log p of what they have, where the model
        has exact conditionals (NotSupported where it has not).
        """
        if self._unknown(x).any():
            from protea.inference.missing import log_evidence

            nats = log_evidence(self.model, x, ~self._unknown(x))
            values, _, unit = self.space.measure(nats, x)
            return Scores(nats, values, unit, "exact")
        model, parts = self.model, []
        for i in range(0, len(x), BATCH):
            rows = x[i : i + BATCH]
            if isinstance(model, Normalised):
                parts.append(model.log_prob(rows))
            elif isinstance(model, Bounded):
                streams = Streams(seed, torch.arange(i, i + len(rows)))
                parts.append(model.log_prob_bound(rows, rng=streams, k=draws))
            elif isinstance(model, Estimated):
                streams = Streams(seed, torch.arange(i, i + len(rows)))
                parts.append(model.unnormalised(rows, rng=streams, k=draws).double() - constant(model, seed).value)
            else:
                raise NotSupported(
                    f"{read_config(self.path)['model']} has no likelihood: it can only be sampled.",
                    "See the column 'can' of `protea models`.",
                )
        nats = torch.cat(parts).double() if parts else torch.zeros(0, dtype=torch.float64)
        values, _, unit = self.space.measure(nats, x)
        return Scores(nats, values, unit, exactness_of(model, seed))

    def _unknown(self, x: Tensor) -> Tensor:
        """Entries that are NaN although their field has no missing values."""
        if not x.is_floating_point():
            return torch.zeros(x.shape, dtype=torch.bool)
        never = torch.tensor([not field.missing for field in self.space.fields]).reshape(self.space.event)
        return x.isnan() & never

    def encode(self, raw: Any) -> Tensor:
        """The user's objects in canonical units; NaN for what is missing, where the model can do without it."""
        try:
            return self.space.encode(raw)
        except DataError:
            if not isinstance(self.model, Conditionable):
                raise
            from protea.inference.missing import encode_missing

            try:
                return encode_missing(self.space, raw)[0]
            except ProteaError:
                pass
            raise

    def classify(self, raw: Any, *, draws: int = 8, seed: int = 0) -> Any:
        """The classes of the user's objects by Bayes' rule, a DataFrame: the most probable one, and p(y | x) of each.

        Args:
            raw: what `space.encode` takes; a table may lack its target column, which is not read.
            draws: importance samples, where the model has only a bound; its probabilities are then approximate.
            seed: of those draws.

        Raises:
            NotSupported: no likelihood, or no labels. DataError: the objects do not fit the space.
        """
        import pandas as pd

        from protea.inference.labelling import encode_unlabelled
        from protea.inference.posterior import posterior

        found = posterior(self.model, encode_unlabelled(self.space, raw), draws=draws, seed=seed)
        said = {"class": [found.names[c] for c in found.label.tolist()]}
        return pd.DataFrame(said | {f"p({n})": p for n, p in zip(found.names, found.log_prob.exp().T.tolist())})

    def impute(self, raw: Any, draws: int | None = None, *, seed: int = 0) -> Any:
        """A table, or an array, with its missing values filled.

        Args:
            raw: a DataFrame (columns may be absent), or an array with NaN.
            draws: None fills in conditional means (modes of categories); m returns a list of m completed copies, drawn
                from p(missing | observed).
            seed: of the draws.

        Raises:
            NotSupported: the model has no exact conditionals.
        """
        from protea.inference.missing import encode_missing, impute

        filled = impute(self.model, *encode_missing(self.space, raw), draws, seed)
        return self.space.decode(filled) if draws is None else [self.space.decode(x) for x in filled]

    def anomalies(
        self, raw: Any, *, normal: Any = None, statistic: Statistic = "likelihood", draws: int = 8, seed: int = 0
    ) -> Anomalies:
        """How strange the user's objects are: conformal p-values against held-out rows, see `inference/anomaly.py`.

        Args:
            raw: what `space.encode` takes.
            normal: rows the model has not learnt from, to calibrate on; None: the holdout of the run's data.
            statistic: "likelihood" (low is strange) or "typicality" (both sides are).
            draws: importance samples, where the model has only a bound.
            seed: of those draws.

        Raises:
            NotSupported: the model has no likelihood. DataError: too few held-out rows.
        """
        held = None if normal is None else self.space.encode(normal)
        return self.anomalies_of(self.encode(raw), held, statistic=statistic, draws=draws, seed=seed)

    def anomalies_of(
        self, x: Tensor, normal: Tensor | None = None, *, statistic: Statistic = "likelihood", draws: int = 8,
        seed: int = 0,
    ) -> Anomalies:  # fmt: skip
        """The same for canonical units. A row with holes is compared with held-out rows that have the same holes."""
        from protea.inference.anomaly import Anomalies, benjamini_hochberg, judge_anomalies

        held = self.data().holdout.x if normal is None else normal
        training = self.data().train.x[:2000] if statistic == "typicality" else None
        holes = self._unknown(x).flatten(1)
        patterns, which = holes.unique(dim=0, return_inverse=True)
        nats, p = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
        for g, pattern in enumerate(patterns):
            mine = which == g
            masked = [
                rows if rows is None or not bool(pattern.any())
                else torch.where(pattern.reshape(x.shape[1:]), torch.nan, rows)
                for rows in (x[mine], held, training)
            ]  # fmt: skip
            found = [None if rows is None else self.score_rows(rows, draws=draws, seed=seed + i).nats
                     for i, rows in enumerate(masked)]  # fmt: skip
            assert found[0] is not None and found[1] is not None
            judged = judge_anomalies(found[0], found[1], statistic=statistic, training=found[2])
            nats[mine], p[mine] = judged.nats, judged.p
        return Anomalies(nats, p, benjamini_hochberg(p), len(held), statistic)

    def data(self) -> Dataset:
        """The data it was trained on, opened again and checked against the fingerprint.

        Raises:
            CheckpointError: the data have changed since.
        """
        facts = read_config(self.path)["data"]
        dataset = open_data(**_opening(self.path))
        if dataset.fingerprint != facts["fingerprint"] or dataset.split_hash != facts["split_hash"]:
            raise CheckpointError(
                f"The data at {facts['source']} have changed since {self.path} was trained.",
                "Restore them, or name other data to judge against.",
            )
        return dataset

    def evaluate(self, data: str | Path | Dataset | None = None, *, seed: int = 0) -> dict[str, Any]:
        """Judge on held-out data: a row of the report's contract (see docs/report.md).

        Args:
            data: other data of the same space; None: the data it was trained on.
            seed: of the samples and the bootstrap.
        """
        from protea.evaluation.compare import judge_run

        dataset = (
            self.data() if data is None else data if isinstance(data, Dataset) else open_data(data, space=self.space)
        )
        return judge_run(self.path, dataset, seed=seed).row

    def facts(self) -> dict[str, Any]:
        """What the run is, as plain JSON values."""
        result = self.path / "result.json"
        config = read_config(self.path)
        return {
            "path": str(self.path), "model": config["model"], "config": config["config"], "seed": config["seed"],
            "budget": config["budget"], "space": self.space.to_json()["kind"], "capabilities": capabilities(self.model),
            "data": config["data"], "result": disk.read_json(result) if result.exists() else None,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"<Run {self.path}: {type(self.model).__name__} of {self.space.kind} {tuple(self.space.event)}>"

    def score_data(self, data: str | Path, *, n: int | None = None, draws: int = 8, seed: int = 0) -> dict[str, Any]:
        """Scores of every row of a file, in its order, as plain JSON values."""
        rows = read_rows(self.space, data)
        x = (self.encode(rows.raw) if rows.x is None else rows.x)[:n]
        scores = self.score_rows(x, draws=draws, seed=seed)
        steps = self.space.per_step(scores.nats, x)
        return {
            "run": str(self.path), "data": str(data), "n": len(x), "mean": self.space.measure(scores.nats, x).mean,
            "unit": scores.unit, "exactness": scores.exactness, "draws": draws if scores.exactness != "exact" else None,
            "nats": scores.nats.tolist(), "values": scores.values.tolist(),
            "per_step": steps.mean if steps is not None else None,
        }  # fmt: skip

    def _label(self, name: str) -> int:
        if not self.space.classes or not _conditional(self.model):
            raise NotSupported(f"{self.path} has no classes: {name!r} cannot be chosen.", "Leave --class out.")
        if name not in self.space.classes:
            raise ConfigError(f"There is no class {name!r}.", nearest(name, self.space.classes))
        return self.space.classes.index(name)


def fit(
    model: str,
    data: str | Path | Dataset,
    *,
    budget: str | float | Budget = "60s",
    seed: int = 0,
    out: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    hardware: Hardware | None = None,
    resume: bool = True,
    progress: Shown | Progress | None = "auto",
    **opening: Any,
) -> Run:
    """Train a model on data within a budget, into a run folder.

    Args:
        model: a name of `protea.MODELS`.
        data: a path, the name of an embedded set, or what `protea.open` returned.
        budget: "60s", "2m", "500steps", "10epochs", or a `Budget`.
        seed: of weights, order and noise.
        out: the run folder; None: runs/DATA-MODEL.
        settings: overrides of the suggested settings, by name.
        batch_size: rows of a step.
        hardware: device, precision, compilation, sharding (`protea.Hardware`).
        resume: continue what the folder holds, if it is the same run.
        progress: what is shown meanwhile.
        opening: how to open the data: `target`, `constraints` and the options of `protea.open`.

    Raises:
        ConfigError: unknown model or setting (the nearest are named), or the folder holds another run.
    """
    budget = Budget.parse(budget)
    entry = find(model)  # an unknown name is told before the data are read
    dataset = data if isinstance(data, Dataset) else open_data(str(data), **opening)
    if dataset.space.kind not in entry.suits:
        raise ConfigError(
            f"{model} cannot model {dataset.space.kind} data (it can: {', '.join(sorted(entry.suits))}).",
            f"See: protea models --suits {dataset.space.kind}",
        )
    path = Path(out) if out is not None else Path("runs") / f"{dataset.name}-{model}"
    if (path / "config.json").exists() and resume:
        begun = read_config(path)["budget"]
        if begun != budget.to_json():
            raise ConfigError(
                f"{path} was begun with the budget {_words(begun)}, not {_words(budget.to_json())}.",
                f"Give it more: protea resume {path} --budget {_words(budget.to_json())}, or choose another --out.",
            )
    made = [p for p in (path, *path.parents) if not p.exists()]
    if not (path / "config.json").exists():
        disk.write_json(path / "data.json", _how(dataset, data, opening))
    try:
        trained, _ = fit_run(
            path, model, dict(settings or {}), dataset, budget, seed,
            batch_size=batch_size, hardware=hardware, resume=resume, progress=progress,
        )  # fmt: skip
    except ProteaError:
        if not (path / "config.json").exists():  # refused before it began: leave nothing behind
            (path / "data.json").unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
        raise
    return Run(path, trained)


def resume(
    run: Path | str, *, budget: str | float | Budget | None = None, require_gpu: bool = False,
    progress: Shown | Progress | None = "auto",
) -> Run:  # fmt: skip
    """Continue an interrupted run exactly where it stopped, or a finished one with more budget.

    Raises:
        CheckpointError: no run there, or its data have changed.
    """
    path = Path(run)
    read_config(path)
    dataset = open_data(**_opening(path))
    trained, _ = resume_run(path, dataset, more=budget, require_gpu=require_gpu, progress=progress)
    return Run(path, trained)


def load(path: Path | str) -> Run:
    """Open a run folder.

    Raises:
        CheckpointError: it is not one, or a file of it is damaged.
    """
    return Run(Path(path), load_model(path))


def _how(dataset: Dataset, data: Any, opening: Mapping[str, Any]) -> dict[str, Any]:
    """How to open the data again; files by their absolute path, so that a run may be used from anywhere."""
    name = dataset.source if isinstance(data, Dataset) else str(data)
    path = Path(name).expanduser()
    if path.exists():
        return {**opening, "path_or_name": str(path.resolve())}
    return {**opening, "path_or_name": dataset.name if isinstance(data, Dataset) else name}


def _opening(path: Path) -> dict[str, Any]:
    if not (path / "data.json").exists():
        raise CheckpointError(f"{path} does not say how its data were opened.", "Name the data: protea eval RUN DATA.")
    how = disk.read_json(path / "data.json")
    saved = disk.read_json(path / "space.json") if (path / "space.json").exists() else {}
    if isinstance(saved.get("tokenizer"), dict):  # the tokenizer it has, not one learnt again
        how["space"] = space_from_json(saved)
    return how


def _conditional(model: Model) -> bool:
    return any(name.endswith("class_prior") for name, _ in model.named_buffers())


def _words(budget: Mapping[str, Any]) -> str:
    return " ".join(f"{v:g}{'s' if k == 'seconds' else k}" for k, v in budget.items())
