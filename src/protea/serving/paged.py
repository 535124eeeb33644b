"""Texts in blocks, seen by a model as one `Memory`: any model runs on the paged pool.

Each call gathers what its queries may see from the blocks into one straight tensor; texts of different lengths are
masked. The fused plan (`plan.py`) reads the same blocks in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protea.nn.context import Context, Memory, Seen, owned, visible
from protea.serving.blocks import Blocks, Text, Window


class PagedCache(Memory):
    """The memory of one call: row b of the batch continues `texts[b]`.

    Args:
        blocks: where the texts lie.
        texts: of any lengths.

    >>> blocks = Blocks(tokens=32, longest=16, block=4)
    >>> text = blocks.new()
    >>> for _ in range(3):
    ...     cache = PagedCache(blocks, [text])
    ...     (k,), seen = cache.context(2).remember(torch.ones(1, 1, 2, 3))
    ...     cache.advance(2)
    >>> k.shape, text.length, blocks.pools[None].used
    (torch.Size([1, 1, 6, 3]), 6, 2)
    """

    def __init__(self, blocks: Blocks, texts: Sequence[Text]) -> None:
        self.blocks, self.texts = blocks, list(texts)

    @property
    def length(self) -> int:
        """Tokens of the longest text."""
        return max(text.length for text in self.texts)

    def context(self, tokens: int, device: torch.device | str = "cpu") -> Context:
        for text in self.texts:
            self.blocks.prepare(text, tokens)
        starts = torch.tensor([text.length for text in self.texts], device=device)
        positions = torch.arange(tokens, device=device)
        alone = len(self.texts) == 1
        return Context(positions + starts[0] if alone else positions + starts[:, None], cache=self)

    def remember(self, ctx: Context, window: int | None, *new: Tensor) -> tuple[tuple[Tensor, ...], Seen]:
        t, new_layer = new[0].shape[-2], ctx.layer not in self.blocks.store
        store = self.blocks.layer(ctx.layer, window, *new)
        if new_layer:
            for text in self.texts:
                self.blocks.prepare(text, t)
        name = ("paged", window)
        if name not in ctx.shared:
            ctx.shared[name] = self._seen(t, window, new[0].device)
        where, rows, first, keys, seen = ctx.shared[name]
        for part, p in zip(store, new, strict=True):
            part[where[0], :, where[1]] = p.transpose(1, 2)
        parts = tuple(part[rows].transpose(1, 2).flatten(2, 3)[:, :, first : first + keys] for part in store)
        return parts, seen

    def _seen(self, t: int, window: Window, device: torch.device):
        """Where to write, which blocks to read, which of their tokens to keep, and who sees what."""
        size, texts = self.blocks.block, self.texts
        tables = torch.stack([torch.from_numpy(self.blocks.table(text, window).ids) for text in texts]).to(device)
        lengths = [text.length for text in texts]
        starts = torch.tensor(lengths, device=device)
        slots = starts[:, None] + torch.arange(t, device=device)
        where = (tables.gather(1, slots // size).long(), slots % size)
        least = 0 if window is None else max(0, min(lengths) - window + 1)
        begin, end = least // size, max(lengths) + t
        rows = tables[:, begin : -(-end // size)].long().clamp_min(0)
        first, count = least - begin * size, end - least
        keys = torch.arange(least, end, device=device)
        if len(texts) == 1:
            slots = slots[0]
            if t == 1 and (window is None or count <= window):
                return where, rows, first, count, Seen(slots, keys)
            if lengths[0] == 0 and (window is None or window >= t):
                return where, rows, first, count, Seen(slots, keys, causal=True)
        return where, rows, first, count, Seen(slots, keys, visible(slots, keys, window))

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        held = [text.states.get(layer) for text in self.texts]
        known = [state for state in held if state is not None]
        if not known:
            return None
        blank = tuple(torch.zeros_like(part) for part in known[0])
        return tuple(torch.cat(parts) for parts in zip(*(blank if s is None else s for s in held), strict=True))

    def keep(self, layer: int, *state: Tensor) -> None:
        self.blocks.stateful = True
        for b, text in enumerate(self.texts):
            text.states[layer] = tuple(owned(part[b : b + 1]) for part in state)

    def advance(self, tokens: int) -> None:
        for text in self.texts:
            self.blocks.advance(text, tokens)
