"""What a person sees while a model learns: a bar with ETA on a terminal, plain lines otherwise."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

Say = Callable[[str], Any]


class Progress(Protocol):
    """Receives what happens; nothing it does reaches the model."""

    def note(self, line: str) -> None: ...

    def update(self, step: int, share: float, seconds: float, figures: Mapping[str, float]) -> None:
        """`share` of the budget is spent (0 to 1)."""

    def close(self) -> None: ...


class Quiet:
    """Says nothing."""

    def note(self, line: str) -> None: ...

    def update(self, step: int, share: float, seconds: float, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Plain:
    """A line every few seconds, ever less often; for logs and pipes."""

    def __init__(self, say: Say | None = None) -> None:
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self._next = 0.0

    def note(self, line: str) -> None:
        self.say(line)

    def update(self, step: int, share: float, seconds: float, figures: Mapping[str, float]) -> None:
        if seconds < self._next and share < 1:
            return
        self._next = seconds + max(5.0, 0.1 * seconds)
        self.say(f"step {step}  {share:4.0%}  {seconds:6.1f} s  left {_eta(share, seconds)}  {show(figures)}")

    def close(self) -> None: ...


class Bar:
    """A rich progress bar with the newest figures and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("left {task.fields[eta]}"),
            TextColumn("{task.fields[figures]}"), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("step 0", total=1.0, figures="", eta="--")
        self._bar.start()
        self._drawn = 0.0

    def note(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)

    def update(self, step: int, share: float, seconds: float, figures: Mapping[str, float]) -> None:
        if time.monotonic() - self._drawn < 0.1 and share < 1:
            return
        self._drawn = time.monotonic()
        self._bar.update(
            self._task, completed=share, description=f"step {step}", figures=show(figures), eta=_eta(share, seconds)
        )

    def close(self) -> None:
        self._bar.stop()


def progress(kind: Literal["auto", "bar", "plain", "none"] | Progress | None) -> Progress:
    """The progress that is meant; "auto" shows a bar on a terminal and lines elsewhere."""
    if kind is None or kind == "none":
        return Quiet()
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "plain"
    if isinstance(kind, str):
        return Bar() if kind == "bar" else Plain()
    return kind


def show(figures: Mapping[str, float]) -> str:
    """Figures for people.

    >>> show({"loss": 1.23456, "lr": 0.001})
    'loss 1.235  lr 0.001'
    """
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _eta(share: float, seconds: float) -> str:
    if share <= 0.005 or not math.isfinite(share):
        return "--"
    left = seconds * (1 - min(share, 1)) / share
    return f"{left / 60:.0f} min" if left >= 120 else f"{left:.0f} s"
