"""Which family describes which column: from the fields of a space to a product of families."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protea.distributions.bernoulli import Bernoulli
from protea.distributions.discretised import Discretised
from protea.distributions.family import Family
from protea.distributions.gaussian import Gaussian
from protea.distributions.histogram import MAX_LEVELS, Histogram
from protea.distributions.multinomial import Multinomial
from protea.distributions.optional import Optional
from protea.distributions.product import Product, Shaped
from protea.errors import ConfigError
from protea.space import Field, Space

KINDS = ("gaussian", "bernoulli", "categorical", "multinomial", "histogram")


def usual_kinds(fields: Sequence[Field], numbers: str = "gaussian") -> list[str]:
    """One of KINDS for each field: codes and grids of up to 32 declared levels are categorical, other numbers as told.

    >>> usual_kinds([Field("x", "real"), Field("city", "category", levels=5), Field("pixel", "grid", levels=256)])
    ['gaussian', 'categorical', 'gaussian']
    """
    return ["categorical" if f.kind == "category" or 0 < f.levels <= 32 else numbers for f in fields]


def check_kinds(kinds: Sequence[str], fields: Sequence[Field]) -> None:
    """Raise ConfigError where a kind cannot describe its field, by name."""
    if len(kinds) != len(fields):
        raise ConfigError(f"{len(kinds)} kinds were given for {len(fields)} columns.", "Give one each, or one name.")
    for kind, f in zip(kinds, fields):
        if kind not in KINDS:
            raise ConfigError(f"There is no kind of column {kind!r}.", f"Give one of {', '.join(KINDS)}.")
        coded = f.kind == "category" or 0 < f.levels <= MAX_LEVELS
        if kind == "categorical" and not coded:
            raise ConfigError(f"The column {f.name!r} has no fixed levels, so it is not categorical.",
                              "Use histogram or gaussian.")  # fmt: skip
        if kind in ("gaussian", "multinomial") and f.kind == "category":
            raise ConfigError(f"The column {f.name!r} holds names of categories, so it is not {kind}.",
                              "Use categorical.")  # fmt: skip
        if kind == "multinomial" and f.missing:
            raise ConfigError(f"The counts {f.name!r} have missing values, which a total cannot have.",
                              "Use another kind, or fill them with 0.")  # fmt: skip


def columns_family(
    members: int, fields: Sequence[Field], kinds: Sequence[str], *, smoothing: float = 1.0, strength: float = 0.0,
    bins: int = 64, floor: float = 1e-6,
) -> Product:  # fmt: skip
    """A product of the families that the kinds name, columns of one kind together.

    Args:
        members: K.
        fields, kinds: one a column. "gaussian" is a normal density for reals and a normal rounded to the grid, with
            exact masses, for grids; "histogram" and "categorical" are `Histogram`, whose bins of codes are the codes;
            "bernoulli" is for values 0 and 1; the "multinomial" columns are one vector of counts.
        smoothing: pseudo-count of probabilities.
        strength: rows distributed as all rows are, in place of `smoothing` in histograms and categories.
        bins: of histograms.
        floor: of variances of reals, in squared units.

    Raises:
        ConfigError: a kind that does not exist or cannot describe its column.
    """
    check_kinds(kinds, fields)
    groups: dict[tuple[str, bool], list[int]] = {}
    for c, (kind, f) in enumerate(zip(kinds, fields)):
        if kind == "gaussian" and f.kind == "grid":
            kind = "rounded"
        inside = "histogram" if kind == "categorical" else kind
        groups.setdefault((inside, f.missing and inside != "histogram"), []).append(c)
    parts: list[tuple[list[int], Family]] = []
    for (kind, missing), columns in groups.items():
        own, event = [fields[c] for c in columns], (len(columns),)
        family: Family
        if kind == "histogram":
            family = Histogram(members, own, bins=bins, smoothing=smoothing, strength=strength)
        elif kind == "gaussian":
            family = Gaussian(members, event, "diag", floor)
        elif kind == "rounded":
            family = Discretised(members, own)
        elif kind == "bernoulli":
            family = Bernoulli(members, event, smoothing)
        else:
            family = Multinomial(members, event, smoothing)
        parts.append((columns, Optional(family, smoothing) if missing else family))
    return Product(parts)


def in_space(family: Family, space: Space) -> Family:
    """The family in the shape and dtype of a space's samples."""
    if family.event == space.event and space.dtype == torch.float64:
        return family
    return Shaped(family, space.event, space.dtype)
