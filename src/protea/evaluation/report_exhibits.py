"""Exhibits: what the report shows beside the figures, as plain JSON.

`exhibits/real.json` holds {"samples", "preflight"}; `exhibits/NAME.json` holds {"samples", "pairs", "curves"} of one
row. Each is ready for any page: pictures are PNG in base64, rows of tables are strings, points are rounded numbers.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protea.errors import ConfigError
from protea.evaluation.report_series import plots
from protea.space import Space

CELLS = 40  # pictures on a sheet
DOTS = 700  # points of a scatter
ROWS = 8  # rows of a table
TEXTS, CHARACTERS = 3, 600


def show(space: Space, x: Tensor, axes: Tensor | None = None) -> dict[str, Any]:
    """Samples x (N, *event) as a page shows them.

    Args:
        space: where x lives.
        x: canonical units.
        axes: (F, 2) directions of the plane for the dots, from `plane` on the real data; unused for images and text.
    """
    if space.kind == "image":
        images = space.decode(x[:CELLS])
        return {"kind": "image", "n": len(images), "png": png(sheet(images, 10 if images[0].size[0] <= 40 else 5))}
    if space.kind == "tokens":
        return {"kind": "text", "texts": [clean(str(t))[:CHARACTERS] for t in space.decode(x[:TEXTS])]}
    if space.kind == "series":
        pictures = plots(space.decode(x[:CELLS]))
        return {"kind": "image", "n": len(pictures), "png": png(sheet(pictures, 5))}
    shown: dict[str, Any] = {"kind": "rows", **rows(space, x[:ROWS])}
    if axes is not None and len(x):
        points = project(space, x[:DOTS], axes)
        shown["dots"] = [[_round(v) for v in p] for p in points.tolist()]
    return shown


def show_one(space: Space, x: Tensor) -> dict[str, Any]:
    """One sample (1, *event) of a pair."""
    if space.kind == "image":
        return {"kind": "image", "png": png(space.decode(x)[0])}
    if space.kind == "tokens":
        return {"kind": "text", "texts": [clean(str(space.decode(x)[0]))[: CHARACTERS // 2]]}
    if space.kind == "series":
        return {"kind": "image", "png": png(plots(space.decode(x))[0])}
    return {"kind": "rows", **rows(space, x)}


def rows(space: Space, x: Tensor) -> dict[str, Any]:
    """{"columns", "rows"} as strings a person reads."""
    raw = space.decode(x)
    if hasattr(raw, "columns"):
        columns = [str(c) for c in raw.columns]
        return {"columns": columns, "rows": [[_cell(v) for v in row] for row in raw.itertuples(index=False)]}
    names = [str(n) for n in getattr(space, "names", range(math.prod(space.event)))]
    return {"columns": names, "rows": [[_cell(v) for v in row] for row in raw.tolist()]}


def plane(space: Space, real: Tensor) -> Tensor | None:
    """(F + 1, 2): the directions in which standardised rows spread most, and their mean; (0, 2) for planar points."""
    if space.kind not in ("vector", "table") or math.prod(space.event) < 2:
        return None
    if space.kind == "vector" and space.event == (2,):
        return torch.zeros(0, 2, dtype=torch.float64)
    f = torch.nan_to_num(space.features(real))
    mean, scale = f.mean(0), f.std(0, correction=0)
    keep = torch.where(scale > 0, 1 / scale.clamp(min=1e-300), torch.zeros_like(scale))
    v = torch.linalg.svd((f - mean) * keep, full_matrices=False).Vh[:2].T * keep[:, None]
    v = v * torch.where(v.sum(0) < 0, -1.0, 1.0)  # a direction's sign is arbitrary: fix it
    return torch.cat((v, (mean @ v)[None]))


def project(space: Space, x: Tensor, axes: Tensor) -> Tensor:
    """(N, 2) places of samples on the plane."""
    if not len(axes):
        return x[:, :2].double()
    return torch.nan_to_num(space.features(x)) @ axes[:-1] - axes[-1]


def sheet(images: Sequence[Any], columns: int) -> Any:
    """One picture of many, a pixel apart, on a transparent ground."""
    from PIL import Image

    columns = min(columns, len(images))
    width, height = images[0].size
    down = -(-len(images) // columns)
    page = Image.new("RGBA", (columns * (width + 1) - 1, down * (height + 1) - 1), (0, 0, 0, 0))
    for i, image in enumerate(images):
        page.paste(image.convert("RGBA"), ((i % columns) * (width + 1), (i // columns) * (height + 1)))
    return page


def png(image: Any) -> str:
    """A PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def clean(text: str) -> str:
    """Control characters made visible, so that a generated text cannot disturb the page or a terminal."""
    return (
        re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{MIDDLE DOT}", text.replace("\r\n", "\n"))
        .encode("utf-8", "replace")
        .decode()
    )


def curves(metrics: Path) -> list[dict[str, Any]]:
    """Learning curves of a run's metrics.jsonl: [{"name", "unit", "x", "y"}], one for each logged figure."""
    lines = []
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # the last line of a killed run may be torn
                continue
    clock = next((k for k in ("seconds", "time", "elapsed") if any(k in line for line in lines)), "step")
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name in ("seconds", "time", "elapsed", "step", "epoch", "lr", "rate") or isinstance(value, bool):
                continue
            if isinstance(value, (int, float)) and isinstance(line.get(clock), (int, float)):
                x, y = found.setdefault(name, ([], []))
                x.append(_round(line[clock]))
                y.append(_round(value))
    keep = _comparable({n: y for n, (x, y) in found.items() if len(x) > 1 and CURVE.search(n) and not OTHER.search(n)})
    return [{"name": n, "unit": "s" if clock != "step" else "step", "x": found[n][0], "y": found[n][1]} for n in keep]


def _comparable(series: dict[str, list[float]]) -> list[str]:
    """Names that can share one vertical scale: the held-out figure leads, others join if they lie near it."""
    series = {n: y for n, y in series.items() if not (n == "log_prob" and "loss" in series)}
    leading = next((n for n, y in series.items() if n.startswith("validation") and len(y) > 2), None)
    if leading is None:
        return list(series)
    ends = sorted(series[leading][len(series[leading]) // 4 :])
    low, high = ends[0], ends[-1]
    reach = 3 * max(high - low, 1e-9)
    near = [n for n, y in series.items() if n != leading and low - reach <= y[-1] <= high + reach]
    return [leading, *near]


OTHER = re.compile(r"(^|_)(lr|rate|norm|seconds)$")
CURVE = re.compile(r"loss|nll|likelihood|log_prob|valid|elbo|critic|generator|c2st|bits|objective", re.IGNORECASE)


def write_exhibit(folder: Path, name: str, exhibit: dict[str, Any]) -> None:
    """Write one exhibit, whole or not at all."""
    write_atomic(folder / "exhibits" / f"{safe_name(name)}.json", json.dumps(exhibit, ensure_ascii=False))


def read_exhibit(folder: Path, name: str) -> dict[str, Any]:
    """One exhibit, or {} where there is none: the report then leaves its picture out."""
    path = folder / "exhibits" / f"{safe_name(name)}.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def safe_name(name: str) -> str:
    """A file name for a row's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "row"


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all; an unwritable folder is the user's to mend."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}.", "Choose another folder with --out."
        ) from error


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    text = "" if value is None or str(value) in ("NaT", "<NA>", "nan") else str(value)
    return clean(text)[:80]
