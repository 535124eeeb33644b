"""From a model's name and a data set to a run folder, and from an interrupted folder to a finished one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from protea.core import Learner, Model
from protea.errors import CheckpointError, ConfigError
from protea.space import Rows, Space
from protea.training import config as settings
from protea.training import files, parallel
from protea.training.budget import Budget
from protea.training.checkpoint import Keeper, Saving
from protea.training.defaults import default_learner
from protea.training.fit import FitResult, fit
from protea.training.hardware import Hardware
from protea.training.precision import compiled, pick_device
from protea.training.progress import Progress
from protea.training.run import build, create_run, find, read_config


class Data(Protocol):
    """What of `protea.data.Dataset` a run needs."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def space(self) -> Space: ...
    @property
    def train(self) -> Rows: ...
    @property
    def validation(self) -> Rows: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def split_hash(self) -> str: ...
    @property
    def target(self) -> str | None: ...


def fit_run(
    run_dir: Path | str, model_name: str, config_overrides: Mapping[str, Any] | None, dataset: Data,
    budget: Budget | str | float, seed: int = 0, *,
    batch_size: int | None = None,
    hardware: Hardware | None = None,
    resume: bool = False,
    progress: Literal["auto", "bar", "plain", "none"] | Progress | None = "auto",
    **options: Any,
) -> tuple[Model, FitResult]:  # fmt: skip
    """Build a registered model for a data set, fit it, and keep everything in a run folder.

    Args:
        run_dir: a new folder; with `resume`, one that may hold an interrupted run of the same settings.
        model_name: of `MODELS`.
        config_overrides: settings on top of what the entry suggests for these data and this budget.
        budget: seconds count from here, building and initialising included.
        hardware: device, precision, compilation, sharding; None: `Hardware()`.
        options: further arguments of `fit` (judge, patience).

    Returns:
        The fitted model and how the fit ended.

    Raises:
        ConfigError: unknown model or setting (the nearest are named), a folder that holds another run.
        CheckpointError, DataError, Diverged: see `fit`.
    """
    began = time.perf_counter()
    budget = Budget.parse(budget)
    run, entry = Path(run_dir), find(model_name)
    hardware = hardware or Hardware()
    where, _ = pick_device(hardware.device, require_gpu=hardware.require_gpu)
    parallel.setup(where)
    if resume and (run / "config.json").exists():
        facts = read_config(run)
        base = settings.from_json(entry.config, facts["config"]) if facts["model"] == model_name else None
        wanted = settings.to_json(settings.from_json(entry.config, config_overrides or {}, base)) if base else None
        same = {"model": facts["model"], "seed": facts["seed"], "config": facts["config"]}
        if same != {"model": model_name, "seed": seed, "config": files.plain(wanted)}:
            raise ConfigError(
                f"{run} holds a run of {facts['model']} (seed {facts['seed']}) with other settings.",
                "Choose another --out, or --no-resume with an empty folder.",
            )
        return resume_run(run, dataset, device=hardware.device, require_gpu=hardware.require_gpu, progress=progress,
                          **options)  # fmt: skip
    suggested = entry.suggest(dataset.space, dataset.train, budget.seconds or 60.0)
    config = settings.from_json(entry.config, config_overrides or {}, suggested)
    model = build(model_name, dataset.space, config, seed)
    extras = {"batch_size": batch_size, **asdict(hardware), "device": where.type}
    facts_of_data = {"name": dataset.name, "source": dataset.source, "target": dataset.target, "n": len(dataset.train),
                     "fingerprint": dataset.fingerprint, "split_hash": dataset.split_hash}  # fmt: skip
    if parallel.rank() == 0:
        create_run(run, model_name=model_name, config=config, space=dataset.space, data=facts_of_data, seed=seed,
                   budget=budget.to_json(), options=extras)  # fmt: skip
    parallel.barrier()
    model.initialise(dataset.train, seed)
    learner = learner_of(model.to(where), budget, seed, extras)
    budget = replace(budget, spent=time.perf_counter() - began)
    result = fit(model, dataset.train, dataset.validation, budget=budget, learner=learner, run=run, seed=seed,
                 batch_size=batch_size, device=where, progress=progress, **options)  # fmt: skip
    return model, result


def resume_run(
    run_dir: Path | str, dataset: Data, *,
    more: Budget | str | float | None = None,
    device: str | None = None,
    require_gpu: bool = False,
    progress: Literal["auto", "bar", "plain", "none"] | Progress | None = "auto",
    **options: Any,
) -> tuple[Model, FitResult]:  # fmt: skip
    """Continue a run exactly where its newest whole checkpoint stands (from the start, where there is none).

    Args:
        run_dir: an interrupted run, or a finished one with `more`.
        dataset: the same data; its fingerprint and split are checked.
        more: budget on top of what was spent so far; None finishes the run as it was begun.

    Raises:
        CheckpointError: no run, other data, or all checkpoints damaged.
    """
    began, run = time.perf_counter(), Path(run_dir)
    facts = read_config(run)
    for key in ("fingerprint", "split_hash"):
        if facts["data"].get(key) != getattr(dataset, key):
            raise CheckpointError(
                f"{run} was fitted on other data ({key} {str(facts['data'].get(key))[:12]} there, "
                f"{str(getattr(dataset, key))[:12]} here).",
                f"Open the same file: {facts['data'].get('source')}.",
            )
    extras, seed = facts["options"], int(facts["seed"])
    where, _ = pick_device(device or extras["device"], require_gpu=require_gpu)
    parallel.setup(where)
    model = build(facts["model"], dataset.space, facts["config"], seed)
    saved = Keeper(run).newest()
    budget = Budget(**(saved[1]["budget"] if saved else facts["budget"]))
    if more is not None:
        budget = _extended(Budget.parse(more), saved[1] if saved else {})
    model.initialise(dataset.train, seed)
    if saved is None:
        budget = replace(budget, spent=time.perf_counter() - began)
    learner = learner_of(model.to(where), budget, seed, extras)
    result = fit(model, dataset.train, dataset.validation, budget=budget, learner=learner, run=Saving(run, resume=True),
                 seed=seed, batch_size=extras["batch_size"], device=where, progress=progress, **options)  # fmt: skip
    return model, result


def _extended(more: Budget, state: Mapping[str, Any]) -> Budget:
    seconds, steps = float(state.get("seconds", 0.0)), int(state.get("step", 0))
    return Budget(
        seconds=None if more.seconds is None else seconds + more.seconds,
        steps=None if more.steps is None else steps + more.steps,
        epochs=more.epochs,
    )


def learner_of(model: Model, budget: Budget, seed: int, extras: Mapping[str, Any]) -> Learner:
    """The default learner on the hardware that `extras` (a `Hardware` as a mapping) describe."""
    prepare = [compiled] if extras["compile"] else []
    prepare += [parallel.fsdp()] if extras["shard"] else []
    return default_learner(model, budget=budget, seed=seed, prepare=prepare, precision=extras["precision"],
                           microbatch=extras["microbatch"])  # fmt: skip
