r"""Learning from rows without labels: they enter by p(x) = sum_y p(y) p(x | y).

Models that learn by EM (Nigam, McCallum, Thrun & Mitchell 2000, "Text classification from labeled and unlabeled
documents using EM"): start from the labelled rows alone, then repeat

    E   responsibilities p(y | x_j) of the unlabelled rows; labelled rows keep their label
    M   theta = argmax of the statistics S_labelled + lambda S_unlabelled

which never lowers  log p(theta) + sum_labelled log p(x_i | y_i) + lambda sum_unlabelled log p(x_j).

Models that learn by gradients minimise the same objective directly (`objectives/semi_supervised.py`).

Nothing makes the clusters of p(x) agree with the classes: where the model is wrong, unlabelled rows can hurt, and more
so the more labels there are. The gain is therefore reported with its interval, and lambda is there to turn down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.core import Countable, Learner, Model, Normalised, Phase, Stats
from protea.errors import ConfigError, NotSupported
from protea.evaluation.likelihood import class_prior
from protea.models.lifted import Lifted
from protea.objectives.semi_supervised import semi_supervised_nll
from protea.space import Rows
from protea.spaces import Table
from protea.training import Budget, fit
from protea.training.gradient import Gradient
from protea.training.lifting import Lifting
from protea.training.optim import adamw

ROWS = 4096  # of one E-step's batch


def learn_semi(
    model: Model, labelled: Rows, unlabelled: Rows, *, weight: float = 1.0, budget: Budget | None = None,
    tolerance: float = 1e-6, seed: int = 0,
) -> Model:  # fmt: skip
    """Teach an untrained model from rows with labels and rows without; returns it.

    Args:
        model: built, not initialised; class-conditional, or of a table that names a target.
        labelled: rows whose labels are known.
        unlabelled: rows whose labels are -1, or NaN in the target column (see `Labelling.hide`).
        weight: lambda, of an unlabelled row.
        budget: epochs of EM (default 100), or what `fit` may spend.
        tolerance: EM ends when the objective rises by less than this fraction.
        seed: of initialisation and noise.

    Raises:
        NotSupported: the model has no marginal over labels. ConfigError: a negative weight.
    """
    if not weight >= 0:
        raise ConfigError(
            f"The weight {weight} of unlabelled rows is negative.", "Give 0 or more; 1 counts them fully."
        )
    inner = require_marginal(model)
    if isinstance(inner, Countable):
        model.initialise(labelled, seed)
        parts = [model.raise_rows(rows, seed) if isinstance(model, Lifted) else rows for rows in (labelled, unlabelled)]
        epochs = (budget.epochs if budget is not None else None) or 100
        _em(inner, *parts, weight=weight, epochs=epochs, tolerance=tolerance)
        return model.eval()
    together = join(labelled, unlabelled)
    model.initialise(together, seed)
    gradient: Learner = Gradient(
        inner, [Phase("semi-supervised", list(inner.parameters()), semi_supervised_nll(inner, weight))],
        optimizer=adamw(2e-3),
    )  # fmt: skip
    learner = Lifting(model, gradient) if isinstance(model, Lifted) else gradient
    fit(model, together, budget=budget or Budget(seconds=20.0), learner=learner, judge=None, progress=None, seed=seed)
    return model.eval()


def require_marginal(model: Model) -> Normalised:
    """The model (within its relaxation) whose p(x) sums over labels; NotSupported where it does not exactly."""
    inner = model.inner if isinstance(model, Lifted) else model
    in_column = isinstance(model.space, Table)
    if (
        not isinstance(inner, Normalised)
        or (class_prior(model) is None and not in_column)
        or (in_column and isinstance(model, Lifted))
    ):
        raise NotSupported(
            f"{type(inner).__name__} of these data has no exact marginal over labels.",
            "Use a model of classes (gmm, flow, marginals on labelled data) or, of tables, naive-bayes or mixture.",
        )
    return inner


def join(a: Rows, b: Rows) -> Rows:
    """Both sets of rows; labels of a set without any are -1."""
    if a.y is None and b.y is None:
        y = None
    else:
        y = torch.cat([r.y if r.y is not None else torch.full((len(r),), -1) for r in (a, b)])
    return Rows(torch.cat((a.x, b.x)), y, torch.cat((a.ids, b.ids)))


@torch.no_grad()
def _em(model: Countable, labelled: Rows, unlabelled: Rows, *, weight: float, epochs: int, tolerance: float) -> None:
    """EM on the labels alone until it settles, then with the unlabelled rows."""
    for hidden in (None, unlabelled):
        previous, before = -torch.inf, {}
        for _ in range(epochs):
            stats = _statistics(model, labelled, 1.0)
            if hidden is not None and weight > 0 and len(hidden):
                stats = {name: value + stats[name] for name, value in _statistics(model, hidden, weight).items()}
            objective = float(stats["log_prob"]) + float(model.log_prior())
            if objective < previous:  # an approximate step went down: take it back
                model.load_state_dict(before)
                break
            if objective - previous <= tolerance * abs(objective):
                break
            before = {name: value.clone() for name, value in model.state_dict().items()}
            model.maximise(stats)
            previous = objective


def _statistics(model: Countable, rows: Rows, weight: float) -> Stats:
    total: dict[str, Tensor] = {}
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        for name, value in model.expect(part.x, part.y).items():
            total[name] = total[name] + weight * value if name in total else weight * value
    return total
