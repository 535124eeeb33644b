"""`protea eval RUN [DATA]`: judge a trained model."""

from __future__ import annotations

from typing import Annotated

import typer

from protea.cli.options import Json, RunFolder, Seed


def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None, typer.Argument(help="Data to judge against. Default: the data it was trained on.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Judge a run on held-out data.

    Likelihood, sample quality, copies of training rows, cost, and a verdict.
    """
    from protea import api
    from protea.cli.console import print_json, stdout

    row = api.load(run).evaluate(data, seed=seed)
    if json:
        print_json(row)
        return
    from rich.table import Table
    from rich.text import Text

    from protea.evaluation.report import METRICS, interval_text, number

    out = stdout()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    if likelihood := row["likelihood"]:
        unit = f"{likelihood['unit']}, {likelihood['exactness']}"
        table.add_row("likelihood", number(likelihood["value"]), interval_text(likelihood), Text(unit, "dim"))
        if told := likelihood.get("perplexity"):
            meaning = Text("of a token; compares models of one tokenizer only", "dim")
            table.add_row("perplexity", number(told["value"]), interval_text(told), meaning)
        if told := likelihood.get("per_step"):
            table.add_row("", number(told["value"]), interval_text(told), Text("nats per step", "dim"))
    for name, figure in row["metrics"].items():
        meaning = METRICS[name].meaning if name in METRICS else ""
        table.add_row(name, number(figure["value"]), interval_text(figure), Text(meaning, "dim"))
    out.print(table)
    out.print(Text(row["verdict"], "bold"))
