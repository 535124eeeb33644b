"""`protea impute RUN [DATA]`: fill missing values, or measure how well they would be filled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from protea.cli.options import Json, RunFolder, Seed


def impute(
    run: RunFolder,
    data: Annotated[
        str | None, typer.Argument(help="A table with holes. Without it: the error on held-out cells.")
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option("--draws", min=1, help="Multiple imputation: so many completed copies. Default: means."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV (or .npy) file; with --draws, FILE-1 ...")
    ] = None,
    json: Json = False,
) -> None:
    """Fill missing values exactly.

    With DATA, each hole gets its mean (or most probable category) given what the row has; with --draws M, M completed
    copies are drawn instead. Without DATA, 20 % of the held-out cells are hidden and the error of filling them is shown
    beside that of column means, nearest neighbours and chained regressions.
    """
    from protea import api
    from protea.cli.console import print_json, stdout

    model = api.load(run)
    if data is None:
        measured = _errors(model, seed)
        if json:
            print_json(measured)
        else:
            _show(measured)
        return
    from protea.data.rows import read_rows
    from protea.errors import NotSupported
    from protea.inference.missing import encode_missing
    from protea.inference.missing import impute as fill

    rows = read_rows(model.space, data)
    if rows.raw is None:
        raise NotSupported(
            f"A file of {model.space.kind} data cannot say which entries are missing.",
            "Give a table, or .npy with NaN.",
        )
    x, observed = encode_missing(model.space, rows.raw)
    filled = fill(model.model, x, observed, draws, seed)
    copies = [model.space.decode(c) for c in (filled if draws is not None else [filled])]
    facts: dict[str, Any] = {
        "run": str(run),
        "data": data,
        "n": len(x),
        "holes": int((~observed).sum()),
        "draws": draws,
    }
    files: list[str] = []
    if out is not None:
        files = [str(_write(c, out if draws is None else out.with_stem(f"{out.stem}-{i + 1}"), model.space.kind))
                 for i, c in enumerate(copies)]  # fmt: skip
    if json:
        from protea.cli.sample_files import preview

        shown = {"files": files} if files else {"rows": [preview(c, model.space) for c in copies]}
        print_json({**facts, **shown})
        return
    stdout().print(f"{facts['holes']:,} holes of {len(x):,} rows filled", markup=False)
    for file in files:
        stdout().print(file, markup=False, soft_wrap=True)
    if not files:
        stdout().print(str(copies[0]), markup=False)


def _write(samples: Any, path: Path, kind: str) -> Path:
    from protea.cli.sample_files import write

    return write(samples, kind, path)[0]


def _errors(model: Any, seed: int) -> dict[str, Any]:
    from protea.errors import NotSupported
    from protea.inference.imputation_error import by_model, imputation_error, peers

    if len(model.space.event) != 1:
        raise NotSupported(f"Cells of {model.space.kind} data are not measured one by one.", "Use a table or vectors.")
    dataset, fields = model.data(), model.space.fields
    rows = dataset.holdout[:1000]
    ways = {"this run": by_model(model.model), **peers(dataset.train.x, fields)}
    found = {name: imputation_error(way, rows, dataset.train.x, fields, seed=seed) for name, way in ways.items()}
    return {
        "run": str(model.path), "rows": len(rows), "hidden": 0.2,
        "errors": {name: {k: f.to_json() for k, f in figures.items()} for name, figures in found.items()},
    }  # fmt: skip


def _show(measured: dict[str, Any]) -> None:
    from rich.table import Table

    from protea.cli.console import stdout

    names = sorted({k for figures in measured["errors"].values() for k in figures}, reverse=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("way")
    for name in names:
        table.add_column("rmse (deviations)" if name == "rmse" else str(name).replace("_", " "))
    for way, figures in measured["errors"].items():
        cells = [figures.get(name) for name in names]
        table.add_row(
            way, *("" if c is None else f"{c['value']:.3f} [dim]{c['low']:.2f} .. {c['high']:.2f}" for c in cells)
        )
    stdout().print(table)
