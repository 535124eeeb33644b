"""`protea models`: what Protea can fit."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from protea.cli.options import Json


def models(
    suits: Annotated[
        str | None, typer.Option("--suits", help="Only models of this space: vector, table, image, tokens.")
    ] = None,
    json: Json = False,
) -> None:
    """List every model and what it can do.

    Family, capabilities, the data it suits, and its paper.
    """
    from protea.cli.console import print_json, stdout
    from protea.errors import ConfigError, nearest
    from protea.models import MODELS

    kinds = sorted({kind for entry in MODELS.values() for kind in entry.suits})
    if suits is not None and suits not in kinds:
        raise ConfigError(f"No model suits a space called {suits!r}.", nearest(suits, kinds))
    rows = [_facts(entry) for entry in MODELS.values() if suits is None or suits in entry.suits]
    if json:
        print_json(rows)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("name", "family", "can", "suits", "source"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        name = Text.assemble((row["name"], "bold cyan"))
        table.add_row(
            name, row["family"], ", ".join(row["capabilities"]), ", ".join(row["suits"]), Text(row["source"], "dim")
        )
    stdout().print(table)


def _facts(entry: Any) -> dict[str, Any]:
    return {
        "name": entry.name,
        "title": entry.title,
        "family": entry.family,
        "capabilities": _capabilities(entry),
        "suits": sorted(entry.suits),
        "source": entry.source,
    }


def _capabilities(entry: Any) -> list[str]:
    """What a default model can do, found by building one on a tiny space without allocating its weights."""
    import torch

    from protea.core import capabilities
    from protea.models.lifted import Lifted
    from protea.spaces import Image, Series, Tokens, Vector

    tiny = {
        "vector": Vector(("x", "y"), ("a", "b")),
        "image": Image(1, 8, 8, classes=("a", "b")),
        "tokens": Tokens(16),
        "series": Series(("x",), 4),
        "table": Vector(("x", "y"), ("a", "b")),  # a table's continuous model sees a vector
    }
    found: dict[str, None] = {}
    for kind in sorted(entry.suits):
        space = tiny[kind]
        try:
            with torch.device("meta"):
                model = entry.build(space, entry.config())
        except Exception:  # a constructor that computes needs real tensors
            model = entry.build(space, entry.config())
        found |= dict.fromkeys(capabilities(model))
        if isinstance(model, Lifted):  # how the continuous model learns and what it infers
            found |= dict.fromkeys(
                c for c in capabilities(model.inner) if c in ("Countable", "Denoises", "Encodes", "Energy")
            )
    return list(found)
