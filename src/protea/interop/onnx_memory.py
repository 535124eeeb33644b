"""Memories as inputs and outputs of a graph, and recurrent layers as a loop over tokens that a graph can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from protea.nn.cache import Cache
from protea.nn.context import Context, Memory, Seen, visible
from protea.nn.slstm import SLSTM

Beginning = tuple[tuple[tuple[int, ...], float], ...]  # of each part of a state: its shape for one text, and its value


@dataclass(frozen=True)
class Slot:
    """One tensor that a layer remembers.

    Args:
        layer: whose.
        part: key, value, latent0 ... or state0 ...
        shape: for one text; of those that grow, the heads and the width.
        grows: by a slot a token, along axis 2 of (B, H, past, D).
        value: what a state is before the first token.
    """

    layer: int
    part: str
    shape: tuple[int, ...]
    grows: bool
    value: float = 0.0

    def name(self, of: str) -> str:
        """ "past_key_values.3.key", say."""
        return f"{of}.{self.layer}.{self.part}"

    def example(self, batch: int, past: int) -> Tensor:
        """A memory of so many tokens."""
        if self.grows:
            return torch.zeros(batch, self.shape[0], past, self.shape[1])
        return torch.full((batch, *self.shape), self.value)

    def told(self) -> list[Any]:
        """For readers: the shape with 0 for what grows, and the value (as text, for it may be -inf)."""
        return [[self.shape[0], 0, self.shape[1]] if self.grows else list(self.shape), str(self.value)]


@torch.no_grad()
def slots_of(net: nn.Module) -> tuple[list[Slot], dict[str, Beginning]]:
    """What a network remembers, and its recurrent layers by name with what their states begin as: one token tells."""
    cache, recurrent = Cache(4), dict[str, Beginning]()
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if args[1].layer in cache.states and not any(name.startswith(f"{other}.") for other in recurrent):
                state, last = cache.states[args[1].layer], isinstance(module, SLSTM)
                recurrent[name] = tuple(
                    (tuple(part.shape[1:]), -math.inf if last and i == len(state) - 1 else 0.0)  # its stabiliser
                    for i, part in enumerate(state)
                )

        hooks.append(module.register_forward_hook(after))

    for name, module in net.named_modules():
        if name.endswith(".mixer"):
            watch(name, module)
    try:
        net(torch.zeros(1, 1, dtype=torch.int64), cache)
    finally:
        for hook in hooks:
            hook.remove()
    beginnings = {int(name.split(".")[1]): b for name, b in recurrent.items()}
    slots = []
    for layer in sorted({*cache.layers, *cache.states}):
        parts = cache.layers.get(layer, ())
        plain = len(parts) == 2 and parts[0].shape == parts[1].shape
        names = ("key", "value") if plain else tuple(f"latent{j}" for j in range(len(parts)))
        slots += [Slot(layer, n, (p.shape[1], p.shape[3]), True) for n, p in zip(names, parts, strict=True)]
        if layer in cache.states:
            slots += [Slot(layer, f"state{j}", shape, False, value)
                      for j, (shape, value) in enumerate(beginnings[layer])]  # fmt: skip
    return slots, recurrent


class Past(Memory):
    """Tensors in, tensors out: nothing is written in place, and nothing is forgotten behind a window."""

    def __init__(self, slots: Sequence[Slot], past: Sequence[Tensor]) -> None:
        self.slots, self.parts, self.states = slots, dict[int, tuple[Tensor, ...]](), dict[int, tuple[Tensor, ...]]()
        for layer in {s.layer for s in slots}:
            mine = [(s, p) for s, p in zip(slots, past, strict=True) if s.layer == layer]
            self.parts[layer] = tuple(p for s, p in mine if s.grows)
            self.states[layer] = tuple(p for s, p in mine if not s.grows)
        grown = [p for s, p in zip(slots, past, strict=True) if s.grows]
        self.length = grown[0].shape[2] if grown else 0  # of recurrent layers alone, which have no positions

    def context(self, tokens: int, device: torch.device | str = "cpu") -> Context:
        return Context(torch.arange(tokens, device=device) + self.length, cache=self)

    def remember(self, ctx: Context, window: int | None, *new: Tensor) -> tuple[tuple[Tensor, ...], Seen]:
        parts = tuple(torch.cat(pair, 2) for pair in zip(self.parts[ctx.layer], new, strict=True))
        self.parts[ctx.layer] = parts
        keys = torch.arange(parts[0].shape[2], device=new[0].device)
        return parts, Seen(ctx.positions, keys, visible(ctx.positions, keys, window))

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        return self.states.get(layer) or None

    def keep(self, layer: int, *state: Tensor) -> None:
        self.states[layer] = state

    def advance(self, tokens: int) -> None:
        """What was written is already held."""

    @property
    def present(self) -> tuple[Tensor, ...]:
        """In the order of the slots."""
        out, at = [], dict[tuple[int, bool], int]()
        for s in self.slots:
            j = at.get((s.layer, s.grows), 0)
            at[s.layer, s.grows] = j + 1
            out.append((self.parts if s.grows else self.states)[s.layer][j])
        return tuple(out)


class _Held(Memory):
    """One recurrent layer's state, for one step."""

    def __init__(self, state: tuple[Tensor, ...]) -> None:
        self.held = state

    def context(self, tokens: int, device: torch.device | str = "cpu") -> Context:
        return Context(torch.zeros(tokens, dtype=torch.int64, device=device), cache=self)

    def remember(self, ctx: Context, window: int | None, *new: Tensor) -> tuple[tuple[Tensor, ...], Seen]:
        raise NotImplementedError("a recurrent layer keeps a state")

    def state(self, layer: int) -> tuple[Tensor, ...]:
        return self.held

    def keep(self, layer: int, *state: Tensor) -> None:
        self.held = state

    def advance(self, tokens: int) -> None:
        """The state is the layer's own affair."""


class Recurrence(nn.Module):
    """A recurrent layer, token by token.

    Args:
        mixer: the layer.
        beginning: of its state.
    """

    def __init__(self, mixer: nn.Module, beginning: Beginning) -> None:
        super().__init__()
        self.mixer, self.beginning = mixer, beginning

    def forward(self, u: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        state = None if ctx.cache is None else ctx.cache.state(ctx.layer)
        if state is None:
            state = tuple(u.new_full((u.shape[0], *shape), value) for shape, value in self.beginning)

        def step(state: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
            memory = _Held(tuple(state))
            y = self.mixer(x[:, None], memory.context(1))
            return [part.clone(memory_format=torch.contiguous_format) for part in memory.held], y[:, 0]

        last, y = scan(step, list(state), u.transpose(0, 1), dim=0)
        if ctx.cache is not None:
            ctx.cache.keep(ctx.layer, *last)
        return y.transpose(0, 1)
