r"""Learning from rows without labels: they enter by p(x) = sum_y p(y) p(x | y).

Models that learn by EM (Nigam, McCallum, Thrun & Mitchell 2000, "Text classification from labeled and unlabeled
documents using EM"): start from the labelled rows alone, then repeat

    E   responsibilities p(y | x_j) of the unlabelled rows; labelled rows keep their label
    M   theta = argmax of the statistics S_labelled + lambda S_unlabelled

which never lowers  log p(theta) + sum_labelled log p(x_i | y_i) + lambda sum_unlabelled log p(x_j).

Models that learn by gradients minimise the same objective directly (`objectives/semi_supervised.py`): class-conditional
ones of vectors and images, and joint ones of a table, whose label is a column of the row, which is summed over. Where
the likelihood is a bound (categories as dequantised codes), so is the objective.

Nothing makes the clusters of p(x) agree with the classes: where the model is wrong, unlabelled rows can hurt, and more
so the more labels there are. The gain is therefore reported with its interval, and lambda is there to turn down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.core import Batch, Bounded, Countable, Learner, Model, Normalised, Phase, Stats
from protea.errors import ConfigError, NotSupported
from protea.evaluation.likelihood import class_prior
from protea.inference.labelling import Labelling, labelling
from protea.models.lifted import Lifted
from protea.objectives.semi_supervised import LogJoint, semi_supervised_nll
from protea.rng import Streams, fold
from protea.space import Rows
from protea.spaces import Table
from protea.training import Budget, fit
from protea.training.gradient import Gradient
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
        NotSupported: the model has no marginal over labels, exact or bounded. ConfigError: a negative weight.
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
    together, where = join(labelled, unlabelled), labelling(model.space)
    model.initialise(_with_labels(together, where, seed), seed)
    loss = semi_supervised_nll(_log_joint(model, where), len(where.names), lambda b: where.of(_rows(b)), weight)
    phases = [Phase("semi-supervised", [p for p in model.parameters() if p.requires_grad], loss)]
    learner: Learner = Gradient(model, phases, optimizer=adamw(2e-3))
    fit(model, together, budget=budget or Budget(seconds=20.0), learner=learner, judge=None, progress=None, seed=seed)
    return model.eval()


def require_marginal(model: Model) -> Model:
    """The model (within its relaxation) whose p(x) sums over labels, exactly or as a bound; else NotSupported."""
    inner = model.inner if isinstance(model, Lifted) else model
    in_column = isinstance(model.space, Table)
    if isinstance(inner, Countable):
        able = isinstance(inner, Normalised) and not (in_column and isinstance(model, Lifted))
    else:
        learns = any(p.requires_grad for p in model.parameters())
        able = isinstance(inner, Normalised) and isinstance(model, (Normalised, Bounded)) and learns
    if not able or (class_prior(model) is None and not in_column):
        raise NotSupported(
            f"{type(inner).__name__} of these data has no marginal over labels to learn from.",
            "Use naive-bayes, mixture or flow; gmm and marginals on labelled data that are not a table.",
        )
    return inner


def _log_joint(model: Model, where: Labelling) -> LogJoint:
    """log p(x, y), or a bound of it, of rows with the labels given."""
    prior = class_prior(model)

    def log_joint(x: Tensor, y: Tensor, rng: Streams) -> Tensor:
        cond = None
        if where.column is None:
            cond = y
        else:
            x = x.clone()
            x[:, where.column] = y.to(x)
        if isinstance(model, Normalised):
            log_p = model.log_prob(x, cond)
        else:
            assert isinstance(model, Bounded)
            log_p = model.log_prob_bound(x, cond, rng=rng)
        return log_p if prior is None else log_p + prior.to(y.device)[y].log()

    return log_joint


def _rows(batch: Batch) -> Rows:
    return Rows(batch.x, batch.y, batch.rng.ids)


def _with_labels(rows: Rows, where: Labelling, seed: int) -> Rows:
    """For scales set before learning: unknown labels in a column are drawn from those that are known."""
    y = where.of(rows)
    known, unknown = (y >= 0).nonzero()[:, 0], (y < 0).nonzero()[:, 0]
    if where.column is None or not len(unknown) or not len(known):
        return rows
    u = Streams(fold(seed, "labels"), len(unknown)).uniform(1)[:, 0]
    x = rows.x.clone()
    x[unknown, where.column] = y[known[(u * len(known)).long()]].to(x)
    return Rows(x, rows.y, rows.ids)


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
