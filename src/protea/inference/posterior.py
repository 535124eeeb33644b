r"""Bayes' rule: any model of p(x | y), or of a table's joint p(x, y), is a classifier.

    p(y | x) = p(x | y) p(y) / \sum_c p(x | c) p(c),

computed as log p(x, y) - logsumexp_c log p(x, c), so that densities of thousands of nats neither overflow nor vanish.

Where the labels stand decides what log p(x, y) is: of a space with classes, log p(x | y) + log p(y) with the class
frequencies the model was trained on; of a table, log p of the row with its target column set to y.

A model with only a lower bound gives b(x, y) <= log p(x, y), and softmax_y b(x, y) is not the posterior: the looser
the bound, the larger the error, and it does not even bound the posterior from one side. Such results say "bound". The
same noise is used for every class of a row, which cancels most of it.

An `Estimated` model knows log p(x, y) but for log Z, which is the same for every class and cancels: its posterior is
exact although its likelihood is an estimate (of a restricted Boltzmann machine a softmax of free energies: Larochelle &
Bengio 2008, "Classification using discriminative restricted Boltzmann machines").

Source: Bayes 1763; for class-conditional generative models, Ng & Jordan 2002, "On Discriminative vs. Generative
Classifiers".
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from protea.core import Bounded, Model, Normalised
from protea.errors import NotSupported
from protea.evaluation.likelihood import class_prior
from protea.inference.labelling import labelling
from protea.models.estimated import Estimated
from protea.rng import Streams, fold

ROWS = 512  # scored at once, for each class


class Posterior(NamedTuple):
    """p(y | x) of every row.

    Args:
        log_joint: (B, classes) log p(x, y) in nats, or a lower bound of it; but for one constant where only an estimate
            is known.
        log_prob: (B, classes) log p(y | x); its exponentials sum to 1.
        names: the classes.
        exactness: "exact", or "bound" where the model only bounds its likelihood.
    """

    log_joint: Tensor
    log_prob: Tensor
    names: tuple[str, ...]
    exactness: Literal["exact", "bound"]

    @property
    def label(self) -> Tensor:
        """The most probable class of each row, (B,) codes."""
        return self.log_prob.argmax(1)


def normalise(log_joint: Tensor) -> Tensor:
    """log p(y | x) from log p(x, y), (B, classes) each; a row that no class gives any probability is shared equally.

    >>> normalise(torch.tensor([[-1000.0, -1000.0], [-torch.inf, -torch.inf]])).exp()
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    impossible = torch.isneginf(log_joint).all(1, keepdim=True)
    return torch.log_softmax(torch.where(impossible, 0.0, log_joint), 1)


@torch.no_grad()
def posterior(model: Model, x: Tensor, *, draws: int = 8, seed: int = 0) -> Posterior:
    """p(y | x) of rows x (B, *event) by Bayes' rule; a table's target column of x is not read.

    Args:
        model: `Normalised` or `Estimated` (exact) or `Bounded` (marked "bound"), over labelled data.
        draws: importance samples of a bound.
        seed: of their noise, the same for every class.

    Raises:
        NotSupported: no likelihood, no labels, or a model that ignores them.

    >>> from protea.models.classical.gmm import GaussianMixture
    >>> from protea.spaces import Vector
    >>> model = GaussianMixture((1,), 1, classes=2); model.space = Vector(("x",), ("low", "high"))
    >>> model.means[1] = 2.0
    >>> found = posterior(model, torch.tensor([[1.0], [9.0]]))
    >>> found.log_prob.exp()[0], found.label.tolist(), found.exactness
    (tensor([0.5000, 0.5000], dtype=torch.float64), [0, 1], 'exact')
    """
    if not isinstance(model, (Normalised, Bounded, Estimated)):
        raise NotSupported(
            f"{type(getattr(model, 'inner', model)).__name__} has no likelihood, so Bayes' rule cannot be used.",
            "Choose a model that is exact or a bound: see the column 'can' of `protea models`.",
        )
    where = labelling(model.space)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    prior = torch.ones(len(where.names), dtype=torch.float64)  # a table's joint holds the prior already
    if where.column is None:
        found = class_prior(model)
        if found is None or len(found) != len(where.names):
            raise NotSupported("The model was trained without labels.", "Fit it on labelled data.")
        prior = found if not isinstance(model, Estimated) else prior  # log p* is of the joint already
    exact = model.tight if isinstance(model, Estimated) else isinstance(model, Normalised)
    parts = []
    for start in range(0, len(x), ROWS):
        rows = x[start : start + ROWS].to(device)
        columns = []
        for c in range(len(where.names)):
            rows_c = where.put(rows, c)
            label = torch.full((len(rows),), c, device=device) if where.column is None else None
            if isinstance(model, Normalised):
                log_p = model.log_prob(rows_c, label)
            else:
                streams = Streams(fold(seed, "posterior"), torch.arange(start, start + len(rows)), device)
                score = model.unnormalised if isinstance(model, Estimated) else model.log_prob_bound
                log_p = score(rows_c, label, rng=streams, k=draws)
            columns.append(log_p.double().cpu())
        parts.append(torch.stack(columns, 1) + prior.log())
    log_joint = torch.cat(parts) if parts else torch.zeros(0, len(where.names), dtype=torch.float64)
    return Posterior(log_joint, normalise(log_joint), where.names, "exact" if exact else "bound")
