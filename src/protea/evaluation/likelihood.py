r"""Held-out likelihood in the user's units, marked for what it is.

`Normalised` models give "exact" figures, `Bounded` ones a "bound" with k draws: the model is at least as
good as the figure says. `Estimated` ones give an "estimate", log p*(x) - log Z with an estimated log Z whose standard
error widens the interval; where a small model's log Z is a sum over all states, it is exact. Samplers without a
density give none. Bounds and estimates are never ranked against exact figures.

With labels, all families are judged by the marginal p(x), so that conditional and unconditional models compare.
An exact conditional density is summed over labels, log sum_y pi_y p(x | y). A conditional bound uses each row's own
label, log p(x) >= log pi_y + bound(x | y), which is one term of that sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from protea.core import Bounded, Model, Normalised
from protea.evaluation.figure import Figure, mean_figure
from protea.models.estimated import Estimated, Partition
from protea.models.lifted import Lifted
from protea.rng import Streams, fold
from protea.space import Rows, Space
from protea.spaces import Tokens

Exactness = Literal["exact", "bound", "estimate"]

ROWS = 2000
ENTRIES = 1_000_000
BATCH = 256
_CONSTANTS: WeakKeyDictionary[Model, tuple[tuple, Partition]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Likelihood:
    """A held-out likelihood: the figure, its unit, whether it is exact, a bound or an estimate; for text the
    perplexity exp(-log p / T) of a token, which compares models of one tokenizer only; for series total nats per step.
    """

    figure: Figure
    unit: str
    exactness: Exactness
    perplexity: Figure | None = None
    per_step: Figure | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as the report's contract names them."""
        told = {**self.figure.to_json(), "unit": self.unit, "exactness": self.exactness}
        beside = {"perplexity": self.perplexity, "per_step": self.per_step}
        return told | {name: figure.to_json() for name, figure in beside.items() if figure is not None}


def class_prior(model: Model) -> Tensor | None:
    """The label frequencies a conditional model keeps, or None for an unconditional one."""
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] == "class_prior" and buffer.numel() and model.space.classes:
            return buffer.detach().cpu().double()
    return None


@torch.no_grad()
def log_likelihood(model: Model, rows: Rows, *, k: int = 8, seed: int = 0) -> tuple[Tensor, Exactness] | None:
    """Nats of each row (N,) and "exact", "bound" or "estimate"; None for a model without a density."""
    inner = model.inner if isinstance(model, Lifted) else model
    prior = class_prior(model)
    by_label = not isinstance(inner, (Normalised, Estimated)) and prior is not None and rows.y is not None
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    nats = []
    for start in range(0, len(rows), BATCH):
        x = rows.x[start : start + BATCH].to(device)
        y = rows.y[start : start + BATCH] if by_label and rows.y is not None else None
        if isinstance(model, Normalised):
            log_p = model.log_prob(x)
        elif isinstance(model, Bounded):
            rng = Streams(fold(seed, "likelihood"), rows.ids[start : start + BATCH], device)
            log_p = model.log_prob_bound(x, None if y is None else y.to(device), rng=rng, k=k)
        elif isinstance(model, Estimated):
            rng = Streams(fold(seed, "likelihood"), rows.ids[start : start + BATCH], device)
            log_p = model.unnormalised(x, rng=rng, k=k).double() - constant(model, seed).value
        else:
            return None
        log_p = log_p.detach().cpu().double()
        if y is not None and prior is not None:
            log_p = log_p + prior[y].log()
        nats.append(log_p)
    return torch.cat(nats), exactness_of(model, seed)


def exactness_of(model: Model, seed: int = 0) -> Exactness:
    """What the likelihood of a model is, where it has one."""
    if isinstance(model, Estimated):
        return "exact" if model.tight and constant(model, seed).exact else "estimate"
    return "exact" if isinstance(model, Normalised) else "bound"


def constant(model: Estimated, seed: int = 0) -> Partition:
    """log Z of the model's present weights; estimated once, then remembered."""
    key = (seed, *((t.data_ptr(), t._version) for t in (*model.parameters(), *model.buffers())))
    held = _CONSTANTS.get(model)
    if held is None or held[0] != key:
        held = _CONSTANTS[model] = (key, model.log_partition(fold(seed, "partition")))
    return held[1]


def likelihood(
    model: Model, rows: Rows, protocol: Mapping[str, Any] | None = None, *, k: int = 8, seed: int = 0
) -> Likelihood | None:
    """Mean held-out likelihood in the units of the space, with interval over rows: at most 2,000 of them, and a million
    entries in all (but 256 rows), the same for every model of the data.

    Args:
        k: draws of a bound; more is tighter and slower.
    """
    rows = rows[: max(256, min(ROWS, ENTRIES // max(1, math.prod(rows.x.shape[1:]))))]
    found = log_likelihood(model, rows, k=k, seed=seed)
    if found is None or len(rows) == 0:
        return None
    values, weights, unit = model.space.measure(found[0], rows.x)
    even = bool((weights == 1).all())
    facts: dict[str, Any] = {**(protocol or {}), "n": len(rows), "conditioning": "marginal over labels"}
    if found[1] != "exact":
        facts["k"] = k
    log_z = constant(model, seed) if isinstance(model, Estimated) and found[1] == "estimate" else None
    if log_z is not None:
        facts["log_z"] = _told(log_z)
    if not even:
        facts["size"] = int(weights.sum())
    figure = mean_figure(values, facts, seed=seed, weights=None if even else weights)
    if log_z is not None:
        shifted = model.space.measure(found[0] + 1.96 * log_z.error, rows.x)
        figure = _widened(figure, abs(shifted.mean - figure.value))
    steps = model.space.per_step(found[0], rows.x)
    each = None
    if steps is not None:
        told = {**facts, "unit": steps.unit, "size": int(steps.weights.round().sum())}
        each = mean_figure(steps.values, told, seed=seed, weights=steps.weights)
    return Likelihood(figure, unit, found[1], _perplexity(found[0], model.space, facts, seed), each)


def _told(z: Partition) -> dict[str, Any]:
    """What is known of an estimated constant, as plain JSON values."""
    facts = {name: getattr(z, name) for name in ("value", "error", "lower", "upper", "effective")}
    return {name: v if math.isfinite(v) else None for name, v in facts.items()} | {
        "steps": z.steps, "converged": z.converged,
    }  # fmt: skip


def _perplexity(nats: Tensor, space: Space, facts: Mapping[str, Any], seed: int) -> Figure | None:
    if not isinstance(space, Tokens):
        return None
    found = mean_figure(
        -nats / space.length, {**facts, "vocabulary": space.vocabulary, "tokens": space.unit}, seed=seed
    )
    return replace(found, **{end: math.exp(min(getattr(found, end), 700.0)) for end in ("value", "low", "high")})


def _widened(figure: Figure, by: float) -> Figure:
    """The interval with an independent error of half-width `by` added."""
    low = figure.value - math.hypot(figure.value - figure.low, by)
    return replace(figure, low=low, high=figure.value + math.hypot(figure.high - figure.value, by))
