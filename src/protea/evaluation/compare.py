"""`compare`: every model that suits the data, under one split and one budget, judged by one judge, in one report.

    open the data -> judge the null rows -> for each model, cheapest first: train it in a process of its own by the
    command a user would type, judge its run -> rank -> report.json, report.html

A model that fails is a row that says why. Everything finished is kept: the same command continues after an interrupt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from protea.core import Countable
from protea.data import Dataset, open_data
from protea.errors import ConfigError, ProteaError, nearest
from protea.evaluation import compare_child, nulls
from protea.evaluation.compare_rows import (
    Judged,
    failed_row,
    judge_folder,
    judge_null,
    judge_run,
    left_out_row,
    model_row,
    null_row,
)
from protea.evaluation.compare_rows import ranked as rank_rows
from protea.evaluation.forge import Forge
from protea.evaluation.judge import PATIENCE, Judge
from protea.evaluation.report import Report, write_report
from protea.evaluation.report_exhibits import plane as plane_of
from protea.evaluation.report_exhibits import show, write_exhibit
from protea.evaluation.schema import VERSION
from protea.models import MODELS
from protea.models.entry import Entry
from protea.models.lifted import Lifted
from protea.space import Space
from protea.training import Budget
from protea.training.run import environment, read_config

__all__ = ["Observer", "compare", "judge_run", "suitable"]

BUDGET = "3m"
LEAST, LEAST_SHARE = 1.0, 0.02  # seconds, and share of the budget, of training below which a comparison means nothing
COUNTING_SHARE = 0.1  # of the budget, that a model which learns by counting may take; most end long before


class Observer(Protocol):
    """Is told what happens. Nothing it does reaches the figures."""

    def begin(self, dataset: Dataset, names: Sequence[str], budget: str) -> None: ...

    def start(self, name: str, seconds: float | None) -> None: ...

    def watch(self, name: str, spent: float, figures: Mapping[str, Any]) -> None: ...

    def judging(self, name: str) -> None: ...

    def row(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """A row is finished; `rows` are all finished ones with their present ranks."""


class Silent:
    """Says nothing."""

    def begin(self, dataset: Dataset, names: Sequence[str], budget: str) -> None: ...

    def start(self, name: str, seconds: float | None) -> None: ...

    def watch(self, name: str, spent: float, figures: Mapping[str, Any]) -> None: ...

    def judging(self, name: str) -> None: ...

    def row(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None: ...


def compare(
    data: str | Path,
    *,
    models: Sequence[str] | None = None,
    budget: str | float | Budget | None = None,
    each: str | float | Budget | None = None,
    seeds: int = 1,
    seed: int = 0,
    out: Path | str | None = None,
    fresh: bool = False,
    observer: Observer | None = None,
    **opening: Any,
) -> Report:
    """Train, judge and rank models on the same data, and write a report.

    Args:
        data: a path or the name of an embedded set.
        models: names of `MODELS`; None: the usual ones that suit the data; ["all"]: all of them.
        budget: for everything, from this call to the written report: "3m" (default), "90s" ... Models that learn by
            steps share it equally. A number of steps or epochs is for each model.
        each: of each fit instead: "30s", "500steps" ...
        seeds: fits of each model, with seeds `seed`, `seed + 1` ...; their figures are pooled.
        out: the report's folder; None: reports/DATA.
        fresh: train again what the folder already holds.
        observer: is told of progress.
        opening: how to open the data (`target`, `constraints`, options of `protea.open`).

    Returns:
        (folder, document, html): the document is report.json, see docs/report.md.

    Raises:
        ConfigError: an unknown model, a model that does not suit the data, contradicting budgets.
    """
    began, observer = time.perf_counter(), observer or Silent()
    if budget is not None and each is not None:
        raise ConfigError("Both --budget and --each were given.", "Give one of them.")
    if not isinstance(data, (str, Path)):
        raise ConfigError(
            f"A {type(data).__name__} cannot be compared: each model reads the data in a process of its own.",
            "Save it to a file (.csv, .parquet, .npz) and give the path.",
        )
    whole = Budget.parse(BUDGET if budget is None else budget)
    of_each = Budget.parse(each) if each is not None else whole if whole.seconds is None else None
    total = whole.seconds if of_each is None else None
    _known([] if models == ["all"] else models)
    forge = Forge()
    dataset = open_data(str(data), **opening)
    entries = suitable(dataset, models)
    folder = Path(out) if out is not None else Path("reports") / dataset.name
    patience = PATIENCE if total is None else min(PATIENCE, 0.2 * total / (len(entries) * seeds))
    table = _Table(dataset, Judge(dataset, patience=patience), folder, observer, seeds, forge)
    plan = _Plan(of_each, total, began, len(entries) * seeds)
    observer.begin(dataset, [e.name for e, _ in entries], plan.words())
    table.exhibit_real()
    table.judge_nulls()
    for position, (entry, cheap) in enumerate(entries):
        left = (len(entries) - position) * seeds
        if not cheap and models is None and not plan.affords(left):
            table.leave_out(entry, str(data), opening)
            continue
        table.fit_and_judge(entry, str(data), plan.budget(cheap, left), seed, opening, fresh, plan)
    forge.close()
    facts = {"command": _command(data, models, budget, each, seeds, seed, out, opening), "budget": plan.words(),
             "seeds": seeds, "seed": seed, "started": _clock(began),
             "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip
    return write_report(table.document(facts), folder)


def suitable(dataset: Dataset, names: Sequence[str] | None = None) -> list[tuple[Entry, bool]]:
    """Models that suit the data, and whether each learns by counting; these come first, for they end early.

    Raises:
        ConfigError: a named model is unknown or does not suit the data.
    """
    kind = dataset.space.kind
    wanted = [] if names in (None, ["all"]) else _known(names)
    able = [e for e in MODELS.values() if kind in e.suits and not e.refuses(dataset.space)]
    entries = wanted or [e for e in able if e.usual or names is not None]
    for entry in entries:
        if kind not in entry.suits:
            raise ConfigError(
                f"{entry.name} cannot model {kind} data (it can: {', '.join(sorted(entry.suits))}).",
                f"See: protea models --suits {kind}",
            )
        if why := entry.refuses(dataset.space):
            raise ConfigError(why, f"Leave {entry.name} out, or give --target COLUMN.")
    counting = {entry.name: _counts(entry, dataset.space) for entry in entries}
    return [(entry, counting[entry.name]) for entry in sorted(entries, key=lambda e: not counting[e.name])]


class _Plan:
    """How long each fit may take."""

    def __init__(self, each: Budget | None, total: float | None, began: float, fits: int) -> None:
        self.each, self.total, self.began, self.fits = each, total, began, fits
        self.overheads: list[float] = []  # seconds of starting and judging, of each fit so far
        self.fixed: Budget | None = None
        self.first = 0  # fits left when the first that learns by steps began
        self.last: int | None = None  # how many of them there is time for

    def budget(self, cheap: bool, left: int) -> Budget:
        """The budget of the next fit; all that learn by steps get the same one."""
        if self.each is not None:
            return self.each
        assert self.total is not None
        if self.fixed is not None:
            return self.fixed
        room = self._room() if self.last is None else self.last
        share = max(self.least, self._left() / min(left, room) - self._overhead())
        if cheap:
            share = max(share, COUNTING_SHARE * self.total)
        found = Budget(seconds=float(f"{share:.2g}"))
        if not cheap:
            self.fixed = found
        return found

    def affords(self, left: int) -> bool:
        """Whether the next of `left` fits that learn by steps is among those there is time for, the first ones."""
        if self.total is None:
            return True
        if self.last is None:
            self.first, self.last = left, self._room()
        return self.first - left < self.last

    @property
    def least(self) -> float:
        """Seconds of training that mean something."""
        return max(LEAST, LEAST_SHARE * (self.total or 0.0))

    def _left(self) -> float:
        return 0.97 * (self.total or 0.0) - (time.perf_counter() - self.began)

    def _overhead(self) -> float:
        return max(self.overheads, default=4.0)  # the slowest so far: learners by steps sample more slowly still

    def _room(self) -> int:
        return max(1, int(self._left() / (self._overhead() + self.least)))

    def words(self) -> str:
        if self.each is not None:
            return budget_words(self.each)
        return f"{self.total:g}s in total" if self.fixed is None else budget_words(self.fixed)


class _Table:
    """The rows so far."""

    def __init__(
        self, dataset: Dataset, judge: Judge, folder: Path, observer: Observer, seeds: int, forge: Forge
    ) -> None:
        self.dataset, self.judge, self.folder, self.observer, self.seeds = dataset, judge, folder, observer, seeds
        self.forge = forge
        self.plane = plane_of(dataset.space, dataset.train.x)
        self.nulls: dict[str, Judged] = {}
        self.rows: list[dict[str, Any]] = []

    def exhibit_real(self) -> None:
        shown = show(self.dataset.space, self.dataset.train.x, self.plane)
        write_exhibit(self.folder, "real", {"samples": shown, "preflight": self.dataset.preflight.to_json()})

    def judge_nulls(self) -> None:
        samples = nulls.null_samples(self.dataset, self.judge.samples_wanted)
        waiting: list[str] = []
        for name, drawn in samples.items():
            self.observer.judging(name)
            self.nulls[name] = judge_null(self.folder / "nulls", name, drawn, self.judge, self.plane)
            write_exhibit(self.folder, name, self.nulls[name].exhibit)
            waiting.append(name)
            if nulls.FLOOR in self.nulls and nulls.CEILING in self.nulls:  # the ends of the scale of every row
                for ready in waiting:
                    self._add(null_row(ready, self.nulls[ready], *self._ends()))
                waiting = []
                self.forge.warm()  # while the last null row is judged
        for name in waiting:
            self._add(null_row(name, self.nulls[name], *self._ends()))

    def fit_and_judge(
        self, entry: Entry, data: str, budget: Budget, seed: int, opening: Mapping[str, Any], fresh: bool, plan: _Plan
    ) -> None:
        """Train and judge one model over its seeds; whatever goes wrong is its own row's affair."""
        found: list[Judged] = []
        names = [entry.name if i == 0 else f"{entry.name}-seed{seed + i}" for i in range(self.seeds)]
        runs = [self.folder / "runs" / name for name in names]
        for i, run in enumerate(runs):
            if fresh or self._stale(run, plan, seed + i):
                _remove_run(run)
        budget = _begun(runs[0]) or budget
        words = [
            compare_child.fit_arguments(
                entry.name, data, budget=budget_words(budget), seed=seed + i, out=run, opening=opening
            )
            for i, run in enumerate(runs)
        ]
        for run, arguments in zip(runs, words):
            tick = time.perf_counter()
            try:
                self.observer.start(entry.name, budget.seconds)
                log = run.with_name(f"{run.name}.log")
                peak = None
                if not (run / "result.json").exists():
                    ended = compare_child.train(
                        arguments, run, log, seconds=budget.seconds,
                        watch=lambda spent, figures: self.observer.watch(entry.name, spent, figures),
                        forge=self.forge,
                    )  # fmt: skip
                    if ended.failed:
                        raise _Failed(ended.failed)
                    peak = ended.peak_mb
                self.observer.judging(entry.name)
                found.append(judge_folder(run, self.judge, plane=self.plane, seed=int(arguments[6]), peak_mb=peak))
                plan.overheads.append(time.perf_counter() - tick - (found[-1].cost["fit_s"] or 0.0))
            except _Failed as failure:
                self._add(failed_row(entry.name, entry.family, str(failure), str(runs[0]), _reproduce(words, runs)))
                return
            except (ProteaError, ArithmeticError, RuntimeError, ValueError) as error:
                reason = error.cause if isinstance(error, ProteaError) else f"{type(error).__name__}: {error}"
                said = reason.splitlines()[0].rstrip(".")[:200] if reason.strip() else type(error).__name__
                self._add(failed_row(entry.name, entry.family, said, str(runs[0]), _reproduce(words, runs)))
                return
        write_exhibit(self.folder, entry.name, found[0].exhibit)
        floor, ceiling = self._ends()
        self._add(
            model_row(
                entry.name, entry.family, found, floor, ceiling, run=str(runs[0]), reproduce=_reproduce(words, runs)
            )
        )

    def leave_out(self, entry: Entry, data: str, opening: Mapping[str, Any]) -> None:
        """A row that says that there was no time for a model, and how to have it."""
        words = compare_child.fit_arguments("", data, budget="", seed=0, out=Path(), opening=opening)
        command = compare_child.command(["compare", data, "--models", entry.name, *words[9:]])
        self._add(left_out_row(entry.name, entry.family, command))

    def _stale(self, run: Path, plan: _Plan, seed: int) -> bool:
        """Whether the folder holds a run of other data, another seed or another budget."""
        if not (run / "config.json").exists():
            return False
        facts = read_config(run)
        other_budget = plan.each is not None and facts["budget"] != plan.each.to_json()
        same_data = facts["data"].get("split_hash") == self.dataset.split_hash
        return other_budget or facts["seed"] != seed or not same_data

    def document(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The contract's document of the rows so far."""
        dataset = self.dataset
        sizes = {"train": len(dataset.train), "validation": len(dataset.validation), "holdout": len(dataset.holdout)}
        rows, by = rank_rows(self.rows)
        return {
            "version": VERSION,
            "data": {"name": dataset.name, "space": dataset.space.kind, "n": sum(sizes.values()),
                     "fingerprint": dataset.fingerprint, "source": dataset.source, "target": dataset.target},
            "split": {**sizes, "hash": dataset.split_hash},
            "rows": rows,
            "environment": {"ranked_by": by, **facts, **environment()},
        }  # fmt: skip

    def _ends(self) -> tuple[Any, Any]:
        floor, ceiling = (self.nulls.get(n) for n in (nulls.FLOOR, nulls.CEILING))
        return floor.judgement if floor else None, ceiling.judgement if ceiling else None

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        rows, _ = rank_rows(self.rows)
        self.observer.row(rows[-1], rows)


class _Failed(Exception):
    """A child failed, with the reason."""


def budget_words(budget: Budget) -> str:
    """A budget as a user types it.

    >>> budget_words(Budget(seconds=90.0)), budget_words(Budget(steps=500))
    ('90s', '500steps')
    """
    return next(f"{v:g}{'s' if k == 'seconds' else k}" for k, v in budget.to_json().items())


def _known(names: Sequence[str] | None) -> list[Entry]:
    found = []
    for name in names or ():
        if (name := name.strip()) not in MODELS:
            raise ConfigError(f"There is no model {name!r}.", nearest(name, MODELS))
        found.append(MODELS[name])
    return list(dict.fromkeys(found))


def _counts(entry: Entry, space: Space) -> bool:
    """Whether a model learns by counting (EM) rather than by steps."""
    try:
        with torch.random.fork_rng(devices=[]):
            model = entry.build(space, entry.config())
    except ProteaError:
        return False  # its own row will say why
    return isinstance(model, Countable) or (isinstance(model, Lifted) and isinstance(model.inner, Countable))


def _begun(run: Path) -> Budget | None:
    """The budget of a run that is there already."""
    return Budget(**read_config(run)["budget"]) if (run / "config.json").exists() else None


def _reproduce(words: Sequence[Sequence[str]], runs: Sequence[Path]) -> str:
    """The commands of a row, with the settings that were chosen: a suggestion may depend on the machine's pace."""
    pinned = []
    for arguments, run in zip(words, runs):
        chosen = read_config(run)["config"] if (run / "config.json").exists() else {}
        sets = [w for k, v in chosen.items() for w in ("--set", f"{k}={v if isinstance(v, str) else json.dumps(v)}")]
        pinned.append(compare_child.command([*arguments, *sets]))
    return " && ".join(pinned)


def _remove_run(run: Path) -> None:
    """Remove a run folder this comparison made before; anything else in the way is left alone."""
    import shutil

    if (run / "config.json").exists():
        shutil.rmtree(run)


def _command(
    data: str | Path, models: Sequence[str] | None, budget: Any, each: Any, seeds: int, seed: int, out: Any,
    opening: Mapping[str, Any],
) -> str:  # fmt: skip
    words = ["compare", str(data)]
    words += ["--models", ",".join(models)] if models else []
    for flag, value in (("--budget", budget), ("--each", each)):
        if value is not None:
            words += [flag, value if isinstance(value, str) else budget_words(Budget.parse(value))]
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    words += ["--seed", str(seed)] if seed else []
    words += ["--out", str(out)] if out is not None else []
    words += compare_child.fit_arguments("", "", budget="", seed=0, out=Path(), opening=opening)[9:]
    return compare_child.command(words)


def _clock(began: float) -> str:
    seconds = time.time() - (time.perf_counter() - began)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
