"""Spaces: what a sample is to the user. `space_from_json` rebuilds a saved one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protea.errors import CheckpointError
from protea.space import Space
from protea.spaces.columns import Column
from protea.spaces.constraints import Constraint, FixedCombinations, Inequality, NotNull, Range, Sum
from protea.spaces.image import Image
from protea.spaces.sampling import constrained_sample
from protea.spaces.series import Series
from protea.spaces.table import Table
from protea.spaces.tokens import Tokens
from protea.spaces.vector import Vector

SPACES: dict[str, Callable[[dict[str, Any]], Space]] = {
    "vector": Vector.from_json,
    "table": Table.from_json,
    "image": Image.from_json,
    "tokens": Tokens.from_json,
    "series": Series.from_json,
}


def space_from_json(value: dict[str, Any]) -> Space:
    """Rebuild a space from what its `to_json` wrote.

    >>> space_from_json(Image(1, 8, 8, levels=17).to_json())
    Image(channels=1, height=8, width=8, levels=17, classes=())
    """
    kind = value.get("kind")
    if kind not in SPACES:
        raise CheckpointError(f"There is no space of kind {kind!r}.", f"Known: {', '.join(SPACES)}.")
    try:
        return SPACES[kind](value)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The description of a {kind} space is damaged: {error!r}.", "Save the run again."
        ) from None


__all__ = [
    "Column", "Constraint", "FixedCombinations", "Image", "Inequality", "NotNull", "Range", "SPACES", "Series", "Sum",
    "Table", "Tokens", "Vector", "constrained_sample", "space_from_json",
]  # fmt: skip
