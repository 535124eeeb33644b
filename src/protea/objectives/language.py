r"""Next-token likelihood of packed documents, and the z-loss.

    L = sum_t keep_t (-log softmax(l_t)[x_{t+1}] + zeta (logsumexp l_t)^2),    n = sum_t keep_t,

over the tokens that are predicted: not the id that begins a document, which follows from nothing, and not padding.
The term in zeta keeps the logits' normaliser near one (Chowdhery et al. 2022, "PaLM", zeta = 1e-4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from protea.core import Batch, Loss, Model
from protea.nn.fused import nats, nats_and_normaliser
from protea.nn.precise import precise


class ReadsDocuments(Protocol):
    """A language model whose `logits` keep the documents of packed rows apart."""

    def logits(self, tokens: Tensor, *, documents: Tensor | None = None) -> Tensor: ...


def packed_nll(model: Model, begin: int, *, z: float = 0.0) -> Callable[[Batch], Loss]:
    """The loss of rows (B, T + 1) of packed documents, in nats, and how many tokens were predicted.

    Args:
        model: with `logits(tokens, documents=...)`.
        begin: the id that begins a document; -1 is padding.
        z: zeta.
    """

    def loss(batch: Batch) -> Loss:
        total, count = token_losses(model, batch.x, begin, z)
        return Loss(total, count)

    return loss


def token_losses(model: Model, rows: Tensor, begin: int, z: float = 0.0) -> tuple[Tensor, Tensor]:
    """The sum over predicted tokens of their loss, and their number; see the module."""
    tokens, target = rows[:, :-1], rows[:, 1:]
    documents = (tokens == begin).cumsum(1).masked_fill(tokens < 0, -1)
    keep = (target != begin) & (target >= 0)
    apart = bool((documents != documents[:, :1]).any())
    # Rows of one document need no mask, and take the faster kernel.
    logits = precise(model.logits(tokens.clamp_min(0), documents=documents if apart else None).flatten(0, 1))
    wanted = target.masked_fill(~keep, -1).flatten()
    if not z:
        return nats(logits, wanted).sum(), keep.sum()
    cost, normaliser = nats_and_normaliser(logits, wanted)
    total = cost.sum() + z * (normaliser.square() * keep.flatten()).sum()
    return total, keep.sum()
