"""Options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str, typer.Argument(help="A file, a folder, or an embedded set such as digits, iris, eight-gaussians.")
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder written by `protea fit`.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="Every random number follows from this.")]
Target = Annotated[str | None, typer.Option("--target", help="The column to predict, for tables.")]
DataSpace = Annotated[str | None, typer.Option("--space", help="Read the data as: vector, table, image, tokens.")]
RequireGpu = Annotated[bool, typer.Option("--require-gpu", help="Fail rather than fall back to the CPU.")]
BUDGET_HELP = "How long to train: 60s, 2m, 500steps or 10epochs."
