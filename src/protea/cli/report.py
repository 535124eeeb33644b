"""`protea report FOLDER`: write report.html again from report.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protea.cli.options import Json


def report(
    folder: Annotated[Path, typer.Argument(help="A folder written by `protea compare`.")],
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    json: Json = False,
) -> None:
    """Write report.html again from report.json.

    The figures stay as they were measured.
    """
    from protea.cli.console import print_json, stdout
    from protea.evaluation.report import read_report, write_html

    document = read_report(folder)
    path = write_html(document, folder)
    if json:
        print_json(document)
    else:
        stdout().print(str(path), markup=False, soft_wrap=True)
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
