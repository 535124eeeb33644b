"""A run folder: everything needed to use a model, to continue its training, and to know where it came from.

config.json         the model's name and resolved settings, seed, budget, facts about the data
space.json          what a sample is
environment.json    versions, device, threads, git
model.safetensors   the weights (their average, the best judged)
metrics.jsonl       figures along the way, one JSON object a line
result.json         how it ended
checkpoint/         state to resume from
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import protea
from protea.core import Model
from protea.errors import CheckpointError, ConfigError, nearest
from protea.rng import fold
from protea.space import Space
from protea.training import config as settings
from protea.training import files
from protea.training.checkpoint import load_weights, read_tensors, weights, write_tensors

VERSION = 1  # of the folder's layout


def create_run(
    path: Path | str, *, model_name: str, config: Any, space: Space, data: Mapping[str, Any],
    seed: int = 0, budget: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Make a run folder and write what does not change: settings, space, environment.

    Args:
        path: the folder; it must not hold a run already.
        config: the model's config dataclass, or its JSON values.
        data: facts about the data; "fingerprint" and "split_hash" are checked on resume.
        options: of the fit (batch_size, target ...).

    Raises:
        ConfigError: there is a run in the folder already.
        CheckpointError: the folder cannot be written.
    """
    path = Path(path)
    if (path / "config.json").exists():
        raise ConfigError(f"{path} already holds a run.", "Continue it with `protea resume`, or choose another --out.")
    values = config if isinstance(config, Mapping) else settings.to_json(config)
    facts = {"version": VERSION, "model": model_name, "config": dict(values), "seed": seed,
             "budget": dict(budget or {}), "options": dict(options or {}), "data": dict(data)}  # fmt: skip
    files.write_json(path / "environment.json", environment())
    files.write_json(path / "space.json", space.to_json())
    files.write_json(path / "config.json", facts)  # last: its presence says that the folder is complete
    return path


def read_config(path: Path | str) -> dict[str, Any]:
    """The facts of config.json.

    Raises:
        CheckpointError: no run is there, or it was written by a newer Protea.
    """
    facts = files.read_json(Path(path) / "config.json")
    if not isinstance(facts, dict) or not isinstance(facts.get("version"), int) or "model" not in facts:
        raise CheckpointError(f"{path}/config.json is not that of a run.", "Restore it from a copy, or fit again.")
    if facts["version"] > VERSION:
        raise CheckpointError(
            f"{path} has format {facts['version']}; this Protea knows {VERSION}.", "Upgrade: pip install -U protea"
        )
    return facts


def build(model_name: str, space: Space, config: Any, seed: int = 0) -> Model:
    """An untrained model; its weights depend on the seed alone.

    Raises:
        ConfigError: no such model (the nearest names are given), or it does not suit the space.
    """
    entry = find(model_name)
    if space.kind not in entry.suits:
        raise ConfigError(
            f"The model {model_name!r} cannot model {space.kind} data (it can: {', '.join(sorted(entry.suits))}).",
            "See `protea models`.",
        )
    config = settings.from_json(entry.config, config) if isinstance(config, Mapping) else config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "weights"))
        return entry.build(space, config)


def find(model_name: str) -> Any:
    """The registry's entry of a name."""
    from protea.models import MODELS

    if model_name not in MODELS:
        raise ConfigError(f"There is no model {model_name!r}.", nearest(model_name, MODELS))
    return MODELS[model_name]


def save_model(run: Path | str, model: Model, whole: Mapping[str, Tensor] | None = None) -> Path:
    """Write the weights of a model (`whole`, where they were gathered already) to its run folder."""
    path = Path(run) / "model.safetensors"
    write_tensors(path, weights(model) if whole is None else whole, {})
    return path


def load_model(run: Path | str) -> Model:
    """The trained model of a run folder, ready to sample.

    Raises:
        CheckpointError: the folder is incomplete, a file is damaged, or they do not fit each other.
    """
    from protea.spaces import space_from_json

    run = Path(run)
    facts = read_config(run)
    if not (run / "model.safetensors").exists():
        raise CheckpointError(f"{run} has no trained model yet.", f"Finish it with: protea resume {run}")
    tensors, _ = read_tensors(run / "model.safetensors")
    model = build(facts["model"], space_from_json(files.read_json(run / "space.json")), facts["config"])
    load_weights(model, tensors, run / "model.safetensors")
    return model.eval()


def read_metrics(run: Path | str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl (a line still being written is left out)."""
    path = Path(run) / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Metrics:
    """Appends figures to metrics.jsonl."""

    def __init__(self, path: Path, step: int) -> None:
        """Keep the lines up to `step`: those after the checkpoint will be written again."""
        kept = [row for row in read_metrics(path.parent) if row.get("step", 0) <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        files.write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def add(self, row: Mapping[str, Any]) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def environment() -> dict[str, Any]:
    """Versions, machine, threads and git facts."""
    import numpy
    import safetensors
    import scipy

    cuda = torch.cuda.is_available()
    return {
        "protea": protea.__version__, "python": platform.python_version(), "platform": platform.platform(),
        "machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(),
        "packages": {"torch": torch.__version__, "numpy": numpy.__version__, "scipy": scipy.__version__,
                     "safetensors": safetensors.__version__},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "world": int(os.environ.get("WORLD_SIZE", "1")), "git": _git(), "executable": Path(sys.executable).name,
    }  # fmt: skip


def _git() -> dict[str, Any] | None:
    """Commit, branch and cleanliness of the repository around the working folder; None outside of one."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        commit, branch = ask("rev-parse", "HEAD"), ask("rev-parse", "--abbrev-ref", "HEAD")
        return {"commit": commit, "branch": branch, "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
