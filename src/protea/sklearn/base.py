"""What the adapters share: arrays to tensors and back, seeds, and errors that are both libraries' own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from protea.errors import ProteaError

ENTRIES = 1 << 22  # of the dense copy of some rows of a sparse matrix


class InputError(ProteaError, ValueError):
    """A user's mistake, as the `ValueError` that code written for scikit-learn expects."""


@contextmanager
def explained() -> Iterator[None]:
    """Protea's errors about data and settings as `InputError`."""
    try:
        yield
    except InputError:
        raise
    except ProteaError as error:
        raise InputError(error.cause, error.remedy) from error


def tensor(x: Any, dtype: type = np.float64) -> Tensor:
    """A tensor that shares the array's memory where it can (it must not be written to)."""
    return torch.from_numpy(np.require(x, dtype=dtype, requirements=["C", "W"]))


def array(x: Tensor, dtype: Any = np.float64) -> np.ndarray:
    """An array of its own memory."""
    return x.detach().cpu().numpy().astype(dtype, order="C", copy=True)


def dense(x: Any) -> Iterator[tuple[slice, Tensor]]:
    """The rows of an array in one part, those of a sparse matrix in parts that fit in memory once dense."""
    if not sparse.issparse(x):
        yield slice(0, len(x)), tensor(x)
        return
    step = max(1, ENTRIES // max(x.shape[1], 1))
    for i in range(0, x.shape[0], step):
        part = slice(i, min(i + step, x.shape[0]))
        yield part, tensor(x[part].toarray())


def seed_of(state: np.random.RandomState) -> int:
    """The seed of Protea's streams, drawn from scikit-learn's random state."""
    return int(state.randint(np.iinfo(np.int32).max))
