r"""How many members, and which covariance: by an information criterion.

BIC = free log N - 2 log p(x)        lowest for the model most probable given the data, asymptotically (Schwarz 1978)
ICL = BIC + 2 sum_b H(r_b)           asks besides for clusters that do not overlap (Biernacki, Celeux & Govaert 2000)
AIC = 2 free - 2 log p(x)            for prediction; it takes more members (Akaike 1974)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from protea.core import Model
from protea.errors import ConfigError, nearest
from protea.models.classical.mixture import Mixture
from protea.models.lifted import lift
from protea.rng import Streams, permutation
from protea.space import Rows, Space
from protea.transforms.relaxations import relaxation_for

SEARCH_ROWS, SEARCH_STEPS = 10_000, 10  # of the search that `suggest` makes
OPERATIONS_PER_SECOND = 8e9  # of EM in float64 on one core, by which the search is kept within its share
CRITERIA = ("bic", "icl", "aic")


class Choice(NamedTuple):
    """The mixture of lowest criterion, and the criterion of every k that was tried."""

    model: Mixture
    scores: dict[int, float]


def climb(model: Mixture, rows: Rows, steps: int, tolerance: float = 0.0) -> float:
    """Up to `steps` EM steps, ending where one gains less than `tolerance` nats a row; the log posterior reached."""
    before = -math.inf
    for _ in range(steps):
        stats = model.expect(rows.x, rows.y)
        now = float(stats["log_prob"] + model.log_prior())
        if now - before <= tolerance * len(rows):
            break
        before = now
        model.maximise(stats)
    return before


def choose(
    make: Callable[[int], Mixture],
    rows: Rows,
    ks: Iterable[int],
    criterion: str = "bic",
    *,
    steps: int = 200,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Choice:
    """Fit a mixture for every k and keep the one of lowest criterion.

    Args:
        make: k to an untrained mixture, with as many restarts as it should make.
        rows: what it is fitted on; labels enter where the mixture has classes.
        ks: numbers of members (of each class) to try.
        criterion: "bic", "icl" or "aic".
        steps: EM steps at most.
        tolerance: nats a row that a step must gain.
        seed: of the starts.

    Raises:
        ConfigError: another criterion, or no k.

    >>> import torch
    >>> from protea.distributions.gaussian import Gaussian
    >>> x = Streams(0, 300).normal(1, dtype=torch.float64) + 8 * (torch.arange(300) % 2)[:, None]
    >>> choice = choose(lambda k: Mixture(Gaussian(k, (1,)), k), Rows(x, None, torch.arange(300)), (1, 2, 3))
    >>> choice.model.k
    2
    """
    if criterion not in CRITERIA:
        raise ConfigError(f"There is no criterion {criterion!r}.", nearest(criterion, CRITERIA))
    best: Mixture | None = None
    scores: dict[int, float] = {}
    for k in ks:
        model = make(k)
        model.initialise(rows, seed)
        climb(model, rows, steps, tolerance)
        scores[k] = getattr(model, criterion)(rows.x, rows.y if model.classes else None)
        if scores[k] <= min(scores.values()):
            best = model
    if best is None:
        raise ConfigError("No number of members was given to choose from.", "Try ks=range(1, 10).")
    return Choice(best, scores)


def search(space: Space, rows: Rows, seconds: float, base: Any, inner: Callable[[tuple, Any, int], Mixture]) -> Any:
    """The k and covariance of lowest BIC after a few EM steps on a subsample, k = 1, 2, 4 ... while BIC falls.

    The search may cost about a tenth of the budget, shared by the kinds of covariance. It counts operations rather
    than time, so that the same data and budget give the same mixture on every machine. A tied covariance is tried up
    to 1,024 dimensions and full ones up to 100; beyond that diagonal ones are all that is affordable.

    Args:
        space, rows, seconds: of `Entry.suggest`.
        base: a config with fields k and covariance, to vary.
        inner: (event, config, classes) to an untrained mixture of the relaxed space.
    """
    classes = len(space.classes)
    relaxation = relaxation_for(space)
    rows = rows[permutation(len(rows), 0, "gmm suggest")[:SEARCH_ROWS]]
    relaxation.fit(rows.x)
    v, _ = relaxation.lift(rows.x, Streams(0, rows.ids))
    lifted = Rows(v, rows.y if classes else None, rows.ids)
    d = math.prod(relaxation.event)
    kinds = ["diag"] + ["tied"] * (d <= 1024) + ["full"] * (d <= 100)
    best, lowest = replace(base, k=1, covariance="diag"), math.inf
    for kind in kinds:
        left = 0.1 * seconds * OPERATIONS_PER_SECOND / len(kinds)
        k, previous = 1, math.inf
        while k <= max(1, min(256, len(v) // (2 * max(classes, 1)))):
            left -= SEARCH_STEPS * len(v) * k * d * (8 if kind == "diag" else 4 * d)
            if left < 0 and k > 1:
                break
            config = replace(base, k=k, covariance=kind)
            model = inner(relaxation.event, config, classes)
            model.initialise(lifted)
            climb(model, lifted, SEARCH_STEPS)
            bic = model.bic(lifted.x, lifted.y)
            if bic < lowest:
                best, lowest = config, bic
            if bic >= previous:
                break
            k, previous = 2 * k, bic
    return best


def build_lifted(space: Space, config: Any, inner: Callable[[tuple, Any, int], Mixture]) -> Model:
    """A mixture of the relaxed space, seen from its canonical units."""
    relaxation = relaxation_for(space)
    return lift(space, relaxation, inner(relaxation.event, config, len(space.classes)))
