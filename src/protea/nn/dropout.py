"""Dropout whose noise belongs to the row and the step, as all noise does.

Srivastava et al. 2014. `nn.Dropout` draws from torch's global generator, so its mask would depend on the batch, the
rank and everything drawn before; here it comes from the streams that the learner opens around a loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

from protea.rng import Streams

_STREAMS: ContextVar[Streams | None] = ContextVar("dropout_streams", default=None)


@contextmanager
def dropout_noise(streams: Streams) -> Iterator[None]:
    """Let `Dropout` draw from these streams, one for each row of the batch."""
    token = _STREAMS.set(streams)
    try:
        yield
    finally:
        _STREAMS.reset(token)


class Dropout(nn.Module):
    """Zero each entry with probability p and scale the rest by 1 / (1 - p), while training and within `dropout_noise`.

    >>> import torch
    >>> layer = Dropout(0.5)
    >>> with dropout_noise(Streams(0, 2)):
    ...     both = layer(torch.ones(2, 8))
    >>> with dropout_noise(Streams(0, [1])):
    ...     alone = layer(torch.ones(1, 8))
    >>> bool((both[1] == alone[0]).all()), sorted(set(both.flatten().tolist()))
    (True, [0.0, 2.0])
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        streams = _STREAMS.get()
        if self.p == 0 or not self.training or streams is None:
            return x
        keep = streams.uniform(*x.shape[1:]) >= self.p
        return x * keep.to(x) / (1 - self.p)
