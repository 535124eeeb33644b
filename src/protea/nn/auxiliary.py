r"""Losses that layers add to that of their objective: load balance, z-loss, further tokens.

A layer deep in a network knows what should be penalised, the objective knows how many items its mean is over. So the
learner opens a list around its loss, layers append means to it, and the total becomes

    L + n sum_a mean_a,

with n the items counted: each term weighs as if it were added to the mean loss, whatever the accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_TERMS: ContextVar[list[tuple[str, Tensor]] | None] = ContextVar("auxiliary_losses", default=None)


@contextmanager
def auxiliary_losses() -> Iterator[list[tuple[str, Tensor]]]:
    """The (name, weighted mean) of every term that layers add meanwhile.

    >>> import torch
    >>> with auxiliary_losses() as terms:
    ...     add_loss("z", torch.tensor(0.5))
    >>> terms
    [('z', tensor(0.5000))]
    """
    terms: list[tuple[str, Tensor]] = []
    token = _TERMS.set(terms)
    try:
        yield terms
    finally:
        _TERMS.reset(token)


def add_loss(name: str, mean: Tensor) -> None:
    """Add a weighted mean, if somebody listens.

    Layers call it whenever they train, listened to or not, so that a recomputed forward pass is the same.
    """
    terms = _TERMS.get()
    if terms is not None:
        terms.append((name, mean))
