"""What a layer sees beside its input.

Tokens stand in *slots* 0, 1, 2 ... of a row of the batch, and at *positions* of their texts: the two
differ where a row is padded on the left or packs several documents. Masks speak of slots, rotary
angles of positions. Layers neither own nor advance a memory: a layer hands its new keys and values
(or a latent, or a state) to the context and gets back all that its queries may look at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """Which keys the queries of one layer see.

    Args:
        queries: slots of the queries, (T,) or (B, T).
        keys: slots of the keys, (S,) or (B, S), in the order of the keys.
        mask: (B or 1, 1, T, S) booleans, True where query t may see key s; None for all, or for plain `causal`.
        causal: query t sees keys up to t, and there are as many keys as queries; only with no mask.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None = None
    causal: bool = False


class Memory(ABC):
    """What an engine keeps of the texts so far, for every layer; a call continues all of them."""

    @abstractmethod
    def context(self, tokens: int, device: torch.device | str = "cpu") -> Context:
        """The context of `tokens` new tokens of every text."""

    @abstractmethod
    def remember(self, ctx: Context, window: int | None, *new: Tensor) -> tuple[tuple[Tensor, ...], Seen]:
        """Write a layer's new parts (B, H, T, D); returns those its queries may need, and which see which."""

    @abstractmethod
    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """What a recurrent layer kept, or None before its first token."""

    @abstractmethod
    def keep(self, layer: int, *state: Tensor) -> None:
        """Replace what a recurrent layer keeps."""

    @abstractmethod
    def advance(self, tokens: int) -> None:
        """Keep what was written for that many tokens, once every layer has written it."""


@dataclass(frozen=True)
class Context:
    """What a layer sees beside its input.

    Args:
        positions: (T,) or (B, T), where the tokens stand in their texts; negative for padding (left of the text).
        documents: (B, T) integers, one for each document that a row packs (tokens see their own alone); or None.
        causal: tokens see themselves and those before them; if not, all (of their document).
        cache: where to remember, or None.
        layer: whose turn it is.
        cond: (B, C) what modulation reads, or None.
        shared: what layers work out once for all of them (masks, angles), by name; lives as long as the call.
    """

    positions: Tensor
    documents: Tensor | None = None
    causal: bool = True
    cache: Memory | None = None
    layer: int = 0
    cond: Tensor | None = None
    shared: dict[Any, Any] = field(default_factory=dict, compare=False)

    def at(self, layer: int) -> Context:
        """The same context, seen by that layer."""
        return replace(self, layer=layer)

    @property
    def valid(self) -> Tensor | None:
        """(B, T), False at padding; None where there is none. Recurrent layers must not read padding."""
        return None if self.positions.ndim == 1 or self.documents is not None else self.positions >= 0

    def remember(self, *new: Tensor, window: int | None = None) -> tuple[tuple[Tensor, ...], Seen]:
        """This layer's parts (B, H, T, D) of the text so far, the new ones among them, and which queries see which.

        Args:
            new: keys and values, or whatever the layer keeps for each token.
            window: a token sees itself and the window - 1 before it; None for all.
        """
        if self.cache is not None:
            return self.cache.remember(self, window, *new)
        if ("seen", window) not in self.shared:
            self.shared["seen", window] = self._seen(new[0].shape[-2], window)
        return new, self.shared["seen", window]

    def _seen(self, t: int, window: int | None) -> Seen:
        slots = torch.arange(t, device=self.positions.device)
        valid = self.valid
        narrow = window is not None and (torch.compiler.is_exporting() or window < t)  # a graph must hold for any t
        if valid is None and self.documents is None and not narrow:
            return Seen(slots, slots, causal=self.causal)
        mask = visible(slots, slots, window if narrow else None, self.causal)
        if self.documents is not None:
            mask = mask & (self.documents[:, :, None] == self.documents[:, None, :])[:, None]
        if valid is not None:  # padding sees itself, for a row of no keys has no softmax
            mask = mask & (valid[:, None, None, :] | torch.eye(t, dtype=torch.bool, device=slots.device))
        return Seen(slots, slots, mask)


def owned(state: Tensor) -> Tensor:
    """The tensor itself, or a copy where it is part of something larger that would be kept alive with it.

    >>> whole = torch.zeros(100, 4)
    >>> owned(whole) is whole, owned(whole[-1]).untyped_storage().nbytes()
    (True, 16)
    """
    return state if state.untyped_storage().nbytes() <= state.nbytes else state.clone()


def visible(queries: Tensor, keys: Tensor, window: int | None = None, causal: bool = True) -> Tensor:
    """(B or 1, 1, T, S): the key's slot is not after the query's (if `causal`), and less than a window before it.

    >>> visible(torch.tensor([2, 3]), torch.arange(4), window=2)[0, 0].int().tolist()
    [[0, 1, 1, 0], [0, 0, 1, 1]]
    """
    ahead = queries[..., :, None] - keys[..., None, :]  # (B?, T, S)
    mask = ahead >= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
    if window is not None:
        mask = mask & (ahead < window)
    return mask[None, None] if mask.ndim == 2 else mask[:, None]


def plain_context(
    tokens: int, device: torch.device | str = "cpu", *, pad: Tensor | None = None, documents: Tensor | None = None
) -> Context:
    """The context of whole texts of `tokens` tokens, with no memory.

    Args:
        tokens: T.
        device: of the tokens.
        pad: (B,) how many tokens on the left of each row are padding.
        documents: (B, T) integers that tell the documents of a packed row apart; positions restart with each.

    >>> plain_context(4, documents=torch.tensor([[0, 0, 1, 1]])).positions.tolist()
    [[0, 1, 0, 1]]
    """
    positions = torch.arange(tokens, device=device)
    if documents is not None:
        first = torch.ones_like(documents, dtype=torch.bool)
        first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        return Context(positions - (positions * first).cummax(1).values, documents)
    if pad is not None:
        positions = positions - pad[:, None].to(device)
    return Context(positions)
