"""Options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from protea.errors import ConfigError

BUDGET_HELP = "How long to train: 60s, 2m, 500steps or 10epochs."

Data = Annotated[
    str, typer.Argument(help="A file, a folder, or an embedded set such as digits, iris, eight-gaussians.")
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder written by `protea fit`.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="Every random number follows from this.")]
Target = Annotated[str | None, typer.Option("--target", help="The column to predict, for tables.")]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Of text: bytes, chars, bpe:512, wordpiece:1000, unigram:1000, or a file."),
]
DataOption = Annotated[
    list[str] | None, typer.Option("--option", help="Of opening the data: block=64, size=32, n=2000 ... (repeatable).")
]
RequireGpu = Annotated[bool, typer.Option("--require-gpu", help="Fail rather than fall back to the CPU.")]


def pairs(words: Iterable[str] | None, flag: str) -> dict[str, Any]:
    """KEY=VALUE words to a mapping; values are JSON where they can be read so.

    >>> pairs(["width=64", "schedule=cosine", "layers=[1, 2]"], "--set")
    {'width': 64, 'schedule': 'cosine', 'layers': [1, 2]}
    """
    found: dict[str, Any] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{flag} {word!r} is not KEY=VALUE.", f"For instance: {flag} width=256.")
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value
    return found
