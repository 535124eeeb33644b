r"""Held-out likelihood in the user's units, marked for what it is.

`Normalised` models give "exact" figures, `Bounded` ones a "bound" with k draws: the model is at least as
good as the figure says. Samplers without a density give none. A bound is never ranked against exact figures.

With labels, all families are judged by the marginal p(x), so that conditional and unconditional models compare.
An exact conditional density is summed over labels, log sum_y pi_y p(x | y). A conditional bound uses each row's own
label, log p(x) >= log pi_y + bound(x | y), which is one term of that sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from protea.core import Bounded, Model, Normalised
from protea.evaluation.figure import Figure, mean_figure
from protea.models.lifted import Lifted
from protea.rng import Streams, fold
from protea.space import Rows

ROWS = 2000
BATCH = 256


@dataclass(frozen=True)
class Likelihood:
    """A held-out likelihood: the figure, its unit, and whether it is exact or a bound."""

    figure: Figure
    unit: str
    exactness: Literal["exact", "bound"]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as the report's contract names them."""
        return {**self.figure.to_json(), "unit": self.unit, "exactness": self.exactness}


def class_prior(model: Model) -> Tensor | None:
    """The label frequencies a conditional model keeps, or None for an unconditional one."""
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] == "class_prior" and buffer.numel() and model.space.classes:
            return buffer.detach().cpu().double()
    return None


@torch.no_grad()
def log_likelihood(model: Model, rows: Rows, *, k: int = 8, seed: int = 0) -> tuple[Tensor, str] | None:
    """Nats of each row (N,) and "exact" or "bound"; None for a model without a density."""
    inner = model.inner if isinstance(model, Lifted) else model
    prior = class_prior(model)
    by_label = not isinstance(inner, Normalised) and prior is not None and rows.y is not None
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
        else:
            return None
        log_p = log_p.detach().cpu().double()
        if y is not None and prior is not None:
            log_p = log_p + prior[y].log()
        nats.append(log_p)
    return torch.cat(nats), "exact" if isinstance(model, Normalised) else "bound"


def likelihood(
    model: Model, rows: Rows, protocol: Mapping[str, Any] | None = None, *, k: int = 8, seed: int = 0
) -> Likelihood | None:
    """Mean held-out likelihood of at most 2,000 rows in the units of the space, with interval over rows.

    Args:
        k: draws of a bound; more is tighter and slower.
    """
    rows = rows[:ROWS]
    found = log_likelihood(model, rows, k=k, seed=seed)
    if found is None or len(rows) == 0:
        return None
    values, unit = model.space.likelihood(found[0])
    facts: dict[str, Any] = {**(protocol or {}), "n": len(rows), "conditioning": "marginal over labels"}
    if found[1] == "bound":
        facts["k"] = k
    return Likelihood(mean_figure(values, facts, seed=seed), unit, "exact" if found[1] == "exact" else "bound")
