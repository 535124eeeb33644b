"""Series as a sheet of small line plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

COLOURS = ((31, 119, 180), (214, 108, 28), (44, 140, 74), (160, 60, 120))  # of channels, the first four
SCALE = 2  # drawn larger, then reduced, which smooths the lines


def plots(series: Sequence[np.ndarray], width: int = 120, height: int = 60) -> list[Any]:
    """One RGB picture of lines for each series (L, D), all with the same axes; missing values leave gaps.

    Channels are drawn about their own means and deviations over the series given.
    """
    from PIL import Image, ImageDraw

    whole = np.concatenate([s for s in series if len(s)] or [np.zeros((1, 1))])
    whole = whole[:, : len(COLOURS)]
    seen = np.isfinite(whole)
    count = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, whole, 0.0).sum(0) / count
    spread = np.sqrt((np.where(seen, whole - mean, 0.0) ** 2).sum(0) / count)
    spread = np.where(spread > 0, spread, 1.0)
    scaled = np.where(seen, (whole - mean) / spread, 0.0)
    low, high = float(scaled.min()), float(scaled.max())
    steps = max(max(map(len, series), default=1), 2)
    out = []
    for s in series:
        picture = Image.new("RGB", (width * SCALE, height * SCALE), (255, 255, 255))
        pen = ImageDraw.Draw(picture)
        values = (s[:, : len(COLOURS)] - mean) / spread if len(s) else s
        for c in range(min(s.shape[1], len(COLOURS))):
            x = np.arange(len(s)) / (steps - 1) * (width - 5) * SCALE + 2 * SCALE
            y = (1 - (values[:, c] - low) / max(high - low, 1e-12)) * (height - 5) * SCALE + 2 * SCALE
            for t in range(len(s) - 1):
                if np.isfinite(y[t : t + 2]).all():
                    pen.line((x[t], y[t], x[t + 1], y[t + 1]), fill=COLOURS[c], width=SCALE)
        out.append(picture.resize((width, height)))
    return out
