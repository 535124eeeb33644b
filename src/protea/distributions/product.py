r"""A product of families: mixed columns in one model.

    p(x | k) = prod_i p_i(x_{c_i} | k)

where part i describes the columns c_i of x, and all parts have the same members. Given the member, parts are
independent; a mixture of products is latent class analysis (Lazarsfeld & Henry 1968) for discrete columns, latent
profile analysis for continuous ones, and both at once for mixed tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions.family import Density, Family
from protea.errors import ConfigError
from protea.rng import Streams


class Product(Family):
    """Families side by side over the columns of x (B, C).

    Args:
        parts: (columns, family) pairs; a family of event (d,) takes d columns, one of event () takes one.

    Raises:
        ConfigError: no parts, parts of unlike members, columns that overlap or leave gaps.

    >>> from protea.distributions.bernoulli import Bernoulli
    >>> from protea.distributions.gaussian import Gaussian
    >>> family = Product([((0, 2), Gaussian(3, (2,), "diag")), ((1,), Bernoulli(3, (1,)))])
    >>> family.event, family.log_prob(torch.tensor([[0.5, 1.0, 2.0]])).shape
    ((3,), torch.Size([1, 3]))
    """

    def __init__(self, parts: Sequence[tuple[Sequence[int], Family]]) -> None:
        super().__init__()
        columns = [list(c) for c, _ in parts]
        flat = sorted(c for part in columns for c in part)
        if not parts or flat != list(range(len(flat))):
            raise ConfigError(f"Parts describe the columns {flat}.", "Give every column from 0 to one part.")
        sizes = sorted({family.members for _, family in parts})
        wrong = [i for i, (c, f) in enumerate(parts) if f.event not in ((len(c),), () if len(c) == 1 else (-1,))]
        if len(sizes) > 1 or wrong:
            raise ConfigError(f"Parts have {sizes} members; parts {wrong} do not fit their columns.",
                              "All parts need the same members, and an event of (columns,).")  # fmt: skip
        self.parts = nn.ModuleList([family for _, family in parts])
        self.columns = columns
        self.members, self.event = sizes[0], (len(flat),)
        self.width = max(family.width for _, family in parts)
        self.nan_is_value = any(family.nan_is_value for _, family in parts)

    def __iter__(self) -> Iterator[tuple[list[int], Family]]:
        for columns, family in zip(self.columns, self.parts):
            assert isinstance(family, Family)
            yield columns, family

    @staticmethod
    def _take(t: Tensor | None, columns: list[int], family: Family) -> Tensor | None:
        return None if t is None else t[:, columns].reshape(len(t), *family.event)

    def density(self, own: slice | None = None) -> Density:
        parts = [(columns, family, family.density(own)) for columns, family in self]

        def log_p(x: Tensor, observed: Tensor | None) -> Tensor:
            out = None
            for columns, family, density in parts:
                here = density(x[:, columns].reshape(len(x), *family.event), self._take(observed, columns, family))
                out = here if out is None else out + here
            assert out is not None
            return out

        return log_p

    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        out: Stats = {}
        for i, (columns, family) in enumerate(self):
            part = x[:, columns].reshape(len(x), *family.event)
            stats = family.expect(part, r, own, self._take(observed, columns, family))
            out |= {f"{i}.{name}": t for name, t in stats.items()}
        return out

    def _stats(self, stats: Stats, i: int) -> Stats:
        start = f"{i}."
        return {name[len(start) :]: t for name, t in stats.items() if name.startswith(start)}

    def maximise(self, stats: Stats) -> None:
        for i, (_, family) in enumerate(self):
            family.maximise(self._stats(stats, i))

    def expected(self, stats: Stats) -> Tensor:
        return torch.stack([family.expected(self._stats(stats, i)) for i, (_, family) in enumerate(self)]).sum()

    def log_prior(self) -> Tensor:
        return torch.stack([family.log_prior() for _, family in self]).sum()

    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        for columns, family in self:
            part = x[:, columns].reshape(len(x), *family.event)
            family.initialise(part, r, self._take(observed, columns, family))

    def allows(self, x: Tensor) -> Tensor | None:
        found = [family.allows(x[:, columns].reshape(len(x), *family.event)) for columns, family in self]
        known = [allowed for allowed in found if allowed is not None]
        return torch.stack(known).all(0) if known else None

    def coordinates(self, x: Tensor) -> Tensor:
        """Those of the parts, numbers at variance 1 each, so that no column counts more than another for its unit."""
        out = []
        for columns, family in self:
            c = family.coordinates(x[:, columns].reshape(len(x), *family.event))
            c = c - c.mean(0)
            square = c.square().mean(0)
            size = square if c.shape[1] == len(columns) else (square.sum() / len(columns)).expand_as(square)
            out.append(torch.where(size > 1e-24, c / size.clamp(min=1e-24).sqrt(), 0.0))
        return torch.cat(out, 1)

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        out = torch.empty(len(rng), *self.event, dtype=torch.float64, device=which.device)
        for i, (columns, family) in enumerate(self):
            out[:, columns] = family.draw(rng.child("part", i), which).reshape(len(rng), -1).to(torch.float64)
        return out

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        out = x.to(torch.float64).clone()
        for i, (columns, family) in enumerate(self):
            part = x[:, columns].reshape(len(x), *family.event)
            mask = observed[:, columns].reshape(part.shape)
            new = family.complete(rng.child("part", i), part, mask, which).reshape(len(x), -1).to(torch.float64)
            out[:, columns] = torch.where(observed[:, columns], out[:, columns], new)
        return out

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.members, *self.event, dtype=torch.float64)
        for columns, family in self:
            part = x[:, columns].reshape(len(x), *family.event)
            new = family.fill(part, observed[:, columns].reshape(part.shape))
            out[:, :, columns] = new.reshape(len(x), self.members, -1).to(torch.float64)
        return out

    def blend(self, x: Tensor, observed: Tensor, r: Tensor) -> Tensor:
        out = x.clone()
        for columns, family in self:
            part = x[:, columns].reshape(len(x), *family.event)
            new = family.blend(part, observed[:, columns].reshape(part.shape), r)
            out[:, columns] = new.reshape(len(x), -1).to(out.dtype)
        return out

    def free(self) -> int:
        return sum(family.free() for _, family in self)


class Shaped(Family):
    """A family of flat observations as one of another shape and dtype: pixels of an image.

    Args:
        inner: a family of event (D,), whose values are whole numbers where dtype is one of integers.
        event: the shape seen from outside, of D entries.
        dtype: of draws and completions.

    >>> from protea.distributions.bernoulli import Bernoulli
    >>> family = Shaped(Bernoulli(1, (4,)), (1, 2, 2), torch.uint8)
    >>> family.draw(Streams(0, 3), torch.zeros(3, dtype=torch.int64)).shape
    torch.Size([3, 1, 2, 2])
    """

    def __init__(self, inner: Family, event: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.event, self.dtype = inner, tuple(event), dtype
        self.members, self.width, self.nan_is_value = inner.members, inner.width, inner.nan_is_value

    def _flat(self, t: Tensor) -> Tensor:
        return t.reshape(len(t), *self.inner.event)

    def _mask(self, observed: Tensor | None) -> Tensor | None:
        return None if observed is None else self._flat(observed)

    def _shaped(self, x: Tensor) -> Tensor:
        whole = x if self.dtype.is_floating_point else x.round()
        return whole.to(self.dtype).reshape(len(x), *self.event)

    def density(self, own: slice | None = None) -> Density:
        inner = self.inner.density(own)
        return lambda x, observed: inner(self._flat(x), self._mask(observed))

    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        return self.inner.expect(self._flat(x), r, own, self._mask(observed))

    def maximise(self, stats: Stats) -> None:
        self.inner.maximise(stats)

    def expected(self, stats: Stats) -> Tensor:
        return self.inner.expected(stats)

    def log_prior(self) -> Tensor:
        return self.inner.log_prior()

    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        self.inner.initialise(self._flat(x), r, self._mask(observed))

    def coordinates(self, x: Tensor) -> Tensor:
        return self.inner.coordinates(self._flat(x))

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        return self._shaped(self.inner.draw(rng, which))

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        return self._shaped(self.inner.complete(rng, self._flat(x), self._flat(observed), which))

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        """In float64: means of whole numbers are not whole."""
        mean = self.inner.fill(self._flat(x).to(torch.float64), self._flat(observed))
        return mean.reshape(len(x), self.members, *self.event)

    def blend(self, x: Tensor, observed: Tensor, r: Tensor) -> Tensor:
        mean = self.inner.blend(self._flat(x).to(torch.float64), self._flat(observed), r)
        return mean.reshape(len(x), *self.event)

    def free(self) -> int:
        return self.inner.free()

    def split(self, heavy: int, empty: int, length: float) -> bool:
        return self.inner.split(heavy, empty, length)
