"""`protea anomaly RUN DATA`: the strangest rows, with p-values calibrated on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from protea.cli.options import Data, Json, RunFolder, Seed


def anomaly(
    run: RunFolder,
    data: Data,
    fdr: Annotated[
        float, typer.Option("--fdr", min=0.0, max=1.0, help="Flag rows; at most this share of them is normal.")
    ] = 0.1,
    top: Annotated[int, typer.Option("--top", min=0, help="How many of the strangest rows to show.")] = 20,
    statistic: Annotated[
        str, typer.Option("--statistic", help="likelihood (low is strange) or typicality (high is strange too).")
    ] = "likelihood",
    normal: Annotated[
        str | None,
        typer.Option("--normal", help="Normal rows the run has not learnt from. Default: its held-out rows."),
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", min=1, help="Importance samples, where the model has only a bound.")
    ] = 8,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV file for the p-values of all rows.")] = None,
    json: Json = False,
) -> None:
    """Find strange rows, with p-values.

    p is the chance that a normal row looks as strange, whatever the model: it is counted among held-out rows. Rows are
    flagged by Benjamini and Hochberg's rule, so that at most the share --fdr of the flagged ones is normal on average.
    """
    from protea import api
    from protea.cli.console import print_json, stdout
    from protea.cli.sample_files import _atomic
    from protea.data.rows import read_rows

    model = api.load(run)
    rows, held = read_rows(model.space, data), None
    x = model.encode(rows.raw) if rows.x is None else rows.x
    if normal is not None:
        others = read_rows(model.space, normal)
        held = model.encode(others.raw) if others.x is None else others.x
    found = model.anomalies_of(x, held, statistic=cast(Any, statistic), draws=draws, seed=seed)
    flagged = (found.q <= fdr).nonzero()[:, 0].tolist()
    table = list(zip(range(len(x)), found.nats.tolist(), found.p.tolist(), found.q.tolist()))
    if out is not None:
        lines = ["row,nats,p,q", *(f"{i},{a!r},{b!r},{c!r}" for i, a, b, c in table)]
        _atomic(out, ("\n".join(lines) + "\n").encode())
    strangest = sorted(table, key=lambda row: (row[2], row[1] if statistic == "likelihood" else 0.0))
    if json:
        shown = table if out is None else strangest[:top]
        print_json({
            "run": str(run), "data": data, "n": len(x), "calibration": found.calibration, "statistic": statistic,
            "fdr": fdr, "flagged": flagged, "out": None if out is None else str(out),
            "rows": [{"row": i, "nats": a, "p": p, "q": q} for i, a, p, q in shown],
        })  # fmt: skip
        return
    from rich.table import Table

    console = stdout()
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("row", "log-likelihood (nats)", "p", "q", ""):
        grid.add_column(name)
    for i, nats, p, q in strangest[:top]:
        grid.add_row(str(i), f"{nats:.2f}", f"{p:.4g}", f"{q:.4g}", "flagged" if q <= fdr else "")
    console.print(grid)
    console.print(
        f"{len(flagged):,} of {len(x):,} rows flagged at a false discovery rate of {fdr:g}; "
        f"p-values from {found.calibration:,} held-out rows, so at least {1 / (found.calibration + 1):.2g}.",
        markup=False,
    )
