"""What a layer sees beside its input: a `Context`, and the `Cache` that an engine keeps between calls.

Layers neither own nor advance a cache. A layer hands its new keys and values (or a latent, or
whatever it caches for each token) to the context and gets back those of the whole text; the
engine, which knows when a step is complete, advances.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from protea.errors import DataError


@dataclass
class Cache:
    """Tensors remembered for each layer and token, in buffers of fixed capacity made at first use.

    Args:
        capacity: tokens it can hold.
        length: tokens it holds.
        layers: for each layer, parts (B, H, capacity, D).

    >>> cache = Cache(capacity=3)
    >>> k, = cache.extend(0, torch.ones(1, 1, 2, 4))
    >>> cache.advance(2)
    >>> cache.extend(0, torch.zeros(1, 1, 1, 4))[0][0, 0, :, 0].tolist(), cache.length
    ([1.0, 1.0, 0.0], 2)
    """

    capacity: int
    length: int = 0
    layers: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Write new parts (B, H, T, D) after those held; returns both, (B, H, length + T, D).

        Raises:
            DataError: more tokens than the capacity.
        """
        end = self.length + new[0].shape[-2]
        if end > self.capacity:
            raise DataError(
                f"A cache of {self.capacity} tokens cannot hold {end}.",
                "Ask `new_cache` for a longer one, or write less.",
            )
        if layer not in self.layers:
            self.layers[layer] = tuple(p.new_empty(*p.shape[:-2], self.capacity, p.shape[-1]) for p in new)
        parts = self.layers[layer]
        for part, p in zip(parts, new, strict=True):
            part[..., self.length : end, :] = p
        return tuple(part[..., :end, :] for part in parts)

    def advance(self, tokens: int) -> None:
        """Keep what was written for that many tokens, once every layer has written it."""
        self.length += tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(part.nbytes for parts in self.layers.values() for part in parts)


@dataclass(frozen=True)
class Context:
    """What a layer sees beside its input.

    Args:
        positions: (T,) or (B, T), where the tokens stand in their texts.
        mask: (B or 1, 1, T, S) booleans, True where query t may see key s; None for all, or for plain `causal`.
        causal: query t sees keys up to t (and there are as many keys as queries).
        cache: where to remember, or None.
        layer: whose turn it is.
        cond: (B, C) what modulation reads, or None.
    """

    positions: Tensor
    mask: Tensor | None = None
    causal: bool = True
    cache: Cache | None = None
    layer: int = 0
    cond: Tensor | None = None

    def at(self, layer: int) -> Context:
        """The same context, seen by that layer."""
        return replace(self, layer=layer)

    def remember(self, *new: Tensor) -> tuple[Tensor, ...]:
        """This layer's parts of the whole text, the new ones (B, H, T, D) last."""
        return new if self.cache is None else self.cache.extend(self.layer, *new)


def causal_context(tokens: int, cache: Cache | None = None, device: torch.device | str = "cpu") -> Context:
    """The context of `tokens` new tokens that follow those of the cache; each sees itself and all before it.

    >>> causal_context(2, Cache(8, length=1)).mask[0, 0].tolist()
    [[True, True, False], [True, True, True]]
    """
    start = 0 if cache is None else cache.length
    positions = torch.arange(start, start + tokens, device=device)
    mask = None
    if start and tokens > 1:
        mask = (torch.arange(start + tokens, device=device) <= positions[:, None])[None, None]
    return Context(positions, mask, causal=start == 0 and tokens > 1, cache=cache)
