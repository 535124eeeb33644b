r"""Likelihood of labelled and unlabelled rows together, for models that learn by gradients.

    L(theta) = -sum_{i labelled} log p(x_i, y_i) - lambda sum_{j unlabelled} log sum_y p(x_j, y)

A row without a label enters by the marginal over labels (Nigam et al. 2000, "Text classification from labeled and
unlabeled documents using EM", whose lambda weighs the unlabelled rows; the same objective, by gradients instead of EM).
Where log p(x, y) is only bounded, by b with E[exp(b)] <= p(x, y), the sum over labels bounds the marginal in the same
way, and L is an upper bound of the negative log-likelihood.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from protea.core import Batch, Loss
from protea.nn.dropout import dropout_noise
from protea.rng import Streams

LogJoint = Callable[[Tensor, Tensor, Streams], Tensor]  # (x, y (B,), streams) to log p(x, y) or a bound of it, (B,)


def semi_supervised_nll(
    log_joint: LogJoint, classes: int, label_of: Callable[[Batch], Tensor], weight: float = 1.0
) -> Callable[[Batch], Loss]:
    """The loss above over a batch, some of whose labels are unknown; its count is the number of rows.

    Args:
        log_joint: nats of rows with the labels given; the noise of a row is the same for every label.
        classes: labels are 0 .. classes - 1.
        label_of: the labels of a batch's rows, (B,), -1 where unknown.
        weight: lambda >= 0 of the rows without a label.

    >>> joint = lambda x, y, rng: x.sum(1) * 0 - 1.5 - y  # log p(x, 0) = -1.5, log p(x, 1) = -2.5
    >>> loss = semi_supervised_nll(joint, 2, lambda batch: batch.y, 0.5)
    >>> got = loss(Batch(torch.zeros(2, 1), torch.tensor([1, -1]), Streams(0, 2)))
    >>> round(float(got.total), 4)  # 2.5 - 0.5 log(exp(-1.5) + exp(-2.5))
    3.0934
    """

    def loss(batch: Batch) -> Loss:
        y = label_of(batch)
        total = batch.x.new_zeros((), dtype=torch.float64)

        def log_p(rows: Tensor, labels: Tensor) -> Tensor:
            rng = batch.rng.take(rows.cpu())
            with dropout_noise(rng.child("dropout")):
                return log_joint(batch.x[rows], labels, rng.child("noise")).double()

        known, unknown = (y >= 0).nonzero()[:, 0], (y < 0).nonzero()[:, 0]
        if len(known):
            total = total - log_p(known, y[known]).sum()
        if len(unknown):  # at weight 0 too, so that a batch without labels has a gradient: 0
            each = [log_p(unknown, torch.full_like(unknown, c)) for c in range(classes)]
            total = total - weight * torch.logsumexp(torch.stack(each), 0).sum()
        return Loss(total, len(batch.x))

    return loss
