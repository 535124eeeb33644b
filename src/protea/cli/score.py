"""`protea score RUN DATA`: the likelihood of each row under a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protea.cli.options import Data, Json, RunFolder, Seed


def score(
    run: RunFolder,
    data: Data,
    n: Annotated[int | None, typer.Option("-n", "--n", min=1, help="Only the first n rows.")] = None,
    draws: Annotated[
        int, typer.Option("--draws", min=1, help="Importance samples, where the model has only a bound.")
    ] = 8,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV file for the scores of all rows.")] = None,
    json: Json = False,
) -> None:
    """Likelihood of each row under a run.

    In nats and in the user's unit, saying whether it is exact or a bound.
    """
    from protea import api
    from protea.cli.console import print_json, stdout
    from protea.cli.sample_files import _atomic

    scores = api.load(run).score_data(data, n=n, draws=draws, seed=seed)
    if out is not None:
        lines = [
            "row,nats,value",
            *(f"{i},{a!r},{b!r}" for i, (a, b) in enumerate(zip(scores["nats"], scores["values"]))),
        ]
        _atomic(out, ("\n".join(lines) + "\n").encode())
    if json:
        print_json(scores if out is None else {**scores, "nats": None, "values": None, "out": str(out)})
        return
    marks = {"bound": "a bound: the true likelihood is at least as high", "estimate": "an estimate, which may err"}
    mark = marks.get(scores["exactness"], "exact")
    each = f", {scores['per_step']:.4f} nats per step" if scores["per_step"] is not None else ""
    told = f"{scores['mean']:.4f} {scores['unit']}{each} (mean over {scores['n']:,} rows; {mark})"
    stdout().print(told, markup=False)
