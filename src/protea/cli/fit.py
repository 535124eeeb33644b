"""`protea fit MODEL DATA`: train one model into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from protea.cli.options import BUDGET_HELP, Data, DataOption, Json, RequireGpu, Seed, Target, Tokenizer, pairs


def fit(
    model: Annotated[str, typer.Argument(help="A name from `protea models`.")],
    data: Data,
    budget: Annotated[str, typer.Option("--budget", "-b", help=BUDGET_HELP)] = "60s",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. Default: runs/DATA-MODEL.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: --set width=256 (repeatable).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Rows of a step. Default: from data and model.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Continue where the run folder stopped.")] = True,
    target: Target = None,
    tokenizer: Tokenizer = None,
    option: DataOption = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    require_gpu: RequireGpu = False,
    precision: Annotated[str, typer.Option("--precision", help="fp32, bf16, or auto: bf16 where native.")] = "fp32",
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile the networks.")] = False,
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun: split weights over processes (FSDP2).")
    ] = False,
    microbatch: Annotated[
        int | None, typer.Option("--microbatch", help="Rows of one pass; accumulates to the same gradient.")
    ] = None,
    json: Json = False,
) -> None:
    """Train one model into a run folder.

    Interrupt it at any moment; the same command continues where it stopped.
    """
    from protea.cli.console import print_json, stderr, stdout

    console = stderr()
    try:
        from protea import api

        hardware = api.Hardware(device, require_gpu, cast(Any, precision), compile_, shard, microbatch)
        run = api.fit(
            model, data, budget=budget, seed=seed, out=out, settings=pairs(set_, "--set"), batch_size=batch_size,
            hardware=hardware, resume=resume, progress="none" if json else "auto",
            target=target, **pairs(option, "--option"), **({"tokenizer": tokenizer} if tokenizer else {}),
        )  # fmt: skip
    except KeyboardInterrupt:
        console.print("Interrupted. The run folder is kept: repeat the same command to continue.", style="yellow")
        raise typer.Exit(130) from None
    if json:
        print_json(run.facts())
        return
    facts = run.facts()
    stdout().print(f"{facts['path']}", markup=False)
    console.print(f"Next:  protea sample {facts['path']} -n 16 --out samples", style="dim", markup=False)
