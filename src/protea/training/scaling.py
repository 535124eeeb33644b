r"""Scaling laws fitted to a ladder of runs (Hoffmann et al. 2022, "Training compute-optimal large language models").

    L(N, D) = E + A / N^alpha + B / D^beta        (approach 3: parameters N and tokens D)
    L(C)    = E + A / C^alpha                     (the best loss for compute C)

fitted by minimising over (log E, log A, alpha, ...) the Huber loss (delta = 1e-3) of log L, so that no run is trusted
too much; log L(N, D) is the log-sum-exp of its terms' logs. Trust-region steps start from a grid of points, and the
best end is taken. With C = 6 N D operations, the optimum of the law for a budget is

    N* = G (C / 6)^(beta / (alpha + beta)),  D* = C / (6 N*),  G = (alpha A / (beta B))^(1 / (alpha + beta)).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from protea.errors import DataError

DELTA = 1e-3  # of Huber's loss, in log L


@dataclass(frozen=True)
class ScalingLaw:
    """L = E + sum_i A_i / x_i^a_i.

    Args:
        irreducible: E, the loss that is left at any size.
        factors: A_i.
        exponents: a_i.
        error: root mean square of log L's residuals.

    >>> law = ScalingLaw(1.0, (8.0,), (0.5,), 0.0)
    >>> law(16.0)
    3.0
    """

    irreducible: float
    factors: tuple[float, ...]
    exponents: tuple[float, ...]
    error: float

    def __call__(self, *x: float) -> float:
        """The loss at x_1, x_2, ..."""
        return self.irreducible + sum(a / v**e for a, e, v in zip(self.factors, self.exponents, x, strict=True))

    def best_sizes(self, compute: float) -> tuple[float, float]:
        """(N*, D*) for C = 6 N D operations; of a law of two terms."""
        (a, b), (alpha, beta) = self.factors, self.exponents
        g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        n = g * (compute / 6) ** (beta / (alpha + beta))
        return n, compute / (6 * n)


def fit_scaling_law(x: Sequence[Sequence[float]] | np.ndarray, loss: Sequence[float] | np.ndarray) -> ScalingLaw:
    """Fit the law to runs.

    Args:
        x: (runs, k) positive: (N, D), or (C,) alone.
        loss: (runs,) positive, in any unit.

    Raises:
        DataError: fewer runs than the law has constants, numbers that are not positive and finite, or sizes that do
            not differ.

    >>> c = 10.0 ** np.arange(1, 8)
    >>> law = fit_scaling_law(c[:, None], 1.5 + 4 / c**0.3)
    >>> round(law.irreducible, 2), round(law.exponents[0], 2)
    (1.5, 0.3)
    """
    sizes, y = np.asarray(x, float), np.asarray(loss, float)
    if sizes.ndim != 2 or sizes.shape[0] != len(y):
        raise DataError(f"Sizes of shape {sizes.shape} do not go with {len(y)} losses.", "Give (runs, k) sizes.")
    n, k = sizes.shape
    if n < 2 * k + 1:
        raise DataError(f"{n} runs cannot fix {2 * k + 1} constants.", f"Give at least {2 * k + 1} runs.")
    if not (np.isfinite(sizes).all() and np.isfinite(y).all() and (sizes > 0).all() and (y > 0).all()):
        raise DataError("Sizes and losses must be positive and finite.", "Leave diverged runs out.")
    if (np.ptp(np.log(sizes), 0) == 0).any():
        raise DataError("All runs have the same size.", "Vary every size that the law is to hold for.")
    # Around the middle of the ladder exponents and factors hardly pull on each other.
    middle = np.log(sizes).mean(0)
    log_x, log_y = np.log(sizes) - middle, np.log(y)

    def terms(theta: np.ndarray) -> np.ndarray:
        return np.concatenate((np.full((n, 1), theta[0]), theta[1 : 1 + k] - theta[1 + k :] * log_x), 1)

    def residual(theta: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(terms(theta), 1) - log_y

    def slope(theta: np.ndarray) -> np.ndarray:
        t = terms(theta)
        share = np.exp(t - np.logaddexp.reduce(t, 1, keepdims=True))
        return np.concatenate((share, -share[:, 1:] * log_x), 1)

    low = math.log(y.min())
    grid = itertools.product((low - 0.05, low - 0.5, low - 2.0), (low - 2.0, low), (0.1, 0.35, 0.8))
    bounds = ([-np.inf] * (1 + k) + [0.0] * k, [low + 1e-6] + [np.inf] * k + [5.0] * k)
    best = None
    for log_e, log_a, exponent in grid:
        start = np.concatenate(([log_e], np.full(k, log_a), np.full(k, exponent)))
        found = least_squares(
            residual, start, slope, bounds, loss="huber", f_scale=DELTA, x_scale="jac",  # type: ignore[arg-type]
            max_nfev=300, ftol=1e-14, xtol=1e-14, gtol=1e-14,
        )  # fmt: skip
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    exponents = best.x[1 + k :]
    factors = np.exp(best.x[1 : 1 + k] + exponents * middle)
    law = ScalingLaw(float(np.exp(best.x[0])), tuple(map(float, factors)), tuple(map(float, exponents)), 0.0)
    missed = np.log([law(*row) for row in sizes]) - log_y
    return replace(law, error=float(np.sqrt(np.square(missed).mean())))
