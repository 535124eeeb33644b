"""Paged memory (Kwon et al. 2023, "PagedAttention"): keys and values in blocks of a few tokens, found by a table.

A *kind* of layer is the window it sees (None: the whole text); layers of one kind share tables. A text's table
names, for each of its blocks of `block` tokens, where in the pool it lies. Blocks are counted: texts that begin alike
share them, and a shared one is copied before it is written (copy on write). Layers with a window give back the blocks
that no token to come will see, so that their memory does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from protea.errors import ConfigError, DataError

Window = int | None


class Pool:
    """Counted blocks 0 .. size - 1 of one kind.

    >>> pool = Pool(2)
    >>> a = pool.take(); pool.share(a); pool.drop(a); pool.used, pool.refs[a]
    (1, 1)
    """

    def __init__(self, size: int) -> None:
        self.size, self.refs = size, [0] * size
        self.free = list(range(size - 1, -1, -1))  # the low ones first, so that few pages are ever touched

    @property
    def used(self) -> int:
        """Blocks held by anyone."""
        return self.size - len(self.free)

    def take(self) -> int:
        """A block of nobody's, counted once."""
        block = self.free.pop()
        self.refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder."""
        self.refs[block] += 1

    def drop(self, block: int) -> None:
        """One holder less; the last one frees it."""
        self.refs[block] -= 1
        if self.refs[block] == 0:
            self.free.append(block)


@dataclass(eq=False)
class Table:
    """Where the blocks of a text lie, of one kind: `ids[first:last]` are held, the others -1."""

    ids: np.ndarray
    first: int = 0
    last: int = 0
    address: int = field(init=False)  # of the ids, for the compiled kernels

    def __post_init__(self) -> None:
        self.address = self.ids.ctypes.data


@dataclass(eq=False)
class Text:
    """What is remembered of one text. Made by `Blocks.new`.

    Args:
        length: tokens remembered.
        tables: for each kind.
        states: for each recurrent layer.
        own: the memory of a model that has another kind.
    """

    length: int = 0
    tables: dict[Window, Table] = field(default_factory=dict)
    states: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    own: Any = None


class Blocks:
    """The pools of all kinds, and the tensors behind them.

    Args:
        tokens: how many the pool of each kind holds.
        longest: most tokens of one text.
        block: tokens of a block.
        spare: tokens that may be taken back from a text (`retract`) though a window has passed them.

    >>> import torch
    >>> blocks = Blocks(tokens=32, longest=16, block=4)
    >>> k, = blocks.layer(0, None, torch.zeros(1, 2, 1, 8))     # 8 blocks x 2 heads x 4 tokens x 8
    >>> text = blocks.new(); blocks.prepare(text, 5); blocks.advance(text, 5)
    >>> k.shape, blocks.pools[None].used
    (torch.Size([8, 2, 4, 8]), 2)
    """

    def __init__(self, tokens: int, longest: int, block: int = 16, spare: int = 1) -> None:
        if min(tokens, longest, block, spare) < 1 or tokens < longest:
            raise ConfigError(
                f"A pool of {tokens} tokens in blocks of {block} cannot hold texts of {longest}.",
                "Give positive numbers, and a pool of at least one text.",
            )
        self.size, self.longest, self.block, self.spare = -(-tokens // block), longest, block, spare
        self.pools: dict[Window, Pool] = {}
        self.store: dict[int, tuple[Tensor, ...]] = {}
        self.kinds: dict[int, Window] = {}
        self.stateful = False  # whether some layer keeps a state
        self.make_room: Callable[[], bool] = lambda: False  # a prompt cache gives up a block

    def layer(self, layer: int, window: Window, *new: Tensor) -> tuple[Tensor, ...]:
        """The tensors (blocks, H, block, D) of a layer whose parts are like `new` (B, H, T, D); made at first use."""
        if layer not in self.store:
            self.pools.setdefault(window, Pool(self.size))
            self.kinds[layer] = window
            self.store[layer] = tuple(p.new_zeros(self.size, p.shape[1], self.block, p.shape[3]) for p in new)
        return self.store[layer]

    def new(self) -> Text:
        """An empty text."""
        return Text()

    def table(self, text: Text, window: Window) -> Table:
        """The table of a text for one kind."""
        if window not in text.tables:
            text.tables[window] = Table(np.full(-(-self.longest // self.block) + 1, -1, dtype=np.int32))
        return text.tables[window]

    def _take(self, pool: Pool) -> int:
        while not pool.free:
            if not self.make_room():
                raise DataError(
                    f"All {pool.size} blocks of {self.block} tokens are held.", "Give the engine a larger memory."
                )
        return pool.take()

    def prepare(self, text: Text, tokens: int) -> None:
        """Have blocks of the text's own for `tokens` tokens more.

        Raises:
            DataError: the text would be longer than `longest`, or every block is held.
        """
        end = text.length + tokens
        if end > self.longest:
            raise DataError(f"A text of {end} tokens exceeds the memory's {self.longest}.", "Ask for fewer tokens.")
        for window, pool in self.pools.items():
            table = self.table(text, window)
            for i in range(text.length // self.block, min(table.last, -(-end // self.block))):
                if i >= table.first and pool.refs[table.ids[i]] > 1:
                    self._own(window, table, i)
            while table.last * self.block < end:
                table.ids[table.last] = self._take(pool)
                table.last += 1

    def _own(self, window: Window, table: Table, i: int) -> None:
        pool, old = self.pools[window], int(table.ids[i])
        new = self._take(pool)
        for layer, kind in self.kinds.items():
            if kind == window:
                for part in self.store[layer]:
                    part[new] = part[old]
        pool.drop(old)
        table.ids[i] = new

    def advance(self, text: Text, tokens: int) -> None:
        """Tokens were written; give back the blocks that windows have passed."""
        text.length += tokens
        for window, table in text.tables.items():
            if window is not None:
                keep = max(0, text.length - (window - 1) - self.spare) // self.block
                for i in range(table.first, min(keep, table.last)):
                    self.pools[window].drop(int(table.ids[i]))
                    table.ids[i] = -1
                table.first = max(table.first, min(keep, table.last))

    def retract(self, text: Text, tokens: int) -> None:
        """Forget the last tokens. States are not touched: put back a copy (`text.states`).

        Raises:
            DataError: more than the text has, or what a window would then see is gone (see `spare`).
        """
        length = text.length - tokens
        lost = any(w is not None and t.first * self.block > max(0, length - w + 1) for w, t in text.tables.items())
        if length < 0 or lost:
            raise DataError(
                f"{tokens} of {text.length} tokens cannot be taken back (spare {self.spare}).",
                "Make the memory with a `spare` of as many tokens as are to be taken back.",
            )
        text.length = length
        for window, table in text.tables.items():
            need = max(-(-text.length // self.block), table.first)
            for i in range(need, table.last):
                self.pools[window].drop(int(table.ids[i]))
                table.ids[i] = -1
            table.last = min(table.last, need)

    def fork(self, text: Text) -> Text:
        """A second text that begins with this one, sharing its blocks."""
        twin = Text(text.length, states=dict(text.states))
        for window, table in text.tables.items():
            twin.tables[window] = Table(table.ids.copy(), table.first, table.last)
            for block in table.ids[table.first : table.last]:
                self.pools[window].share(int(block))
        return twin

    def release(self, text: Text) -> None:
        """Forget a text."""
        for window, table in text.tables.items():
            for block in table.ids[table.first : table.last]:
                self.pools[window].drop(int(block))
        text.tables, text.states, text.length, text.own = {}, {}, 0, None

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that are held (states are the texts' own)."""
        return sum(
            part[0].nbytes * self.pools[self.kinds[layer]].used for layer, parts in self.store.items() for part in parts
        )
