"""Train one model in a process of its own, by the very command a user would type.

A crash, a leak or an out-of-memory kill then costs one row of the comparison and nothing else, and the peak memory of
the row is that of its process.
"""

from __future__ import annotations

import json
import math
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protea.evaluation.forge import Forge, Job
from protea.training.memory import high_water_mb

POLL = 0.2  # seconds between looks at the child
PATIENCE = 120.0  # seconds beyond thrice its budget before a child that does not stop is ended

Watch = Callable[[float, Mapping[str, Any]], None]  # (seconds since it started, newest figures)


@dataclass(frozen=True)
class Ended:
    """How the child ended: None or the reason of its failure, its peak memory, its whole duration."""

    failed: str | None
    peak_mb: float | None
    seconds: float


def fit_arguments(
    model: str, data: str, *, budget: str, seed: int, out: Path, opening: Mapping[str, Any] | None = None
) -> list[str]:
    """What follows `protea`: the arguments that train this row.

    >>> " ".join(fit_arguments("gmm", "iris", budget="5s", seed=0, out=Path("r/gmm"), opening={"target": "species"}))
    'fit gmm iris --budget 5s --seed 0 --out r/gmm --target species'
    """
    words = ["fit", model, data, "--budget", budget, "--seed", str(seed), "--out", str(out)]
    for key, value in (opening or {}).items():
        if value is None:
            continue
        if key == "target":
            words += ["--target", str(value)]
        else:
            words += ["--option", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def command(arguments: Sequence[str]) -> str:
    """The command as a user types it."""
    return shlex.join(["protea", *arguments])


def train(
    arguments: Sequence[str], run: Path, log: Path, *, seconds: float | None, watch: Watch | None = None,
    forge: Forge | None = None,
) -> Ended:  # fmt: skip
    """Run `protea` with these arguments and wait.

    Args:
        arguments: from `fit_arguments`.
        run: its run folder, whose metrics.jsonl is followed.
        log: where its words go.
        seconds: its budget, where that is a time.
        watch: told of progress.
        forge: a warm interpreter to fork from; None starts one for this job.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    job = (forge or Forge()).start(arguments, log)
    try:
        limit = None if seconds is None else 3 * seconds + PATIENCE
        status, peak_mb = _wait(job, began, limit, Tail(run / "metrics.jsonl"), watch)
    except BaseException:  # an interrupt reaches the child too: give it time to keep its checkpoint
        if job.poll(10.0) is None:
            job.kill()
        raise
    return Ended(_reason(status, log), peak_mb, time.perf_counter() - began)


class Tail:
    """The newest whole line of a growing file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, path.stat().st_size if path.exists() else 0

    def newest(self) -> dict[str, Any] | None:
        """The last object written since the last look, or None."""
        try:
            size = self.path.stat().st_size
            if size <= self.place:
                return None
            with open(self.path, "rb") as file:
                file.seek(max(self.place, size - 65536))
                lines = file.read().split(b"\n")
            self.place = size - len(lines[-1])
            found = next((line for line in reversed(lines[:-1]) if line), None)
            value = json.loads(found) if found else None
            return value if isinstance(value, dict) else None
        except (OSError, ValueError):
            return None


def _wait(job: Job, began: float, limit: float | None, follow: Tail, watch: Watch | None) -> tuple[int, float | None]:
    """(exit status, negative for a signal; peak memory in MB where the system tells)."""
    figures: dict[str, Any] = {}
    peak: float | None = None
    while True:
        now = high_water_mb(job.pid)
        peak = peak if math.isnan(now) else now
        ended = job.poll(POLL)
        if ended is not None:
            return ended[0], peak or ended[1]
        spent = time.perf_counter() - began
        if limit is not None and spent > limit:
            job.kill()
            limit = None
        if watch is not None:
            figures |= follow.newest() or {}
            watch(spent, figures)


def _reason(status: int, log: Path) -> str | None:
    """Why it failed, in one line: the cause it printed, or the signal that ended it."""
    if status == 0:
        return None
    if status == 130 or status == -signal.SIGINT:
        raise KeyboardInterrupt
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("Error: ")), lines[-1] if lines else f"exit code {status}")
    return told.removeprefix("Error: ").rstrip(".")[:200]
