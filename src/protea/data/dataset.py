"""A data set that is ready to be learnt from: split rows in a space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protea.data.preflight import Preflight, preflight
from protea.data.split import FRACTIONS, assign, digests, fingerprint, row_keys, split_hash
from protea.errors import DataError
from protea.space import Rows, Space
from protea.spaces import Tokens


@dataclass(frozen=True)
class Dataset:
    """A data set, split by content.

    Args:
        name: short, for people and file names.
        source: where it came from.
        space: what a sample is.
        train, validation, holdout: the parts; `ids` are the numbers of the rows in the source.
        fingerprint: sha256 of the content, whatever the order of the rows.
        split_hash: sha256 of the split.
        target: the column a table is to predict, or None.
        preflight: facts and warnings.
    """

    name: str
    source: str
    space: Space
    train: Rows
    validation: Rows
    holdout: Rows
    fingerprint: str
    split_hash: str
    target: str | None
    preflight: Preflight

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} + {len(self.validation)} + {len(self.holdout)} rows"
        return f"<Dataset {self.name}: {self.space.kind} {self.space.event}, {sizes}>"


@dataclass(frozen=True)
class Loaded:
    """What a reader of one format returns: labelled examples in canonical units, in the order of the source."""

    name: str
    source: str
    space: Space
    x: Tensor
    y: Tensor | None = None
    target: Any = None
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Documents:
    """What a reader of text returns: documents as bytes, in the order of the source."""

    name: str
    source: str
    documents: list[bytes]
    separator: bytes = b"\n\n"
    notes: tuple[str, ...] = ()


def split_rows(loaded: Loaded, seed: int, fractions: tuple[float, float, float] = FRACTIONS) -> Dataset:
    """Split examples by their content."""
    if len(loaded.x) == 0:
        raise DataError(f"{loaded.source} holds no rows.", "Give a file with data in it.")
    keys = row_keys(loaded.space, loaded.x)
    part = assign(keys, seed, fractions)
    ids = torch.arange(len(keys))
    parts = []
    for p in range(3):
        mine = torch.from_numpy((part == p).nonzero()[0])
        parts.append(Rows(loaded.x[mine], None if loaded.y is None else loaded.y[mine], ids[mine]))
    facts = preflight(
        loaded.space,
        loaded.x,
        loaded.y,
        keys=keys,
        part=part,
        target=loaded.target,
        left_out=loaded.left_out,
        notes=loaded.notes,
    )
    return Dataset(
        loaded.name,
        loaded.source,
        loaded.space,
        *parts,
        fingerprint(loaded.space, keys, loaded.y),
        split_hash(keys, part),
        loaded.target,
        facts,
    )


def split_documents(
    text: Documents, space: Tokens | Callable[[Sequence[bytes]], Tokens], seed: int,
    fractions: tuple[float, float, float] = FRACTIONS,
) -> Dataset:  # fmt: skip
    """Split text by documents, then join each part and cut it into blocks of T tokens (ragged tails are dropped).

    Args:
        space: or a function that makes it from the documents of the training part, such as by learning a tokenizer.
    """
    documents = [d for d in text.documents if d.strip()]
    if not documents:
        raise DataError(f"{text.source} holds no text.", "Give a file with text in it.")
    keys = digests(documents)
    part = assign(keys, seed, fractions)
    parts = [[documents[i] + text.separator for i in (part == p).nonzero()[0]] for p in range(3)]
    if not isinstance(space, Tokens):
        space = space(parts[0])
    blocks, tails, unit = [], 0, space.unit
    for mine, name in zip(parts, ("train", "validation", "holdout")):
        ids = space.tokenise(mine)
        if len(ids) < space.length:
            raise DataError(
                f"The {name} part of {text.source} has {len(ids)} {unit}s, too few for one block of "
                f"{space.length} tokens.",
                "Give more text, or shorter blocks: block=32.",
            )
        blocks.append(space.encode(space.blocks(ids)))
        tails += len(ids) % space.length
    ends = np.cumsum([len(b) for b in blocks])
    ids = [torch.arange(int(end) - len(b), int(end)) for b, end in zip(blocks, ends)]
    x = torch.cat(blocks)
    origin = np.repeat(np.arange(3), [len(b) for b in blocks])
    notes = (
        *text.notes,
        f"{len(documents)} documents, split as wholes and joined into blocks of {space.length} {unit}s; "
        f"{tails} {unit}s at the ends of the parts are not used",
    )
    facts = preflight(space, x, None, keys=row_keys(space, x), part=origin, notes=notes)
    repeated = len(documents) - len(np.unique(keys, axis=0))
    if repeated:
        said = f"{repeated} of {len(documents)} documents repeat an earlier one; copies stay in one part of the split"
        facts = Preflight(**{**facts.__dict__, "warnings": (*facts.warnings, said)})
    rows = [Rows(b, None, i) for b, i in zip(blocks, ids)]
    return Dataset(
        text.name, text.source, space, *rows, fingerprint(space, keys, None), split_hash(keys, part), None, facts
    )
