r"""Speculative decoding: a drafter proposes tokens, the model verifies all of them in one call.

A drafted token d of the draft distribution q stands with probability min(1, p(d) / q(d)), p the model's own; the first
that falls is replaced by a draw from the residual max(p - q, 0) / sum max(p - q, 0). The result is distributed as p,
whatever q is (Leviathan et al. 2023; Chen et al. 2023). Greedy decoding takes the model's own choice at every place,
so that its text is that of plain greedy decoding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from protea.serving.requests import Handle


class Draft(NamedTuple):
    """Proposed ids, and q (n, V) from which each was drawn; None where each was certain."""

    ids: list[int]
    q: Tensor | None


class Drafter(ABC):
    """Proposes tokens. `most`: how many at once; `wants_hidden`: whether `learn` is called with hidden streams."""

    most: int
    wants_hidden: bool = False

    def join(self, handle: Handle) -> None:  # noqa: B027
        """A request begins."""

    def leave(self, handle: Handle) -> None:  # noqa: B027
        """A request has ended."""

    def learn(self, handle: Handle, hidden: Tensor, follow: Sequence[int]) -> None:  # noqa: B027
        """The model's normalised streams (n, d) at n verified places, and the token that follows each."""

    @abstractmethod
    def propose(self, handles: Sequence[Handle], most: Sequence[int]) -> list[Draft]:
        """For each request, tokens that may follow all its ids: at most as many as it may still take."""


def verify(logits: Tensor, draft: Draft, i: int, handle: Handle, place: int) -> tuple[int, bool]:
    """The token after the model's processed logits (V,), and whether it is the i-th drafted one."""
    token, sampling = draft.ids[i], handle.request.sampling
    if sampling.temperature == 0:
        best = int(logits.argmax())
        return best, best == token
    p = logits.double().softmax(-1)
    return accept(p, None if draft.q is None else draft.q[i], token, handle.coins[place], handle.uniforms[place])


def accept(p: Tensor, q: Tensor | None, token: int, coin: float, u: float) -> tuple[int, bool]:
    """A token distributed as p (V,), given one drawn from q (V,); q None: certain.

    Args:
        coin, u: uniform numbers, the second for the residual.

    >>> p = torch.tensor([0.25, 0.75])
    >>> accept(p, None, 0, coin=0.2, u=0.5), accept(p, None, 0, coin=0.3, u=0.5)
    ((0, True), (1, False))
    """
    q_token = 1.0 if q is None else float(q[token])
    if coin * q_token < float(p[token]):
        return token, True
    if q is None:
        rest = p.clone()
        rest[token] = 0.0
    else:
        rest = (p - q.to(p)).clamp_min(0)
    cdf = rest.cumsum(0)
    return int(torch.searchsorted(cdf, u * cdf[-1]).clamp_max(len(p) - 1)), False
