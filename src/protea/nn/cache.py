"""The memory of a batch of texts that grow together: buffers of a fixed capacity for each layer.

A full layer keeps every token. A layer with a sliding window keeps a ring of the last `window`
(Jiang et al. 2023, "Mistral 7B", rolling buffer cache). A latent layer keeps its latents in the same
way, a recurrent one its state, whose size does not grow with the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from protea.errors import DataError
from protea.nn.context import Context, Memory, Seen, owned, visible


@dataclass
class Cache(Memory):
    """Tensors remembered for each layer, in buffers made at first use.

    Args:
        capacity: tokens it can hold.
        pad: (B,) how many of the first tokens of each row are padding; or None.
        spare: tokens a ring holds beside those of a window: as many as may be taken back (`retract`), plus 1.
        length: tokens it holds.
        layers: for each layer, parts (B, H, capacity or ring, D).
        states: for each recurrent layer, its state.

    >>> cache = Cache(capacity=3)
    >>> (k,), seen = cache.remember(cache.context(2), None, torch.ones(1, 1, 2, 4))
    >>> cache.advance(2)
    >>> (k,), seen = cache.remember(cache.context(1), None, torch.zeros(1, 1, 1, 4))
    >>> k[0, 0, :, 0].tolist(), cache.length, seen.mask
    ([1.0, 1.0, 0.0], 2, None)
    """

    capacity: int
    pad: Tensor | None = None
    spare: int = 1
    length: int = 0
    layers: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    states: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def context(self, tokens: int, device: torch.device | str = "cpu") -> Context:
        """New tokens follow those held; positions count from the first token that is not padding.

        Raises:
            DataError: more tokens than the capacity.
        """
        if self.length + tokens > self.capacity:
            raise DataError(
                f"A cache of {self.capacity} tokens cannot hold {self.length + tokens}.",
                "Ask `new_cache` for a longer one, or write less.",
            )
        slots = torch.arange(self.length, self.length + tokens, device=device)
        return Context(slots if self.pad is None else slots - self.pad[:, None].to(device), cache=self)

    def remember(self, ctx: Context, window: int | None, *new: Tensor) -> tuple[tuple[Tensor, ...], Seen]:
        t = new[0].shape[-2]
        size = self.capacity if window is None else min(self.capacity, window - 1 + self.spare)
        if ctx.layer not in self.layers:
            self.layers[ctx.layer] = tuple(p.new_empty(*p.shape[:-2], size, p.shape[-1]) for p in new)
        buffers = self.layers[ctx.layer]
        end = self.length + t
        if end <= size:  # still a straight buffer
            for buffer, p in zip(buffers, new, strict=True):
                buffer[..., self.length : end, :] = p
            parts = tuple(buffer[..., :end, :] for buffer in buffers)
        else:
            slots = torch.arange(max(self.length, end - size), end, device=new[0].device)
            ring = slots % size
            if t == 1:
                for buffer, p in zip(buffers, new, strict=True):
                    buffer[..., self.length % size, :] = p[..., 0, :]
                parts = buffers
            else:  # the old ones in the order of their slots, then all the new
                held = self._ring(size, self.length, new[0].device)
                parts = tuple(
                    torch.cat((buffer[..., held % size, :], p), -2) for buffer, p in zip(buffers, new, strict=True)
                )
                for buffer, p in zip(buffers, new, strict=True):
                    buffer[..., ring, :] = p[..., -len(ring) :, :]
        name = (window, size, parts[0].shape[-2])
        if name not in ctx.shared:
            ctx.shared[name] = self._seen(t, window, size, new[0].device)
        return parts, ctx.shared[name]

    def _ring(self, size: int, end: int, device: torch.device) -> Tensor:
        """The slots a ring holds when `end` tokens have been written, oldest first."""
        return torch.arange(max(0, end - size), end, device=device)

    def _seen(self, t: int, window: int | None, size: int, device: torch.device) -> Seen:
        end = self.length + t
        queries = torch.arange(self.length, end, device=device)
        if end <= size:
            keys = torch.arange(end, device=device)
        elif t == 1:
            keys = self._ring(size, end, device)
            keys = torch.empty_like(keys).index_put_((keys % size,), keys)
        else:
            keys = torch.cat((self._ring(size, self.length, device), queries))
        everything = t == 1 and (window is None or len(keys) <= window)
        if self.pad is None and everything:
            return Seen(queries, keys)
        if self.pad is None and self.length == 0 and (window is None or window >= t):
            return Seen(queries, keys, causal=True)
        mask = visible(queries, keys, window)
        if self.pad is not None:  # padding sees itself, for a row of no keys has no softmax
            own = queries[:, None] == keys
            mask = mask & ((keys >= self.pad[:, None, None, None].to(device)) | own)
        return Seen(queries, keys, mask)

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        return self.states.get(layer)

    def keep(self, layer: int, *state: Tensor) -> None:
        self.states[layer] = tuple(owned(part) for part in state)

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def retract(self, tokens: int) -> None:
        """Forget the last tokens, of layers that attend; a state cannot be taken back.

        Raises:
            DataError: a recurrent layer is held, or a ring has lost what the window before would need.
        """
        rings = any(parts[0].shape[-2] < self.capacity for parts in self.layers.values())
        if self.states or tokens > self.length or (rings and tokens >= self.spare):
            raise DataError(
                f"{tokens} of {self.length} tokens cannot be taken back from this cache (spare {self.spare}).",
                "Keep a copy of recurrent states; make windows' rings with `spare` above the tokens to take back.",
            )
        self.length -= tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers and states."""
        return sum(t.nbytes for parts in (*self.layers.values(), *self.states.values()) for t in parts)
