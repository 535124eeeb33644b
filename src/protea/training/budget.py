"""How long to learn: seconds, steps or epochs; and how seconds become a number of steps."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass, field
from typing import Any

from protea.errors import ConfigError

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """What a fit may spend; it stops at the first limit it meets.

    Args:
        seconds: wall-clock time of the whole fit, judging and checkpoints included.
        steps: updates of the model (for EM: batches; it stops at the end of the epoch that holds the last).
        epochs: passes over the training rows.
        spent: seconds of it that went before the fit, on building the model for instance.

    Raises:
        ConfigError: no limit is given, or one is not positive and finite.

    >>> Budget.parse("90s"), Budget.parse("1.5h").seconds, Budget.parse("200 steps").steps
    (Budget(seconds=90.0, steps=None, epochs=None, spent=0.0), 5400.0, 200)
    """

    seconds: float | None = None
    steps: int | None = None
    epochs: int | None = None
    spent: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        given = self.to_json()
        if not given:
            raise ConfigError("The budget is empty.", "Give seconds, steps or epochs, for instance --budget 90s.")
        for name, value in given.items():
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"The budget's {name} must be positive, not {value!r}.", "For instance: 90s, 500 steps."
                )

    @classmethod
    def parse(cls, text: str | float | Budget) -> Budget:
        """Read "90s", "3m", "1h", "500 steps" or "10 epochs"; a bare number is seconds."""
        if isinstance(text, Budget):
            return text
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", str(text).lower())
        if not match:
            raise ConfigError(
                f"The budget {text!r} is not understood.", "Write 90s, 3m, 1h, '500 steps' or '10 epochs'."
            )
        number, unit = float(match[1]), match[2] or "s"
        if unit in ("step", "steps", "epoch", "epochs"):
            if number != int(number):
                raise ConfigError(f"The budget {text!r} is not a whole number of {unit}.")
            return cls(steps=int(number)) if unit.startswith("step") else cls(epochs=int(number))
        if unit not in _UNITS:
            raise ConfigError(
                f"The budget {text!r} has an unknown unit {unit!r}.", "Known: ms, s, m, h, steps, epochs."
            )
        return cls(seconds=number * _UNITS[unit])

    def limit(self, steps_per_epoch: int) -> int | None:
        """The number of steps that steps and epochs allow; None where only the clock limits."""
        limits = [self.steps, self.epochs and self.epochs * steps_per_epoch]
        return min((limit for limit in limits if limit is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """The limits that are given."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "spent"}


@dataclass
class Pace:
    """Turns seconds into steps after a short calibration: about 20 steps, or 3 % of the time.

    Schedules then depend on the step and the plan alone, and the plan is stored with the checkpoint, so
    that a resumed run follows the schedule it had.
    """

    seconds: float
    durations: list[float] = field(default_factory=list)

    def ready(self, elapsed: float) -> bool:
        """Whether enough steps were timed."""
        return len(self.durations) >= 20 or (len(self.durations) >= 3 and elapsed >= 0.03 * self.seconds)

    def plan(self, step: int, elapsed: float, judge_seconds: float) -> tuple[int, int]:
        """(horizon, steps between judgings): at most 20 judgings, in at most a tenth of the time.

        3 % of the time left is kept in hand: a slower spell should not cut the schedule's end.
        """
        left = max(self.seconds - elapsed, 0.0)
        judgings = max(1, min(20, int(0.1 * left / max(judge_seconds, 1e-9))))
        warm = self.durations[2:] if step == len(self.durations) else self.durations  # first steps load and compile
        typical = max(statistics.fmean(warm or self.durations), 1e-7)
        more = int(max(0.97 * left - judgings * judge_seconds, 0.0) / typical)
        return step + more, max(1, -(-(step + more) // judgings))
