"""The report: `report.json` (a contract, see schema.json) and one self-contained `report.html`.

The page makes no request: style, script and pictures are inside, and its content security policy forbids anything else.
It can be rebuilt from the folder at any time: figures come from report.json, pictures from `exhibits/`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from protea.errors import CheckpointError
from protea.evaluation import report_view
from protea.evaluation.report_exhibits import read_exhibit, write_atomic
from protea.evaluation.report_view import METRICS, Metric, interval_text, number
from protea.evaluation.schema import validate

__all__ = [
    "METRICS",
    "Metric",
    "Report",
    "interval_text",
    "number",
    "read_report",
    "render",
    "write_html",
    "write_report",
]


class Report(NamedTuple):
    """A finished comparison: the folder, the contract's document, and the page."""

    folder: Path
    document: dict[str, Any]
    html: Path


def write_report(document: dict[str, Any], folder: Path) -> Report:
    """Validate and write report.json, then report.html; each whole or not at all.

    Raises:
        CheckpointError: the document departs from the schema.
        ConfigError: the folder cannot be written.
    """
    document = finite(document)
    validate(document)
    write_atomic(folder / "report.json", json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return Report(folder, document, write_html(document, folder))


def read_report(folder: Path) -> dict[str, Any]:
    """The validated document of a report folder (or of a path to report.json itself)."""
    path = folder if folder.suffix == ".json" else folder / "report.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no report at {path}.", "Write one with: protea compare DATA --out FOLDER"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Run the comparison again.") from None
    validate(document, str(path))
    return document


def write_html(document: dict[str, Any], folder: Path) -> Path:
    """Write report.html beside report.json."""
    folder = folder.parent if folder.suffix == ".json" else folder
    exhibits = {row["name"]: read_exhibit(folder, row["name"]) for row in document["rows"]}
    path = folder / "report.html"
    write_atomic(path, render(document, exhibits, read_exhibit(folder, "real")))
    return path


def render(document: dict[str, Any], exhibits: dict[str, dict[str, Any]], real: dict[str, Any]) -> str:
    """The page as text. Every word from the data is escaped.

    Args:
        document: the contract's document.
        exhibits: what to show for each row, by name (see `report_exhibits`); missing ones are left out.
        real: what to show of the real data, and the preflight.
    """
    from jinja2 import Environment, StrictUndefined

    folder = files("protea.evaluation").joinpath("templates")
    style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number,
        "interval": interval_text,
        "value": report_view.value_text,
        "sentence": report_view.sentence,
    }
    template = environment.from_string(folder.joinpath("report.html.j2").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    view = report_view.build(document, exhibits, real)
    return template.render(style=style, script=script, script_hash=digest, **view)


def finite(value: Any) -> Any:
    """Strict JSON: NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
