"""`protea plan MODEL DATA`: what a fit will take in time, memory and disk, before it runs."""

from __future__ import annotations

import time
from typing import Annotated, Any, cast

import typer

from protea.cli.options import BUDGET_HELP, Data, DataOption, Json, RequireGpu, Seed, Target, pairs


def plan(
    model: Annotated[str, typer.Argument(help="A name from `protea models`.")],
    data: Data,
    budget: Annotated[str, typer.Option("--budget", "-b", help=BUDGET_HELP)] = "60s",
    seed: Seed = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: --set width=256 (repeatable).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Rows of a step. Default: from data and model.")
    ] = None,
    target: Target = None,
    option: DataOption = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    require_gpu: RequireGpu = False,
    precision: Annotated[str, typer.Option("--precision", help="fp32, bf16, or auto: bf16 where native.")] = "fp32",
    microbatch: Annotated[
        int | None, typer.Option("--microbatch", help="Rows of one pass; accumulates to the same gradient.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what a fit will take: steps, time, memory, disk.

    Takes the arguments of `fit`, rehearses a few steps, one judging and one checkpoint, and writes nothing.
    """
    began = time.perf_counter()
    from protea.cli.console import print_json, stdout
    from protea.data import open_data
    from protea.training.budget import Budget
    from protea.training.hardware import Hardware
    from protea.training.rehearsal import rehearse
    from protea.training.run import find

    parsed = Budget.parse(budget)
    find(model)  # an unknown name is told before the data are read
    dataset = open_data(data, target=target, **pairs(option, "--option"))
    hardware = Hardware(device, require_gpu, cast(Any, precision), False, False, microbatch)
    forecast = rehearse(
        model, pairs(set_, "--set"), dataset, parsed, seed, batch_size=batch_size, hardware=hardware, began=began
    )
    if json:
        print_json(forecast.to_json())
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    gpu = "" if forecast.gpu_mb is None else f", {forecast.gpu_mb:,.0f} MB of GPU memory"
    most = "at most " if forecast.at_most else ""
    for name, value in (
        ("model", f"{model}, {forecast.parameters:,} parameters, {forecast.device}"),
        ("steps", f"{most}{forecast.steps:,} of {forecast.batch_size} rows ({forecast.epochs:g} epochs), "
                  f"{1000 * forecast.step_s:.3g} ms each"),
        ("time", most + _words(forecast.seconds)),
        ("memory", f"{forecast.memory_mb:,.0f} MB{gpu}"),
        ("disk", f"{forecast.disk_mb:,.1f} MB"),
    ):  # fmt: skip
        table.add_row(name, value)
    stdout().print(table)


def _words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
