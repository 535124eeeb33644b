"""Labels of class-conditional models: their frequencies, and what to do when none is given."""

from __future__ import annotations

import torch
from torch import Tensor

from protea.errors import DataError, NotSupported
from protea.rng import Streams
from protea.space import Rows


def class_frequencies(rows: Rows, classes: int) -> Tensor:
    """(classes,) relative frequencies of the known labels of rows, for the buffer `class_prior`; -1 is unknown.

    Raises:
        DataError: rows without any label, or with labels outside -1 .. classes - 1.
    """
    if rows.y is None or not bool((rows.y >= 0).any()):
        raise DataError(f"A model of {classes} classes was given rows without labels.", "Give labels y (N,).")
    low, high = int(rows.y.min()), int(rows.y.max())
    if low < -1 or high >= classes:
        raise DataError(f"Labels run from {low} to {high}.", f"They must lie in 0 .. {classes - 1}, or be -1: unknown.")
    return class_shares(rows.y, classes)


def class_shares(y: Tensor, classes: int) -> Tensor:
    """(classes,) relative frequencies of the labels that are known (not negative); equal ones where none is.

    >>> class_shares(torch.tensor([0, 1, 1, -1, 1]), 2).tolist()
    [0.25, 0.75]
    """
    known = y[y >= 0]
    if not len(known):
        return torch.full((classes,), 1 / classes, dtype=torch.float64)
    return torch.bincount(known, minlength=classes).double() / len(known)


def draw_labels(prior: Tensor, rng: Streams, cond: Tensor | None) -> Tensor | None:
    """The labels given, or, for a conditional model without any, labels drawn from its class prior."""
    if len(prior) == 0:
        refuse_labels(cond)
        return None
    return rng.child("label").categorical(prior.log().expand(len(rng), -1)) if cond is None else cond


def refuse_labels(cond: Tensor | None) -> None:
    """Raise NotSupported when an unconditional model is given labels."""
    if cond is not None:
        raise NotSupported("This model was built without classes.", "Leave out the labels, or fit on labelled data.")


def each_label(prior: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """x beside every label: (B * classes, *event) and (B * classes,), row by row."""
    classes = len(prior)
    return x.repeat_interleave(classes, 0), torch.arange(classes, device=x.device).repeat(len(x))


def marginalise(prior: Tensor, log_p: Tensor) -> Tensor:
    """log sum_y prior(y) p(x | y), (B,), from log p(x | y) laid out by `each_label`."""
    return torch.logsumexp(log_p.reshape(-1, len(prior)) + prior.log().to(log_p), 1)
