"""Prompts that begin alike are computed once (Kwon et al. 2023; Zheng et al. 2024, "RadixAttention").

What was computed of a prompt is kept in units of whole blocks, each found by the one before it and its tokens: no
hash can mistake one text for another. Units are given up, the longest unused first, when blocks run short.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from protea.serving.blocks import Blocks, Table, Text, Window

Key = tuple[int, tuple[int, ...]]  # number of the unit before, tokens of this one


@dataclass(eq=False)
class Unit:
    """Blocks of a stretch of text, and the states of recurrent layers after it."""

    number: int
    blocks: dict[Window, list[int]]
    states: dict[int, tuple[Tensor, ...]]


class PromptCache:
    """Stretches of `unit` tokens that texts may begin with.

    Args:
        blocks: where they lie.
        unit: a multiple of the block.

    `looked_up` and `found` count tokens of prompts.
    """

    def __init__(self, blocks: Blocks, unit: int) -> None:
        self.blocks, self.unit, self.each = blocks, unit, unit // blocks.block
        self.units: OrderedDict[Key, Unit] = OrderedDict()
        self.made = self.looked_up = self.found = 0
        blocks.make_room = self.give_up

    def find(self, ids: Sequence[int]) -> Text:
        """A text that begins with as much of the prompt as is known, less its last token (whose logits are wanted)."""
        self.looked_up += len(ids)
        path: list[tuple[Key, Unit]] = []
        number = 0
        for start in range(0, len(ids) - self.unit, self.unit):
            key = (number, tuple(ids[start : start + self.unit]))
            if (unit := self.units.get(key)) is None:
                break
            path.append((key, unit))
            number = unit.number
        while path and not self._whole(path):
            path.pop()
        for key, _ in reversed(path):  # so that beginnings are the last to be given up
            self.units.move_to_end(key)
        text = self.blocks.new()
        text.length = len(path) * self.unit
        self.found += text.length
        if path:
            text.states = dict(path[-1][1].states)
        for window, pool in self.blocks.pools.items() if path else ():
            table = self.blocks.table(text, window)
            table.first, table.last = self._first(window, text.length), text.length // self.blocks.block
            ids_of = [block for _, unit in path for block in unit.blocks[window]]
            for i in range(table.first, table.last):
                pool.share(ids_of[i])
                table.ids[i] = ids_of[i]
        return text

    def _first(self, window: Window, length: int) -> int:
        """The first block that tokens after `length` see."""
        return 0 if window is None else max(0, length - window + 1 - self.blocks.spare) // self.blocks.block

    def _whole(self, path: list[tuple[Key, Unit]]) -> bool:
        length = len(path) * self.unit
        if bool(self.blocks.stateful) != bool(path[-1][1].states):
            return False
        for window in self.blocks.pools:
            held = [block for _, unit in path for block in unit.blocks[window]]
            if any(block < 0 for block in held[self._first(window, length) :]):
                return False
        return True

    def keep(self, text: Text, ids: Sequence[int]) -> None:
        """Remember the beginning of a text, as far as it is whole units; `ids` are its tokens."""
        number = 0
        for start in range(0, text.length - self.unit + 1, self.unit):
            key, end = (number, tuple(ids[start : start + self.unit])), start + self.unit
            unit = self.units.get(key)
            here = {w: self._held(text.tables[w], start) for w in self.blocks.pools}
            if unit is None:
                self.made += 1
                unit = self.units[key] = Unit(self.made, {w: [-1] * self.each for w in here}, {})
            if end == text.length and not unit.states:
                unit.states = dict(text.states)
            for window, blocks in here.items():
                mine = unit.blocks.setdefault(window, [-1] * self.each)
                for i, block in enumerate(blocks):
                    if mine[i] < 0 <= block:
                        self.blocks.pools[window].share(block)
                        mine[i] = block
            number = unit.number

    def _held(self, table: Table, start: int) -> list[int]:
        first = start // self.blocks.block
        return [int(b) for b in table.ids[first : first + self.each]]

    def give_up(self) -> bool:
        """Forget the unit that was unused for longest; False if there is none."""
        if not self.units:
            return False
        _, unit = self.units.popitem(last=False)
        for window, held in unit.blocks.items():
            for block in held:
                if block >= 0:
                    self.blocks.pools[window].drop(block)
        return True

    def clear(self) -> None:
        """Forget everything (the model has learnt something else)."""
        while self.give_up():
            pass
