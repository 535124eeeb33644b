"""`protea sample RUN`: draw from a trained model, in the user's own form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protea.cli.options import Json, RunFolder, Seed


def sample(
    run: RunFolder,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="How many samples.")] = 16,
    seed: Seed = 0,
    start: Annotated[
        int, typer.Option("--start", min=0, help="Number of the first sample: 16..31 continues 0..15.")
    ] = 0,
    class_: Annotated[
        str | None, typer.Option("--class", help="Only this class, by name (conditional models).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File (.png .csv .parquet .json .txt .jsonl .npy) or folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Draw samples from a run.

    Pictures as PNG, rows as CSV, Parquet or JSON, text as .txt or JSONL, vectors as .npy or CSV.
    """
    from protea import api
    from protea.cli.console import print_json, stderr, stdout
    from protea.cli.sample_files import preview, write

    model = api.load(run)
    samples = model.sample(n, seed=seed, start=start, label=class_)
    files = [] if out is None else write(samples, model.space.kind, out, start=start)
    if json:
        facts = {
            "run": str(run),
            "n": n,
            "seed": seed,
            "start": start,
            "class": class_,
            "files": [str(f) for f in files],
        }
        print_json(facts if files else {**facts, "samples": preview(samples, model.space)})
        return
    if files:
        stdout().print(str(files[0]), markup=False, soft_wrap=True)
        if len(files) > 1:
            stderr().print(f"and {len(files) - 1} more files", style="dim")
        return
    if model.space.kind == "image":
        out = write(samples, "image", Path(f"{run}") / "samples", start=start)[0]
        stdout().print(str(out), markup=False, soft_wrap=True)
        return
    for item in preview(samples, model.space):
        stdout().print(
            item if isinstance(item, str) else ", ".join(f"{v}" for v in item.values()), markup=False, soft_wrap=True
        )
