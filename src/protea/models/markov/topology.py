r"""Which steps a chain may take: a mask over (begin, states, silent states) x (states, silent states, end).

Row 0 is the begin, rows 1 .. K the states that emit, rows K+1 .. K+S the silent ones; columns 0 .. K-1 are the states,
K .. K+S-1 the silent ones, and the last one is the end. A chain without an allowed end runs for as many steps as it is
asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protea.errors import ConfigError, nearest


@dataclass(frozen=True, eq=False)
class Topology:
    """A mask, checked.

    Args:
        mask: boolean (1 + K + S, K + S + 1).
        silent: S, states that emit nothing; they must not form a cycle.
        names: of the K + S states, for people.

    Raises:
        ConfigError: a mask of another shape, a state that can be reached but not left, no way from the begin to a state
            that emits, a cycle of silent states, or an end that some reachable state can never come to.
    """

    mask: Tensor
    silent: int = 0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        mask, every = self.mask, self.mask.shape[-1] - 1
        if mask.dtype != torch.bool or mask.shape != (every + 1, every + 1) or not 0 <= self.silent < every:
            raise ConfigError(
                f"A mask of shape {tuple(mask.shape)} and type {mask.dtype} with {self.silent} silent states is none.",
                "It is boolean, (1 + states + silent, states + silent + 1).",
            )
        step = mask[1:, :-1]
        reached = _closure(step, mask[0, :-1])
        stuck = (reached & ~mask[1:].any(1)).nonzero()[:, 0].tolist()
        if stuck:
            raise ConfigError(f"State {self.name(stuck[0])} can be reached, but nothing may follow it.",
                              "Allow it to stay, to move on, or to end.")  # fmt: skip
        if not bool(reached[: self.states].any()):
            raise ConfigError("The mask leaves no path from the begin to a state that emits.", "Allow a first state.")
        quiet = step[self.states :, self.states :]
        power = quiet.double()
        for _ in range(self.silent.bit_length()):
            power = (power @ power).clamp(max=1)
        if bool(power.any()):
            raise ConfigError("The silent states form a cycle.", "A path may pass through each of them once at most.")
        if self.ends:
            home = _closure(step.T, mask[1:, -1])
            lost = (reached & ~home).nonzero()[:, 0].tolist()
            if lost:
                raise ConfigError(f"State {self.name(lost[0])} can be reached, but no path leads from it to the end.",
                                  "Allow a way to the end, or forbid every end.")  # fmt: skip

    @property
    def states(self) -> int:
        """K."""
        return self.mask.shape[1] - 1 - self.silent

    @property
    def ends(self) -> bool:
        """Whether the chain decides when a sequence ends."""
        return bool(self.mask[:, -1].any())

    def name(self, state: int) -> str:
        """What to call a state."""
        return self.names[state] if self.names else str(state)


def _closure(step: Tensor, first: Tensor) -> Tensor:
    """States that can be reached from those in `first` (S,) by steps (S, S)."""
    reached, now = first.clone(), first
    while bool(now.any()):
        now = (step & now[:, None]).any(0) & ~reached
        reached |= now
    return reached


def from_masks(start: Tensor, transition: Tensor, end: Tensor | None = None) -> Topology:
    """From masks of first states (K,), transitions (K, K) and, where the chain is to end by itself, ends (K,)."""
    k = len(start)
    if transition.shape != (k, k) or (end is not None and end.shape != (k,)):
        raise ConfigError(f"Masks of shapes {tuple(start.shape)} and {tuple(transition.shape)} do not fit.",
                          "Give (K,) first states, (K, K) transitions and (K,) ends.")  # fmt: skip
    mask = torch.zeros(k + 1, k + 1, dtype=torch.bool)
    mask[0, :-1], mask[1:, :-1] = start.bool(), transition.bool()
    if end is not None:
        mask[1:, -1] = end.bool()
    return Topology(mask)


def ergodic(k: int) -> Topology:
    """Every state may follow every other."""
    return from_masks(torch.ones(k), torch.ones(k, k))


def left_to_right(k: int, skip: int = 0) -> Topology:
    """From the first state on, staying or moving up to 1 + skip states ahead (Bakis; Rabiner 1989, section IV.B).

    >>> left_to_right(3).mask[1:, :-1].int().tolist()
    [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    """
    ahead = torch.arange(k) - torch.arange(k)[:, None]
    return from_masks(torch.arange(k) == 0, (ahead >= 0) & (ahead <= 1 + skip))


def banded(k: int, width: int = 1) -> Topology:
    """Moves of at most `width` states either way."""
    ahead = torch.arange(k) - torch.arange(k)[:, None]
    return from_masks(torch.ones(k), ahead.abs() <= width)


def cyclic(k: int) -> Topology:
    """Staying or moving to the next state, the last one's next being the first: seasons, phases."""
    ahead = (torch.arange(k) - torch.arange(k)[:, None]) % k
    return from_masks(torch.ones(k), ahead <= 1)


TOPOLOGIES = {"ergodic": ergodic, "left-to-right": left_to_right, "banded": banded, "cyclic": cyclic}


def topology(name: str, k: int) -> Topology:
    """A topology by its name."""
    if name not in TOPOLOGIES:
        raise ConfigError(f"There is no topology {name!r}.", nearest(name, TOPOLOGIES))
    if k < 1:
        raise ConfigError(f"A chain of {k} states makes no sense.", "Give at least one.")
    return TOPOLOGIES[name](k)


def profile(length: int) -> Topology:
    r"""The profile HMM of a family of sequences with `length` match columns: matches M, inserts I, silent deletes D.

        begin -> M_1 I_0 D_1,   M_k, I_k, D_k -> M_{k+1} I_k D_{k+1},   M_L, I_L, D_L -> I_L end

    States that emit are M_1 .. M_L, then I_0 .. I_L (Krogh et al. 1994, "Hidden Markov models in computational
    biology"; Durbin et al. 1998, "Biological sequence analysis", chapter 5).
    """
    if length < 1:
        raise ConfigError(f"A profile of {length} columns makes no sense.", "Give at least one.")
    emitting, end = 2 * length + 1, 3 * length + 1
    mask = torch.zeros(end + 1, end + 1, dtype=torch.bool)
    k = torch.arange(length + 1)
    # Row 0 is both the begin and what a match M_0 would be; M_k and I_k and D_k are rows of their own from there on.
    rows_m = k
    rows_i = 1 + length + k
    rows_d = 1 + emitting + k[:-1]  # D_1 .. D_L
    for rows, at in ((rows_m, k), (rows_i, k), (rows_d, k[1:])):
        mask[rows, length + at] = True  # to I_k
        on = at < length
        mask[rows[on], at[on]] = True  # to M_{k+1}, which is column k
        mask[rows[on], emitting + at[on]] = True  # to D_{k+1}
        mask[rows[~on], end] = True
    names = [f"M{i}" for i in range(1, length + 1)] + [f"I{i}" for i in range(length + 1)]
    return Topology(mask, length, tuple(names + [f"D{i}" for i in range(1, length + 1)]))
