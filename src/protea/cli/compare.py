"""`protea compare DATA`: every suitable model under one split and one budget, and one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protea.cli.options import Data, DataOption, Json, Seed, Target, pairs


def compare(
    data: Data,
    models: Annotated[
        str | None, typer.Option("--models", "-m", help="Names with commas, or all. Default: the usual ones that suit.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", "-b", help="For the whole comparison: 90s, 5m; or steps of each model. Default: 3m."),
    ] = None,
    each: Annotated[str | None, typer.Option("--each", help="For each model instead: 30s, 500steps, 10epochs.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Train each model with so many seeds.")] = 1,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Report folder. Default: reports/DATA.")] = None,
    target: Target = None,
    option: DataOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what the folder already holds.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Show the report in the browser when it is ready.")] = False,
    json: Json = False,
) -> None:
    """Train, judge and rank every suitable model; one report.

    Which model fits this data, is it any good, may it be released? Every family gets the same split and the same
    budget; null rows show what perfect, hopeless and copied samples score. Interrupt it and repeat to continue.
    """
    from protea.cli.console import print_json, stderr, stdout

    console = stderr()
    try:
        from protea.cli.live import LiveTable
        from protea.evaluation.compare import compare as run_comparison

        with LiveTable(console, quiet=json) as table:
            result = run_comparison(
                data, models=models.split(",") if models else None, budget=budget, each=each,
                seeds=seeds, seed=seed, out=out, fresh=fresh, observer=table, target=target,
                **pairs(option, "--option"),
            )  # fmt: skip
    except KeyboardInterrupt:
        console.print("Interrupted. Finished rows are kept: repeat the same command to continue.", style="yellow")
        raise typer.Exit(130) from None
    if json:
        print_json(result.document)
    else:
        stdout().print(str(result.html), markup=False, soft_wrap=True)
    if open_:
        import webbrowser

        webbrowser.open(result.html.resolve().as_uri())
