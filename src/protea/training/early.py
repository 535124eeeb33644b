"""Judgements along a run: the best so far, when to stop early, and whether it was still improving."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Judgements:
    """(step, figure) pairs of one figure, lower is better.

    Args:
        patience: judgings without a new best after which to stop; None never stops.

    >>> j = Judgements(patience=2)
    >>> [j.add(step, figure) for step, figure in [(1, 3.0), (2, 2.0), (3, 2.5), (4, 2.4)]]
    [True, True, False, False]
    >>> j.best_step, j.exhausted, j.still_improving()
    (2, True, False)
    """

    patience: int | None = 6
    points: list[tuple[int, float]] = field(default_factory=list)

    def add(self, step: int, figure: float) -> bool:
        """Note a judging; True if it is the best so far. A figure that is not a number is never best."""
        best = self.best
        self.points.append((step, figure))
        return math.isfinite(figure) and (best is None or figure < best)

    @property
    def _finite(self) -> list[tuple[int, float]]:
        return [(step, figure) for step, figure in self.points if math.isfinite(figure)]

    @property
    def best(self) -> float | None:
        return min((figure for _, figure in self._finite), default=None)

    @property
    def best_step(self) -> int | None:
        """The first step that reached the best figure."""
        return min(self._finite, key=lambda point: (point[1], point[0]))[0] if self._finite else None

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` judgings all failed to improve."""
        best = self.best_step
        if self.patience is None or best is None:
            return False
        return sum(step > best for step, _ in self.points) >= self.patience

    def still_improving(self) -> bool:
        """Whether the last fifth of the steps brought over a tenth of what the last three fifths brought.

        A run that falls steadily scores a third, one that has settled near 0; gains under 0.001 count as none.
        """
        last = self.points[-1][0] if self.points else 0
        early, late = (
            min((f for step, f in self._finite if step <= share * last), default=None) for share in (0.4, 0.8)
        )
        if self.best is None or early is None or late is None:
            return False
        return late - self.best > max(0.1 * (early - self.best), 1e-3)

    def to_json(self) -> list[list[Any]]:
        return [[step, figure if math.isfinite(figure) else None] for step, figure in self.points]

    def load(self, points: list[list[Any]]) -> None:
        self.points = [(int(step), math.nan if figure is None else float(figure)) for step, figure in points]
