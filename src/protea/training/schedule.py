r"""Learning-rate schedules: functions of (step, horizon) that multiply the base rate.

`horizon` is the planned number of steps, or None while it is not known (see `budget.Pace`), when the
rate only warms up. Warm-up never takes more than a tenth of the horizon.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int | None], float]


def _rise(step: int, horizon: int | None, warmup: int) -> float:
    length = warmup if horizon is None else min(warmup, horizon // 10)
    return min(1.0, (step + 1) / (length + 1))


def constant(warmup: int = 0) -> Schedule:
    """Linear warm-up, then 1.

    >>> [constant(3)(step, 100) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return lambda step, horizon: _rise(step, horizon, warmup)


def warmup_cosine(warmup: int = 100, floor: float = 0.02) -> Schedule:
    r"""Linear warm-up, then $f + (1-f)(1 + \cos \pi u)/2$, u in [0, 1] over the horizon (Loshchilov and Hutter 2017).

    >>> s = warmup_cosine(warmup=10, floor=0.0)
    >>> round(s(50, 100), 6), round(s(100, 100), 6)
    (0.5, 0.0)
    """

    def schedule(step: int, horizon: int | None) -> float:
        u = 0.0 if horizon is None else min(step / max(horizon, 1), 1.0)
        return _rise(step, horizon, warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * u)))

    return schedule


def warmup_stable_decay(warmup: int = 100, decay: float = 0.2, floor: float = 0.0) -> Schedule:
    """Warm-up, a plateau, and a linear fall over the last fraction `decay` of the horizon (Hu et al. 2024, MiniCPM).

    >>> s = warmup_stable_decay(warmup=0, decay=0.5)
    >>> s(10, 100), s(75, 100), s(100, 100)
    (1.0, 0.5, 0.0)
    """

    def schedule(step: int, horizon: int | None) -> float:
        left = 1.0 if horizon is None else max(horizon - step, 0) / max(decay * horizon, 1e-9)
        return _rise(step, horizon, warmup) * (floor + (1 - floor) * min(1.0, left))

    return schedule
