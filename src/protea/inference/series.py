r"""Series with gaps: which values are missing, what stood there, what comes next, and how well all that is told.

    gaps       x_u = E[x_u | x_o, L]                   a series that is known to have L steps
    forecast   x_{L+h} = E[x_{L+h} | x_1 .. x_L]       of a series that is known to go on to L + h

In canonical units NaN before the last known value is missing, and NaN from there on is the end. A gap is asked for
given the length; a forecast leaves the model of lengths out (that the series goes on is given, and says nothing about
its class), so that it may reach beyond the longest series that was learnt from. Of hidden Markov models both are exact:

    E[x_{L+h} | x_1 .. x_L] = sum_k (alpha_L A^h)_k mu_k         (Rabiner 1989, section III)

Errors are measured on held-out series, 20 % of whose cells, or of whose steps, but the last, are hidden; beside the run
stand the channel's mean, the last known value and a straight line in time between known values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from protea.core import Model
from protea.errors import ConfigError, DataError, NotSupported
from protea.evaluation.figure import Figure, mean_figure
from protea.inference.missing import impute
from protea.models.classical.mixture import Mixture
from protea.models.markov.family import MarkovFamily
from protea.models.markov.hmm import HiddenMarkov
from protea.rng import Streams, fold
from protea.space import Rows
from protea.spaces import Series

RATE = 0.2
Way = Callable[[Tensor, Tensor], Tensor]  # series (B, T, D) and which entries are known, to filled series


def known(space: Series, x: Tensor) -> Tensor:
    """Which entries of x (B, T, D) are known, boolean: the values, and that a series has ended where it has.

    >>> space, x = Series(("x",), 4), torch.tensor([[[1.0], [torch.nan], [3.0], [torch.nan]]])
    >>> known(space, x)[0, :, 0].tolist()
    [True, False, True, True]
    """
    ended = torch.arange(x.shape[1], device=x.device) >= space.lengths(x)[:, None]
    return ~x.isnan() | ended[..., None]


def endless(model: Model, steps: int) -> Model:
    """The same chains over exactly `steps` steps: parameters are shared, lengths are no longer part of the model.

    Raises:
        NotSupported: not a hidden Markov model or a mixture of them, or its chain decides when it ends.
    """
    space = model.space if hasattr(model, "space") else None
    if isinstance(model, HiddenMarkov) and not model.chain.ends:
        view: Model = HiddenMarkov(model.emission, model.chain, steps, precision=model.precision)
    elif isinstance(model, Mixture) and isinstance(model.family, MarkovFamily):
        chains = [endless(chain, steps) for chain in model.family.chains]  # type: ignore[arg-type]
        mixture = Mixture(MarkovFamily(chains), model.k, model.classes)  # type: ignore[arg-type]
        with torch.no_grad():
            mixture.log_weights.copy_(model.log_weights)
            mixture.class_prior.copy_(model.class_prior)
        view = mixture
    else:
        raise NotSupported(
            f"{type(getattr(model, 'inner', model)).__name__} cannot be asked what comes after the last step.",
            "Use hmm, with a topology that has no end.",
        )
    if isinstance(space, Series):
        view.space = Series(space.names, steps, space.classes)
    return view


def forecast(model: Model, x: Tensor, ahead: int, draws: int | None = None, seed: int = 0) -> Tensor:
    """Series x (B, T, D) with their gaps filled and gone on with for `ahead` steps, (B, max L + ahead, D).

    Args:
        model: a hidden Markov model of series, or a mixture of them.
        x: canonical units.
        ahead: steps after the last known value of each series.
        draws: None for conditional means; m for m draws of what is missing and what comes, (m, B, max L + ahead, D).
        seed: of the draws.

    Raises:
        NotSupported: see `endless`. ConfigError: no step ahead is asked for.

    >>> from protea.distributions.gaussian import Gaussian
    >>> from protea.models.markov.chain import Chain
    >>> from protea.models.markov.topology import ergodic
    >>> model = HiddenMarkov(Gaussian(1, (1,)), Chain(ergodic(1)), 3); model.space = Series(("x",), 3)
    >>> forecast(model, torch.tensor([[[5.0], [torch.nan], [6.0]]]).double(), 2)[0, :, 0].tolist()
    [5.0, 0.0, 6.0, 0.0, 0.0]
    """
    if ahead < 1:
        raise ConfigError(f"{ahead} steps ahead are no forecast.", "Ask for at least 1.")
    space = model.space
    if not isinstance(space, Series):
        raise NotSupported(f"A model of {space.kind} data has no steps to come.", "Use a model of series.")
    length = space.lengths(x)
    steps = int(length.max()) + ahead if len(x) else ahead
    longer = x.new_full((len(x), steps, x.shape[2]), torch.nan)
    longer[:, : min(steps, x.shape[1])] = x[:, :steps]
    out = impute(endless(model, steps), longer, ~longer.isnan(), draws, seed)
    over = torch.arange(steps, device=x.device) >= (length + ahead)[:, None]
    return out.masked_fill(over[..., None], torch.nan)


def hidden(space: Series, x: Tensor, rate: float = RATE, seed: int = 0, *, whole: bool = False) -> Tensor:
    """Which entries of x (B, T, D) stay known when a share `rate` of the cells, or of whole steps, is hidden.

    The last step of a series stays: it says how long the series is.
    """
    u = Streams(fold(seed, "hide series"), len(x)).uniform(*x.shape[1:], dtype=torch.float64)
    last = torch.arange(x.shape[1], device=x.device) >= (space.lengths(x) - 1)[:, None]
    return known(space, x) & (((u[..., :1] if whole else u) >= rate) | last[..., None])


def ways(train: Tensor) -> dict[str, Way]:
    """What people do without a model: the channel's mean, the last known value, a line between known values."""
    mean = train.double().flatten(0, 1).nanmean(0).nan_to_num(0.0)

    def by_mean(x: Tensor, seen: Tensor) -> Tensor:
        return torch.where(seen, x, mean)

    def by_last(x: Tensor, seen: Tensor) -> Tensor:
        before, _ = _neighbours(seen & ~x.isnan())
        value = x.nan_to_num(0.0).gather(1, before.clamp(min=0))
        return torch.where(seen, x, torch.where(before >= 0, value, mean))

    def by_line(x: Tensor, seen: Tensor) -> Tensor:
        steps = x.shape[1]
        before, after = _neighbours(seen & ~x.isnan())
        left = torch.where(before < 0, after.clamp(max=steps - 1), before)
        right = torch.where(after >= steps, before.clamp(min=0), after)
        value = x.nan_to_num(0.0)
        a, b = value.gather(1, left), value.gather(1, right)
        t = torch.arange(steps, device=x.device)[:, None]
        share = ((t - left) / (right - left).clamp(min=1)).clamp(0, 1)
        none = (before < 0) & (after >= steps)
        return torch.where(seen, x, torch.where(none, mean, a + share * (b - a)))

    return {"channel mean": by_mean, "last value": by_last, "straight line": by_line}


def _neighbours(there: Tensor) -> tuple[Tensor, Tensor]:
    """The known steps before (-1 if none) and after (T if none) each step, (B, T, D) each."""
    steps = there.shape[1]
    t = torch.arange(steps, device=there.device)[None, :, None].expand_as(there)
    before = torch.where(there, t, -1).cummax(1).values
    after = torch.where(there, t, steps).flip(1).cummin(1).values.flip(1)
    return before, after


def series_errors(model: Model, rows: Rows, train: Tensor, *, rate: float = RATE, seed: int = 0) -> dict[str, Any]:
    """Root mean square errors, in deviations of the channel, of hidden "cells" and "steps" of held-out series.

    Returns:
        For this run and each of `ways`: {"cells": Figure, "steps": Figure}.

    Raises:
        DataError: nothing to hide. NotSupported: the model has no exact conditional.
    """
    space = model.space
    assert isinstance(space, Series)
    x = rows.x.double()
    flat = train.double().flatten(0, 1)
    scale = torch.stack([v[~v.isnan()].std(correction=0) for v in flat.T])
    scale = torch.where(scale > 0, scale, 1.0)
    run: Mapping[str, Way] = {"this run": lambda x, seen: impute(model, x, seen, seed=seed)}
    found: dict[str, dict[str, Figure]] = {}
    for what, whole in (("cells", False), ("steps", True)):
        seen = hidden(space, x, rate, seed, whole=whole)
        asked = ~seen & ~x.isnan()
        if not bool(asked.any()):
            raise DataError(f"No value of {len(x)} series could be hidden at rate {rate}.", "Give more series.")
        facts = {"hidden": f"{rate:.0%} of {what}, completely at random", "rows": len(x)}
        for name, fill in {**run, **ways(train)}.items():
            error = (fill(torch.where(asked, torch.nan, x), seen) - x) / scale
            square = mean_figure(error[asked].square(), facts, seed=seed)
            root = Figure(square.value**0.5, max(square.low, 0.0) ** 0.5, square.high**0.5, square.protocol)
            found.setdefault(name, {})[what] = root
    return found
