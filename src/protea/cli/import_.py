"""`protea import hf:FOLDER`: somebody else's model as a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protea.cli.options import Json


def import_(
    source: Annotated[str, typer.Argument(help="hf:FOLDER, a Hugging Face folder on this machine.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. Default: runs/NAME.")] = None,
    json: Json = False,
) -> None:
    """Make a run folder of a model from elsewhere.

    Nothing is downloaded and no code of the folder is run: weights are safetensors, settings JSON.
    """
    from protea import api
    from protea.cli.console import print_json, stderr, stdout
    from protea.interop.runs import import_model

    path = import_model(source, out)
    if json:
        print_json(api.load(path).facts())
        return
    stdout().print(str(path), markup=False, soft_wrap=True)
    stderr().print(f"Next:  protea chat {path}", style="dim", markup=False)
