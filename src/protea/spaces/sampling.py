r"""Sampling under constraints: draw, keep the rows that satisfy them, draw the others again.

This is exact sampling from p(x | constraints) = p(x) 1[x satisfies] / Z, with Z the acceptance rate.
Sample i redraws from streams of its own, so that it depends on the seed and on i alone, as without
constraints.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from protea.core import Model
from protea.errors import ConstraintError
from protea.rng import Streams
from protea.spaces.table import Table

MIN_RATE = 0.01  # below it, the model has not learnt the constraints, and rows would be few and odd
MIN_DRAWS = 2000  # draws before the rate is judged


class Constrained(NamedTuple):
    """Rows (n, *event) that satisfy the constraints, and the share of draws that did."""

    x: Tensor
    acceptance: float


def constrained_sample(
    model: Model, n: int, cond: Tensor | None = None, *, rng: int | Streams = 0, min_rate: float = MIN_RATE
) -> Constrained:
    """Draw n rows that satisfy the constraints of `model.space`: rows asked = rows returned.

    Args:
        model: any model; a space without constraints is sampled once, with acceptance 1.
        n: how many.
        cond: None, or (n,) labels.
        rng: a seed, or `Streams` that name the samples.
        min_rate: the smallest acceptance rate that is tolerated.

    Raises:
        ConstraintError: the rate is below `min_rate` after 2,000 draws or more; it says the rate.
    """
    streams = rng if isinstance(rng, Streams) else Streams(rng, n)
    x = model.sample(n, cond, rng=streams)
    if not isinstance(model.space, Table) or not model.space.constraints or n == 0:
        return Constrained(x, 1.0)
    space = model.space
    waiting = (~space.satisfied(x)).nonzero()[:, 0]
    drawn, accepted, attempt = n, n - len(waiting), 0
    while len(waiting):
        rate = accepted / drawn
        # a row that waits although the rate is fine is out of luck at most log(1e-12) / log(1 - min_rate) times
        if (drawn >= MIN_DRAWS and rate < min_rate) or attempt * min_rate > 28:
            raise ConstraintError(
                f"Only {accepted} of {drawn} draws ({100 * rate:.2g} %) satisfy the constraints; {n} rows were asked.",
                "Train longer, choose a model that learns the constraint, or loosen it: "
                + "; ".join(str(c.to_json()) for c in space.constraints if c.kind in ("range", "inequality"))[:300],
            )
        attempt += 1
        again = streams.child("redraw", attempt).take(waiting)
        fresh = model.sample(len(waiting), None if cond is None else cond[waiting], rng=again)
        ok = space.satisfied(fresh)
        x[waiting[ok]] = fresh[ok]
        drawn, accepted = drawn + len(waiting), accepted + int(ok.sum())
        waiting = waiting[~ok]
    return Constrained(x, accepted / drawn)


__all__ = ["Constrained", "constrained_sample"]
