"""Null rows: what every metric says of samples whose quality is known beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from protea.data.dataset import Dataset
from protea.rng import Streams, fold, permutation

FEWEST = 10  # samples that can be judged
CEILING, FLOOR, COPIER = "real held-out data", "shuffled marginals", "copy of the training set"


def null_samples(dataset: Dataset, n: int, seed: int = 0) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Samples and labels of each null row, by its name.

    - real held-out data: the validation rows, judged against the holdout: nothing can be expected to do better; left
      out where there are fewer than ten;
    - shuffled marginals: training rows with every entry permuted over rows by itself: right columns, no relations;
    - copy of the training set: wins naive metrics, and must fail the audit.
    """
    train = dataset.train
    rows = permutation(len(train), seed, "null")[:n]
    x, y = train.x[rows], None if train.y is None else train.y[rows]
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    if len(dataset.validation) >= FEWEST:
        found[CEILING] = (dataset.validation.x[:n], None if dataset.validation.y is None else dataset.validation.y[:n])
    found[FLOOR] = (shuffled(x, seed), y)
    found[COPIER] = (x, y)
    return found


def shuffled(x: Tensor, seed: int = 0) -> Tensor:
    """Every entry of (n, *event) permuted over the rows independently: the marginals stay, all relations go.

    >>> x = torch.arange(6).reshape(3, 2)
    >>> sorted(shuffled(x)[:, 1].tolist())
    [1, 3, 5]
    """
    flat = x.reshape(len(x), -1)
    order = torch.cat(
        [
            Streams(fold(seed, "shuffle"), torch.arange(start, min(start + 64, flat.shape[1])))
            .uniform(len(x))
            .argsort(1)
            for start in range(0, flat.shape[1], 64)
        ]
    )  # (D, n): one permutation a column
    return flat.gather(0, order.mT).reshape(x.shape)
