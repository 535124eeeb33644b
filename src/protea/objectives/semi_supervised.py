r"""Likelihood of labelled and unlabelled rows together, for class-conditional models that learn by gradients.

    L(theta) = -sum_{i labelled} (log p(x_i | y_i) + log p(y_i)) - lambda sum_{j unlabelled} log sum_y p(y) p(x_j | y)

A row without a label enters by the marginal over labels (Nigam et al. 2000, "Text classification from labeled and
unlabeled documents using EM", whose lambda weighs the unlabelled rows; the same objective, by gradients instead of EM).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from protea.core import Batch, Loss, Normalised


def semi_supervised_nll(model: Normalised, weight: float = 1.0) -> Callable[[Batch], Loss]:
    """The loss above over a batch in which labels of -1 are unknown; its count is the number of rows.

    Args:
        model: has a buffer `class_prior` and, asked without labels, returns its marginal.
        weight: lambda >= 0 of the rows without a label.

    >>> from protea.models.classical.gmm import GaussianMixture
    >>> from protea.rng import Streams
    >>> model = GaussianMixture((1,), 1, classes=2)  # both classes N(0, 1): p(x) = p(x | y)
    >>> loss = semi_supervised_nll(model, 0.5)
    >>> got = loss(Batch(torch.zeros(2, 1), torch.tensor([0, -1]), Streams(0, 2)))
    >>> round(float(got.total), 4)  # 0.9189 + log 2 + 0.5 * 0.9189
    2.0716
    """

    def loss(batch: Batch) -> Loss:
        y = batch.y if batch.y is not None else torch.full((len(batch.x),), -1, device=batch.x.device)
        known, total = y >= 0, batch.x.new_zeros((), dtype=torch.float64)
        if bool(known.any()):
            log_prior = model.get_buffer("class_prior").log()[y[known]]
            total = total - (model.log_prob(batch.x[known], y[known]) + log_prior).sum()
        if bool((~known).any()):  # at weight 0 too, so that a batch without labels has a gradient: 0
            total = total - weight * model.log_prob(batch.x[~known]).sum()
        return Loss(total, len(batch.x))

    return loss
