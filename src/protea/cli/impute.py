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
    ahead: Annotated[int, typer.Option("--ahead", min=0, help="Of series: go on for so many steps, too.")] = 0,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV (or .npy) file; with --draws, FILE-1 ...")
    ] = None,
    json: Json = False,
) -> None:
    """Fill missing values exactly.

    With DATA, each hole gets its mean (or most probable category) given what the row has; with --draws M, M completed
    copies are drawn instead. Of series, --ahead H tells the next H steps, too. Without DATA, 20 % of the held-out cells
    are hidden and the error of filling them is shown beside that of the usual ways.
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
    from protea.spaces import Series

    rows = read_rows(model.space, data)
    if isinstance(model.space, Series) and rows.x is not None:
        from protea.inference.series import forecast, known

        x, observed = rows.x, known(model.space, rows.x)
        filled = forecast(model.model, x, ahead, draws, seed) if ahead else fill(model.model, x, observed, draws, seed)
        space = Series(model.space.names, filled.shape[-2], model.space.classes)
    elif rows.raw is None or ahead:
        raise NotSupported(
            f"A file of {model.space.kind} data cannot say which entries are missing, or what comes next.",
            "Give a table, .npy with NaN, or series.",
        )
    else:
        x, observed = encode_missing(model.space, rows.raw)
        filled, space = fill(model.model, x, observed, draws, seed), model.space
    copies = [space.decode(c) for c in (filled if draws is not None else [filled])]
    facts: dict[str, Any] = {
        "run": str(run),
        "data": data,
        "n": len(x),
        "holes": int((~observed).sum()),
        "draws": draws,
        "ahead": ahead,
    }
    files: list[str] = []
    if out is not None:
        files = [str(_write(c, out if draws is None else out.with_stem(f"{out.stem}-{i + 1}"), model.space.kind))
                 for i, c in enumerate(copies)]  # fmt: skip
    if json:
        shown = {"files": files} if files else {"rows": [_preview(c, space) for c in copies]}
        print_json({**facts, **shown})
        return
    stdout().print(f"{facts['holes']:,} holes of {len(x):,} rows filled", markup=False)
    for file in files:
        stdout().print(file, markup=False, soft_wrap=True)
    if not files and not isinstance(space, Series):
        stdout().print(str(copies[0]), markup=False)


def _preview(samples: Any, space: Any) -> list[Any]:
    from protea.cli.sample_files import preview

    return [series.tolist() for series in samples] if space.kind == "series" else preview(samples, space)


def _write(samples: Any, path: Path, kind: str) -> Path:
    from protea.cli.sample_files import write

    return write(samples, kind, path)[0]


def _errors(model: Any, seed: int) -> dict[str, Any]:
    from protea.errors import NotSupported
    from protea.inference.imputation_error import by_model, imputation_error, peers

    if model.space.kind == "series":
        from protea.inference.series import series_errors

        dataset = model.data()
        rows = dataset.holdout[:1000]
        found = series_errors(model.model, rows, dataset.train.x, seed=seed)
        return _measured(model, rows, found)
    if len(model.space.event) != 1:
        raise NotSupported(f"Cells of {model.space.kind} data are not measured one by one.", "Use a table or vectors.")
    dataset, fields = model.data(), model.space.fields
    rows = dataset.holdout[:1000]
    ways = {"this run": by_model(model.model), **peers(dataset.train.x, fields)}
    found = {name: imputation_error(way, rows, dataset.train.x, fields, seed=seed) for name, way in ways.items()}
    return _measured(model, rows, found)


def _measured(model: Any, rows: Any, found: dict[str, Any]) -> dict[str, Any]:
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
        table.add_column(f"{name} (deviations)" if name in ("rmse", "cells", "steps") else str(name).replace("_", " "))
    for way, figures in measured["errors"].items():
        cells = [figures.get(name) for name in names]
        table.add_row(
            way, *("" if c is None else f"{c['value']:.3f} [dim]{c['low']:.2f} .. {c['high']:.2f}" for c in cells)
        )
    stdout().print(table)
