"""`protea inspect DATA`: what is in the data, and what to know before a model sees them."""

from __future__ import annotations

from typing import Any

from protea.cli.options import Data, DataOption, Json, Target, pairs


def inspect(data: Data, target: Target = None, option: DataOption = None, json: Json = False) -> None:
    """Look at the data before any model does.

    Types, missing values, duplicates, classes, ranges, warnings, and the split the rows get.
    """
    from protea.cli.console import print_json, stdout
    from protea.data import open_data

    dataset = open_data(data, target=target, **pairs(option, "--option"))
    facts = describe(dataset)
    if json:
        print_json(facts)
        return
    from rich.table import Table
    from rich.text import Text

    out = stdout()
    out.print(Text.assemble((dataset.name, "bold"), f"  {facts['space']['kind']} {tuple(facts['space']['event'])}"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    split = facts["split"]
    table.add_row(
        "rows",
        f"{facts['n']:,}  ({split['train']:,} train, {split['validation']:,} validation, {split['holdout']:,} holdout)",
    )
    if dataset.space.classes:
        shown = ", ".join(dataset.space.classes[:10]) + (" ..." if len(dataset.space.classes) > 10 else "")
        table.add_row("classes", Text(f"{len(dataset.space.classes)}: {shown}"))
    table.add_row("fingerprint", facts["fingerprint"][:16])
    for key, value in facts["preflight"].items():
        if key != "warnings" and not isinstance(value, (dict, list)):
            table.add_row(key.replace("_", " "), Text(_short(value)))
    out.print(table)
    columns = facts["preflight"].get("columns")
    if isinstance(columns, list) and columns and isinstance(columns[0], dict):
        out.print(_columns(columns))
    for warning in dataset.preflight.warnings:
        out.print(Text.assemble(("! ", "bold yellow"), warning))
    if not dataset.preflight.warnings:
        out.print("No warnings.", style="green")


def describe(dataset: Any) -> dict[str, Any]:
    """The facts of a dataset as plain JSON values."""
    train, validation, holdout = len(dataset.train), len(dataset.validation), len(dataset.holdout)
    return {
        "name": dataset.name,
        "source": dataset.source,
        "space": {
            "kind": dataset.space.kind,
            "event": list(dataset.space.event),
            "classes": list(dataset.space.classes),
        },
        "n": train + validation + holdout,
        "fingerprint": dataset.fingerprint,
        "split": {"train": train, "validation": validation, "holdout": holdout, "hash": dataset.split_hash},
        "target": dataset.target,
        "preflight": dataset.preflight.to_json(),
    }


def _columns(columns: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    names = [key for key, value in columns[0].items() if not isinstance(value, (dict, list))]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name.replace("_", " "))
    for column in columns[:40]:
        table.add_row(*(Text(_short(column.get(name))) for name in names))
    if len(columns) > 40:
        table.caption = f"{len(columns) - 40} more columns: see --json"
    return table


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
