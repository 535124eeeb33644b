"""What makes an architecture: one frozen config, one builder, and how other people's files spell both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from protea.models.autoregressive.decoder import Decoder

Convert = Callable[[list[Tensor]], list[Tensor]]


def same(tensors: list[Tensor]) -> list[Tensor]:
    """No change."""
    return tensors


def settled(config: Any, names: Collection[str]) -> Any:
    """config.json says all."""
    return config


@dataclass(frozen=True)
class Weight:
    """One group of tensors that both sides hold, perhaps cut otherwise.

    Args:
        ours: names in our state dict.
        theirs: names in theirs.
        load: their tensors, in the order of `theirs`, to ours, in the order of `ours`.
        save: the inverse.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    load: Convert = same
    save: Convert = same


@dataclass(frozen=True)
class HuggingFace:
    """How a Hugging Face folder spells an architecture.

    Args:
        model_type: of config.json.
        model_class: in `architectures` of config.json.
        read: their config.json to ours; raises `DataError` where it asks for what we do not have.
        write: ours, and the number of tokens, to their config.json (less model_type and architectures).
        weights: our config to the tensors of the two sides. Tied heads have no entry.
        settle: (our config, names of the tensors that a folder holds) to the config, where only they decide.
    """

    model_type: str
    model_class: str
    read: Callable[[Mapping[str, Any]], Any]
    write: Callable[[Any, int], dict[str, Any]]
    weights: Callable[[Any], Sequence[Weight]]
    settle: Callable[[Any, Collection[str]], Any] = settled


@dataclass(frozen=True)
class Architecture:
    """One line of `ARCHITECTURES`.

    Args:
        name: what a user types.
        title, source: for people; the paper as "Author Year, title".
        config: frozen dataclass of plain JSON values with the field's usual names, `context` among them.
        build: (config, ids it reads, ids it predicts) to an initialised network.
        scaled: (n_layers, d_model, context) to a config of sane proportions, to be trained from nothing.
        hf: how Hugging Face spells it, or None.
    """

    name: str
    title: str
    source: str
    config: type
    build: Callable[[Any, int, int], Decoder]
    scaled: Callable[[int, int, int], Any]
    hf: HuggingFace | None = None
