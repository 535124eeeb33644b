"""The table of a comparison while it runs: live on a terminal, one line a row elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES = {"good": "green", "warn": "yellow", "bad": "red", "plain": ""}


class LiveTable:
    """An observer of `protea.evaluation.compare.compare`; a context manager, for the terminal's sake."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.live: Any = None
        self.names: Sequence[str] = ()
        self.rows: Sequence[Mapping[str, Any]] = ()
        self.now, self.doing, self.since = "", "", 0.0
        self.budget: float | None = None

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.now = ""
            self.live.update(self._table(), refresh=True)
            self.live.stop()

    # --- what the comparison tells

    def begin(self, dataset: Any, names: Sequence[str], budget: str) -> None:
        self.names = names
        if self.quiet:
            return
        split = f"{len(dataset.train):,} train, {len(dataset.holdout):,} held out"
        line = f"{dataset.name}: {dataset.space.kind}, {split}; {len(names)} models, {budget}"
        self.console.print(line, style="bold", markup=False)
        for warning in dataset.preflight.warnings:
            self.console.print(f"! {warning}", style="yellow", markup=False)
        if self.console.is_terminal:
            from rich.live import Live

            self.live = Live(self._table(), console=self.console, refresh_per_second=4)
            self.live.start()

    def start(self, name: str, seconds: float | None) -> None:
        self.now, self.budget = name, seconds
        self._say("training")

    def watch(self, name: str, spent: float, figures: Mapping[str, Any]) -> None:
        of = f" of {self.budget:g} s" if self.budget else ""
        shown = [f"{k.replace('_', ' ')} {v:.3g}" for k, v in figures.items() if isinstance(v, float) and "loss" in k]
        step = f", step {figures['step']}" if "step" in figures else ""
        self._say(f"training {spent:.0f} s{of}{step}{', ' + shown[0] if shown else ''}")

    def judging(self, name: str) -> None:
        self.now = name
        self._say("judging")

    def row(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows, self.now = rows, ""
        if self.live is not None:
            self.live.update(self._table(), refresh=True)
        elif not self.quiet:
            cells = [row["name"], *self._cells(row)[2:]]
            self.console.print("  ".join(c for c in cells if c not in ("", "–")), markup=False, soft_wrap=True)

    # --- how it looks

    def _say(self, doing: str) -> None:
        self.doing = doing
        if self.live is not None and time.monotonic() - self.since > 0.2:
            self.since = time.monotonic()
            self.live.update(self._table())

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        from protea.evaluation.report_view import sort_rows, tone

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("rank", justify="right")
        for head in ("model", "from real", "likelihood", "copies", "fit"):
            table.add_column(head, no_wrap=True)
        table.add_column("verdict", ratio=1)
        for row in sort_rows([dict(row) for row in self.rows]):
            style = "dim" if row["kind"] == "null" else ""
            *cells, verdict = self._cells(row)
            words = Text(verdict, STYLES[tone(row["verdict"])] if row["kind"] == "model" else "dim")
            table.add_row(*(Text(c) for c in cells), words, style=style)
        done = {row["name"] for row in self.rows}
        if self.now:
            table.add_row("", Text(self.now, "cyan"), *[""] * 4, Text(self.doing, "cyan"))
        for name in self.names:
            if name not in done and name != self.now:
                table.add_row("", Text(name, "dim"), *[""] * 4, Text("waiting", "dim"))
        return table

    @staticmethod
    def _cells(row: Mapping[str, Any]) -> list[str]:
        """rank, model, figure, likelihood, copies, fit, verdict."""
        from protea.evaluation.report_view import EXACTNESS, duration, interval_text, number, rank_text

        figure = row["metrics"].get("gap") or row["metrics"].get("c2st_accuracy")
        likelihood, copies, fit = row["likelihood"], row["metrics"].get("copies"), row["cost"]["fit_s"]
        sign = EXACTNESS[likelihood["exactness"]][0].replace("=", "") if likelihood else ""
        return [
            rank_text(row["rank"]),
            row["name"],
            f"{number(figure['value'])} ({interval_text(figure)})" if figure else "–",
            f"{sign}{number(likelihood['value'])} {short(likelihood['unit'])}" if likelihood else "–",
            f"{copies['value']:.1%}" if copies and copies["value"] is not None else "–",
            duration(fit) if fit is not None else "–",
            row["verdict"],
        ]


def short(unit: str) -> str:
    """A unit that fits a terminal.

    >>> short("bits per dimension"), short("nats per row")
    ('bits/dim', 'nats/row')
    """
    return unit.replace("dimension", "dim").replace(" per ", "/")
