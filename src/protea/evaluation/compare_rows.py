"""Rows of the report: a judged run or null row as the contract wants it, kept beside the run, with what to show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

import protea
from protea.data.dataset import Dataset
from protea.evaluation import nulls
from protea.evaluation.figure import Figure
from protea.evaluation.judge import Judge, Judgement, pooled
from protea.evaluation.likelihood import Likelihood
from protea.evaluation.rank import gap, shared_ranks
from protea.evaluation.report import finite
from protea.evaluation.report_exhibits import curves, show, show_one, write_atomic
from protea.evaluation.verdict import verdict
from protea.training import load_model
from protea.training.run import find, read_config

PAIRS = 4  # closest pairs shown


class Judged(NamedTuple):
    """A judgement with its costs and its exhibit; all of it JSON, so that an interrupted comparison keeps it."""

    judgement: Judgement
    cost: dict[str, Any]
    improving: bool
    exhibit: dict[str, Any]


class JudgedRun(NamedTuple):
    """A run's row, and what to show."""

    row: dict[str, Any]
    exhibit: dict[str, Any]


def judge_run(path: Path, dataset: Dataset, *, seed: int = 0) -> JudgedRun:
    """Judge one run on its own: a row of the contract without a rank."""
    judge = Judge(dataset)
    judged = judge_folder(path, judge, plane=None, seed=seed)
    ceiling = null_judgements(judge).get(nulls.CEILING)
    name = read_config(path)["model"]
    row = model_row(name, find(name).family, [judged], None, ceiling, run=str(path), reproduce=None)
    return JudgedRun(row, judged.exhibit)


def judge_folder(
    run: Path, judge: Judge, *, plane: Tensor | None, seed: int = 0, peak_mb: float | None = None
) -> Judged:
    """Load a run, sample and judge it; the finding is kept in the run folder and read from there next time."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    key = [_protocol(judge), seed, result.get("steps"), result.get("seconds")]
    kept = _read(run / "judged.json", key)
    if kept is not None:
        return kept
    found = judge.evaluate_model(load_model(run), seed=seed)
    cost = {"fit_s": result["seconds"], "samples_per_s": found.samples_per_s, "parameters": result["parameters"],
            "peak_mb": peak_mb}  # fmt: skip
    exhibit = {**_exhibit(judge, found, plane), "curves": curves(run / "metrics.jsonl")}
    judged = Judged(found, cost, bool(result.get("still_improving")), exhibit)
    _keep(run / "judged.json", key, judged)
    return judged


def null_judgements(judge: Judge) -> dict[str, Judgement]:
    """Judgements of all null rows, by name."""
    samples = nulls.null_samples(judge.dataset, judge.samples_wanted)
    return {name: judge.evaluate(x, y) for name, (x, y) in samples.items()}


def judge_null(
    folder: Path, name: str, samples: tuple[Tensor, Tensor | None], judge: Judge, plane: Tensor | None
) -> Judged:
    """The same for a null row; kept in `folder`."""
    path, key = folder / f"{name.replace(' ', '-')}.json", [_protocol(judge)]
    kept = _read(path, key)
    if kept is not None:
        return kept
    found = judge.evaluate(*samples)
    judged = Judged(found, _no_cost(), False, _exhibit(judge, found, plane))
    _keep(path, key, judged)
    return judged


def model_row(
    name: str, family: str, seeds: Sequence[Judged], floor: Judgement | None, ceiling: Judgement | None, *,
    run: str, reproduce: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The row of a model over its seeds, not ranked yet."""
    found = pooled([j.judgement for j in seeds])
    metrics = _with_gap(found.metrics, floor, ceiling)
    words = verdict(
        metrics, found.audit, improving=all(j.improving for j in seeds), ceiling=ceiling.metrics if ceiling else None
    )
    if found.likelihood is not None and not found.likelihood.figure.protocol.get("log_z", {}).get("converged", True):
        words += "; likelihood uncertain: the estimate of log Z still moves with its path"
    costs = [j.cost for j in seeds]
    return _row(name, "model", family, metrics, found, _mean_cost(costs), words, run, reproduce)


def null_row(name: str, judged: Judged, floor: Judgement | None, ceiling: Judgement | None) -> dict[str, Any]:
    """The row of a null."""
    found = judged.judgement
    caught = found.audit.get("passed") is False
    words = {
        nulls.CEILING: "ceiling: real rows against real rows; nothing can be expected to do better",
        nulls.FLOOR: "floor: right columns, no relations between them",
        nulls.COPIER: "copier: wins naive metrics and fails the audit, as it must" if caught
        else "copier: not caught, there are too few rows to audit copying here",
    }[name]  # fmt: skip
    return _row(name, "null", "null", _with_gap(found.metrics, floor, ceiling), found, _no_cost(), words, None, None)


def failed_row(name: str, family: str, reason: str, run: str, reproduce: str) -> dict[str, Any]:
    """The row of a model that could not be trained or judged."""
    words = verdict({}, {}, failed=reason)
    return _row(name, "model", family, {}, None, _no_cost(), words, run, reproduce)


def left_out_row(name: str, family: str, reproduce: str) -> dict[str, Any]:
    """The row of a model that the budget had no time for."""
    words = "left out: the budget leaves no time for it; give a longer --budget, or name it with --models"
    return _row(name, "model", family, {}, None, _no_cost(), words, None, reproduce)


def ranked(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Rows with ranks among the models, and the figure they are ranked by.

    By `gap`, the place between real held-out data and shuffled marginals; where the null rows cannot be told apart
    (few held-out rows) there is no such scale, and the two-sample accuracy alone ranks.
    """
    models = [i for i, row in enumerate(rows) if row["kind"] == "model"]
    by = "gap" if any("gap" in rows[i]["metrics"] for i in models) else "c2st_accuracy"
    figures = [_figure(rows[i]["metrics"].get(by)) for i in models]
    if by == "c2st_accuracy":  # below one half is luck
        figures = [None if f is None else Figure(max(f.value, 0.5), max(f.low, 0.5), max(f.high, 0.5)) for f in figures]
    places = dict(zip(models, shared_ranks(figures)))
    done = [{**row, "rank": list(place) if (place := places.get(i)) else None} for i, row in enumerate(rows)]
    return done, by


def _row(
    name: str, kind: str, family: str, metrics: Mapping[str, Figure], found: Judgement | None, cost: dict[str, Any],
    words: str, run: str | None, reproduce: str | None,
) -> dict[str, Any]:  # fmt: skip
    likelihood = found.likelihood if found else None
    return finite({
        "name": name, "kind": kind, "family": family, "rank": None,
        "likelihood": likelihood.to_json() if likelihood else None,
        "metrics": {k: f.to_json() for k, f in metrics.items()},
        "audit": found.audit if found else {},
        "cost": cost, "verdict": words, "run": run, "reproduce": reproduce,
    })  # fmt: skip


def _with_gap(metrics: Mapping[str, Figure], floor: Judgement | None, ceiling: Judgement | None) -> dict[str, Figure]:
    if floor is None or ceiling is None:
        return dict(metrics)
    kind = "tokens" if "bits_per_byte_ngram" in metrics else "table" if "column_error" in metrics else "vector"
    figure = gap(metrics, ceiling.metrics, floor.metrics, kind)
    return dict(metrics) if figure is None else {"gap": figure, **metrics}


def _exhibit(judge: Judge, found: Judgement, plane: Tensor | None) -> dict[str, Any]:
    """Samples and closest pairs, ready to be shown."""
    space, samples = judge.space, found.samples
    if samples is None:
        return {}
    couples = [
        {"sample": show_one(space, samples[p["sample"]][None]),
         "train": show_one(space, judge.train.x[p["train"]][None]), "distance": float(p["distance"])}
        for p in found.audit.get("pairs", ())[:PAIRS]
    ]  # fmt: skip
    return {"samples": show(space, samples, plane), "pairs": couples}


def _protocol(judge: Judge) -> dict[str, Any]:
    """What a kept judgement must share to be used again."""
    return {"protea": protea.__version__, "split": judge.dataset.split_hash, "n": judge.n, "judge_seed": judge.seed,
            "replicates": judge.replicates, "samples": judge.samples_wanted}  # fmt: skip


def _keep(path: Path, key: Any, judged: Judged) -> None:
    j = judged.judgement
    value = {
        "key": key, "metrics": {k: f.to_json() for k, f in j.metrics.items()}, "audit": j.audit,
        "likelihood": j.likelihood.to_json() if j.likelihood else None, "samples_per_s": j.samples_per_s,
        "cost": judged.cost, "improving": judged.improving, "exhibit": judged.exhibit,
    }  # fmt: skip
    write_atomic(path, json.dumps(value, ensure_ascii=False))


def _read(path: Path, key: Any) -> Judged | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if value.get("key") != json.loads(json.dumps(key)):
        return None
    metrics = {k: Figure(**f) for k, f in value["metrics"].items()}
    told = value["likelihood"]
    held_out = None
    if told:
        beside = [_figure(told.get(name)) for name in ("perplexity", "per_step")]
        held_out = Likelihood(_figure(told), told["unit"], told["exactness"], *beside)  # type: ignore[arg-type]
    found = Judgement(metrics, value["audit"], held_out, value["samples_per_s"])
    return Judged(found, value["cost"], value["improving"], value["exhibit"])


def _figure(value: Mapping[str, Any] | None) -> Figure | None:
    if value is None or any(value[k] is None for k in ("value", "low", "high")):
        return None
    return Figure(value["value"], value["low"], value["high"], value["protocol"])


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean times over seeds, the largest memory."""

    def known(name: str) -> list[float]:
        return [c[name] for c in costs if c[name] is not None]

    def mean(name: str) -> float | None:
        return sum(known(name)) / len(known(name)) if known(name) else None

    return {"fit_s": mean("fit_s"), "samples_per_s": mean("samples_per_s"),
            "parameters": costs[0]["parameters"], "peak_mb": max(known("peak_mb"), default=None)}  # fmt: skip


def _no_cost() -> dict[str, Any]:
    return dict.fromkeys(("fit_s", "samples_per_s", "parameters", "peak_mb"))
