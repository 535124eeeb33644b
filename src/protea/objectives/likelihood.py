r"""Maximum likelihood: the sum over rows of -log p(x | y), in nats (Fisher 1922)."""

from __future__ import annotations

from collections.abc import Callable

from protea.core import Batch, Loss, Normalised


def nll(model: Normalised) -> Callable[[Batch], Loss]:
    r"""The loss $\sum_i -\log p(x_i \mid y_i)$ and the number of rows; nats of canonical units.

    Labels go to the model as they come; a model without classes ignores them.

    >>> import torch
    >>> from protea.rng import Streams
    >>> class Standard(Normalised):
    ...     def draw(self, rng, cond=None): return rng.normal(1)
    ...     def log_prob(self, x, cond=None): return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    >>> loss = nll(Standard())(Batch(torch.zeros(4, 1), None, Streams(0, 4)))
    >>> round(float(loss.total) / loss.count, 4)
    0.9189
    """

    def loss(batch: Batch) -> Loss:
        return Loss(-model.log_prob(batch.x, batch.y).sum(), len(batch.x))

    return loss


def token_nll(model: Normalised) -> Callable[[Batch], Loss]:
    """As `nll`, counted by token: the mean is nats per token, whatever the length of a text."""
    per_row = nll(model)

    def loss(batch: Batch) -> Loss:
        total, _ = per_row(batch)
        return Loss(total, batch.x.numel())

    return loss
