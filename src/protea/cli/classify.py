"""`protea classify RUN [DATA]`: class probabilities by Bayes' rule, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from protea.cli.options import Json, RunFolder, Seed


def classify(
    run: RunFolder,
    data: Annotated[
        str | None, typer.Argument(help="Rows to classify. Default: the held-out rows of the run's data.")
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", min=1, help="Importance samples, where the model has only a bound.")
    ] = 8,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV file for the probabilities of all rows.")] = None,
    json: Json = False,
) -> None:
    """Classify rows by Bayes' rule.

    Any model with a likelihood of labelled data is a classifier: p(y | x) is p(x | y) p(y), normalised. Where the rows
    have labels, accuracy, AUC, Brier score, log loss and calibration are shown; a table may lack its target column.
    """
    import torch

    from protea import api
    from protea.cli.console import print_json, stdout
    from protea.cli.sample_files import _atomic
    from protea.data.rows import read_rows
    from protea.inference.classify import judge_probabilities, reliability
    from protea.inference.labelling import encode_unlabelled, labelling
    from protea.inference.posterior import posterior
    from protea.space import Rows

    model = api.load(run)
    where = labelling(model.space)
    if data is None:
        rows = model.data().holdout
    else:
        read = read_rows(model.space, data)
        x = encode_unlabelled(model.space, read.raw) if read.x is None else read.x
        rows = Rows(x, read.y, torch.arange(len(x)))
    x = rows.x
    found = posterior(model.model, x, draws=draws, seed=seed)
    labels = where.of(rows)
    known = labels >= 0
    facts: dict[str, Any] = {
        "run": str(run), "data": data or "held-out rows", "n": len(x),
        "classes": list(found.names), "exactness": found.exactness,
        "draws": draws if found.exactness == "bound" else None, "labelled": int(known.sum()),
    }  # fmt: skip
    if bool(known.any()):
        figures = judge_probabilities(found.log_prob[known], labels[known], seed=seed)
        facts |= {"figures": {name: f.to_json() for name, f in figures.items()},
                  "reliability": reliability(found.log_prob[known], labels[known])}  # fmt: skip
    said = [found.names[c] for c in found.label.tolist()]
    if out is not None:
        import pandas as pd

        table = pd.DataFrame({"row": range(len(x)), "class": said})
        for c, name in enumerate(found.names):
            table[f"p({name})"] = found.log_prob[:, c].exp().numpy()
        _atomic(out, table.to_csv(index=False).encode())
        facts["out"] = str(out)
    if json:
        rest = {} if out is not None else {"class": said, "probabilities": found.log_prob.exp().tolist()}
        print_json({**facts, **rest})
        return
    from rich.table import Table

    from protea.cli.console import stderr

    console = stdout()
    mark = "exact" if found.exactness == "exact" else "from a bound of the likelihood: approximate"
    console.print(f"{len(x):,} rows, {len(found.names)} classes ({mark})", markup=False)
    if "figures" in facts:
        grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, figure in facts["figures"].items():
            grid.add_row(
                name.replace("_", " "), f"{figure['value']:.4f}", f"[dim]{figure['low']:.4f} .. {figure['high']:.4f}"
            )
        console.print(grid)
    else:
        for name in found.names:
            console.print(f"{name}: {said.count(name):,}", markup=False)
    if out is not None:
        stderr().print(f"Probabilities: {out}", style="dim", markup=False)
