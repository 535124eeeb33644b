"""The contract of report.json: version 1, as a JSON schema in the package (`schema.json`)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from protea.errors import CheckpointError

VERSION = 1


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of report.json.

    >>> schema()["properties"]["version"]
    {'const': 1}
    """
    return json.loads(files("protea.evaluation").joinpath("schema.json").read_text(encoding="utf-8"))


def validate(document: Any, source: str = "report.json") -> None:
    """Raise CheckpointError naming the first place where `document` departs from the schema."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    found = document.get("version") if isinstance(document, dict) else None
    if isinstance(found, int) and found > VERSION:
        raise CheckpointError(
            f"{source} has version {found}; this Protea reads up to version {VERSION}.",
            "Upgrade with: pip install -U protea",
        )
    error = best_match(Draft202012Validator(schema()).iter_errors(document))
    if error is not None:
        where = "/".join(str(part) for part in error.absolute_path) or "the document"
        raise CheckpointError(
            f"{source} is not a Protea report: {where}: {error.message}.", "Run the comparison again."
        )
