r"""Losses that layers add to that of their objective: load balance, z-loss, further tokens.

A layer deep in a network knows what should be penalised, but sees a part of the batch: some rows of a process, some
processes of many. So it does not give a number. It gives a *term*: sums S that gradients flow through and counts C
that none does, both of which add over rows, and the loss as a function of them that is linear in S,

    a = value(S, C),   value(S + S', C) = value(S, C) + value(S', C).

With C of the whole batch, the losses of its parts add up to the loss of the batch, and so do their gradients:
`protea.training.layer_losses` gathers C. A mean over tokens is S / C; Switch's balance is E / n^2 sum_i c_i S_i.

What else a layer measures while it learns, it hands to `defer`, with what to do with all of it after the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor


class Term(NamedTuple):
    """A loss of a layer.

    Args:
        name: for people.
        sums: (K,), S.
        counts: (J,), C, without a gradient.
        value: (S, C) to the weighted loss, a scalar that is linear in S.
    """

    name: str
    sums: Tensor
    counts: Tensor
    value: Callable[[Tensor, Tensor], Tensor]

    def mean(self) -> Tensor:
        """The loss, were this part the whole batch."""
        return self.value(self.sums, self.counts)


class Heard:
    """What the layers said in one pass: `terms`, and `values` with what is done with those of all passes."""

    def __init__(self, counted: bool = True) -> None:
        self.terms: list[Term] = []
        self.values: list[tuple[Tensor, Callable[[Tensor], None]]] = []
        self.counted = counted
        self.tell: Callable[[Term], None] = self.terms.append


_HEARD: ContextVar[Heard | None] = ContextVar("layer_losses", default=None)


@contextmanager
def hearing(counted: bool = True) -> Iterator[Heard]:
    """What layers say meanwhile. Not `counted`: the pass is one that is repeated, or of rows that are not the batch's.

    >>> import torch
    >>> with hearing() as heard:
    ...     add_loss(Term("z", torch.tensor([6.0]), torch.tensor([4.0]), lambda S, C: 0.1 * (S / C).sum()))
    >>> round(heard.terms[0].mean().item(), 4)
    0.15
    """
    heard = Heard(counted)
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


@contextmanager
def auxiliary_losses() -> Iterator[list[tuple[str, Tensor]]]:
    """For loops written by hand, whose pass is the whole batch: the (name, weighted mean) of every term.

    >>> import torch
    >>> with auxiliary_losses() as terms:
    ...     add_loss(Term("z", torch.tensor([6.0]), torch.tensor([4.0]), lambda S, C: (S / C).sum()))
    ...     defer(torch.tensor([1.0, 2.0]), lambda values: print(len(values)))
    2
    >>> terms
    [('z', tensor(1.5000))]
    """
    means: list[tuple[str, Tensor]] = []
    with hearing() as heard:
        heard.tell = lambda term: means.append((term.name, term.mean()))
        yield means
    for values, act in heard.values:
        act(values)


def add_loss(term: Term) -> None:
    """Add a loss, if somebody listens.

    Layers call it whenever they train, listened to or not, so that a recomputed forward pass is the same.
    """
    if (heard := _HEARD.get()) is not None:
        heard.tell(term)


def defer(values: Tensor, act: Callable[[Tensor], None]) -> None:
    """Hand over values (N,), if somebody listens: after the step `act` gets those of the whole batch, in any order."""
    if (heard := _HEARD.get()) is not None:
        heard.values.append((values.detach(), act))


def counted() -> bool:
    """Whether this pass is one to keep counts of: it is heard for the first time."""
    return (heard := _HEARD.get()) is None or heard.counted
