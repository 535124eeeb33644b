"""`protea resume RUN`: continue a run from its last checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from protea.cli.options import BUDGET_HELP, Json, RequireGpu, RunFolder


def resume(
    run: RunFolder,
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help=f"{BUDGET_HELP} Default: as it was begun.")
    ] = None,
    require_gpu: RequireGpu = False,
    json: Json = False,
) -> None:
    """Continue an interrupted run.

    Exactly where it stopped; or give a finished one more budget.
    """
    from protea.cli.console import print_json, stderr, stdout

    console = stderr()
    try:
        from protea import api

        done = api.resume(run, budget=budget, require_gpu=require_gpu, progress="none" if json else "auto")
    except KeyboardInterrupt:
        console.print("Interrupted. The run folder is kept: repeat the same command to continue.", style="yellow")
        raise typer.Exit(130) from None
    if json:
        print_json(done.facts())
    else:
        stdout().print(str(done.path), markup=False)
