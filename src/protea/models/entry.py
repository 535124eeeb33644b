"""One line of the registry: how to name, size and build a family of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protea.core import Model
from protea.space import Rows, Space


def _nothing(space: Space) -> str:
    return ""


@dataclass(frozen=True)
class Entry:
    """A family of models that `protea fit NAME` and `protea compare` know.

    Args:
        name: what a user types.
        family: classical, latent, adversarial, flow, diffusion, autoregressive.
        title: the model's usual name.
        source: the paper, as "Author Year, title".
        suits: kinds of space it can model.
        config: a frozen dataclass of plain JSON values with the field's usual names.
        build: (space, config) to an untrained model; data-dependent buffers come by `initialise` or from a file.
        suggest: (space, training rows, budget in seconds) to a config that gives a sane result.
        refuses: a space of a kind that suits to why it cannot be modelled all the same (no labels, say); "" if it can.
            `compare` leaves such models out unless they are asked for by name.
        usual: whether `compare` takes it unasked; variants of others and slow special cases wait to be named.
    """

    name: str
    family: str
    title: str
    source: str
    suits: frozenset[str]
    config: type
    build: Callable[[Space, Any], Model]
    suggest: Callable[[Space, Rows, float], Any]
    refuses: Callable[[Space], str] = _nothing
    usual: bool = True
