"""How each kind of model learns unless told otherwise. Families register here; models never import training."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from protea.core import Countable, Learner, Model, Normalised, Phase
from protea.errors import NotSupported
from protea.models.lifted import Lifted
from protea.objectives.likelihood import nll
from protea.training.budget import Budget
from protea.training.em import EM
from protea.training.gradient import Gradient
from protea.training.lifting import Lifting


@singledispatch
def default_learner(model: Model, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    """The learner of a model: EM for `Countable`, maximum likelihood by gradients for `Normalised`.

    Args:
        model: dispatched on its type; more specific types registered below win.
        budget: what the fit may spend.
        seed: of the fit; fixes noise that must not change between epochs.
        options: passed on to `Gradient` (optimizer, schedule, prepare, precision, microbatch ...).

    Raises:
        NotSupported: nothing is registered for the model's type.
    """
    raise NotSupported(
        f"No way of learning is registered for {type(model).__name__}.",
        "Pass a learner: fit(model, ..., learner=Gradient(model, phases)).",
    )


@default_learner.register
def _lifted(model: Lifted, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    inner = default_learner(model.inner, budget=budget, seed=seed, **options)
    return Lifting(model, inner, seed=seed if isinstance(inner, EM) else None)


@default_learner.register
def _countable(model: Countable, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    return EM(model)


@default_learner.register
def _normalised(model: Normalised, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    if isinstance(model, Countable):  # whichever base comes first: EM needs no step size
        return EM(model)
    return Gradient(model, [Phase("nll", list(model.parameters()), nll(model))], **options)
