r"""The relaxation of each kind of space.

Vector: standardisation, a bijection. Image: uniform dequantisation (Theis et al. 2016), scaled to [-1, 1].
Table: each numeric column is mapped to a standard normal by its training quantiles (grid columns are first
dequantised over their cell). A categorical column becomes one number for each category, -1 but for +1 at its own,
with noise 0.25 eps, |eps| < 3.5, and the largest wins (the argmax surjection of Hoogeboom et al. 2021); a column of
two, or of more than 32, becomes the bits of its code in the same way (their binary surjection; the analog bits of
Chen et al. 2023). One number a category costs dimensions but keeps the error of a weak model from landing on a rare
category that happens to share most bits with a common one. A table of nothing but real numbers needs no dimensions of
its own making: its entries are mapped one by one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protea.errors import NotSupported
from protea.rng import Streams
from protea.space import Field, Space
from protea.transforms.quantile import QuantileNormal
from protea.transforms.relaxation import Entrywise, Relaxation

_MARGIN = 1e-4  # of a cell, kept free at both ends so that float32 rounding cannot cross into the next
_BIT_SCALE, _BIT_CUT = 0.25, 3.5
ONE_HOT = 32  # columns of more categories become bits of their code
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Standardise(Entrywise):
    """v = (x - mean) / std, entry by entry. NaN (unknown) stays NaN, and adds nothing to the log-volume."""

    mean: Tensor
    std: Tensor

    def __init__(self, event: tuple[int, ...]) -> None:
        super().__init__()
        self.event = event
        self.register_buffer("mean", torch.zeros(event, dtype=torch.float64))
        self.register_buffer("std", torch.ones(event, dtype=torch.float64))

    def fit(self, x: Tensor) -> None:
        x = x.double()
        known = ~x.isnan()
        count = known.sum(0).clamp(min=1)
        self.mean.copy_(torch.where(known, x, 0.0).sum(0) / count)
        std = (torch.where(known, x - self.mean, 0.0).square().sum(0) / count).sqrt()
        self.std.copy_(torch.where(std > 1e-12 * (1 + self.mean.abs()), std, torch.ones_like(std)))

    def entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = (x.double() - self.mean) / self.std
        return v, torch.where(v.isnan(), 0.0, -self.std.log())

    def lower(self, v: Tensor) -> Tensor:
        return v.double() * self.std + self.mean

    def expected(self, mean: Tensor, std: Tensor) -> Tensor:
        return self.lower(mean)


class RelaxNumbers(Entrywise):
    """v = T(x), each column of real numbers through its training quantiles to a standard normal."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.event = (columns,)
        self.normal = QuantileNormal(columns)

    def fit(self, x: Tensor) -> None:
        self.normal.fit(x.double())

    def entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        unknown = x.isnan()
        v, log_slope = self.normal(x.double().nan_to_num(0.0))
        return torch.where(unknown, math.nan, v), torch.where(unknown, 0.0, log_slope)

    def lower(self, v: Tensor) -> Tensor:
        return self.normal.inverse(v.double().nan_to_num(0.0))

    def expected(self, mean: Tensor, std: Tensor) -> Tensor:
        return self.normal.expected_inverse(mean.double(), std.double())


class DequantiseImage(Relaxation):
    """v = 2 (x + u) / levels - 1 with u uniform on the cell (0, 1)."""

    exact = False

    def __init__(self, event: tuple[int, ...], levels: int) -> None:
        super().__init__()
        self.event, self.levels = event, levels

    def fit(self, x: Tensor) -> None:
        """Nothing to fit: the scale is that of the pixel values."""

    def lift(self, x: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
        u = _MARGIN + (1 - 2 * _MARGIN) * rng.uniform(*self.event).double()
        v = 2 * (x.double() + u) / self.levels - 1
        log_q = -math.prod(self.event) * math.log((1 - 2 * _MARGIN) * 2 / self.levels)
        return v.float(), torch.full((len(x),), log_q, dtype=torch.float64, device=x.device)

    def lower(self, v: Tensor) -> Tensor:
        x = torch.floor((v.double() + 1) * (self.levels / 2))
        return x.nan_to_num(0).clamp(0, self.levels - 1).to(torch.uint8)


class RelaxTable(Relaxation):
    """Quantile-normalised numbers, and one-hot or binary codes of categories.

    The dimensions of v, in order: one for each numeric column; then the bits: for each numeric column that may be
    missing, one that says so, and those of the codes of columns of two or of many categories; then one for each
    category of the others. Missing is a category of its own. A numeric entry that is missing is filled with a standard
    normal. `lower` undoes `lift` exactly, but for float32 rounding: of real columns, and of grids of more than about
    2^18 cells.
    """

    numeric: Tensor  # columns
    flags: Tensor  # positions among the numeric columns
    bit_column: Tensor
    bit_place: Tensor
    hot_column: Tensor
    hot_code: Tensor
    group: Tensor
    group_column: Tensor
    code_column: Tensor
    code_levels: Tensor
    code_missing: Tensor
    grid: Tensor
    step: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, fields: tuple[Field, ...]) -> None:
        super().__init__()
        numeric = [i for i, f in enumerate(fields) if f.kind != "category"]
        flags = [i for i in numeric if fields[i].missing]
        self.columns = len(fields)
        bits: list[tuple[int, int]] = [(i, 0) for i in flags]
        codes: list[tuple[int, int]] = []  # (column, number of codes)
        hot: list[tuple[int, int]] = []  # (column, code) of each one-hot dimension
        groups: list[list[int]] = []  # the dimensions of each one-hot column, among those of `hot`
        for i, f in enumerate(fields):
            if f.kind == "category":
                levels = f.levels + int(f.missing)
                codes.append((i, levels))
                if 2 < levels <= ONE_HOT:
                    groups.append(list(range(len(hot), len(hot) + levels)))
                    hot += [(i, c) for c in range(levels)]
                else:
                    bits += [(i, b) for b in range(max(levels - 1, 0).bit_length())]
        self.event = (len(numeric) + len(bits) + len(hot),)
        self.exact = not bits and not hot and all(fields[i].kind == "real" for i in numeric)

        def index(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64)

        def constant(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)  # follows from the schema: not saved

        constant("numeric", index(numeric))
        constant("flags", index([numeric.index(i) for i in flags]))
        constant("bit_column", index([c for c, _ in bits]))
        constant("bit_place", index([b for _, b in bits]))
        constant("hot_column", index([c for c, _ in hot]))
        constant("hot_code", index([k for _, k in hot]))
        width = max(map(len, groups), default=1)  # groups are padded with a place that is never the largest
        constant(
            "group",
            torch.tensor([g + [len(hot)] * (width - len(g)) for g in groups], dtype=torch.int64).reshape(-1, width),
        )
        constant("group_column", index([hot[g[0]][0] for g in groups]))
        constant("code_column", index([c for c, _ in codes]))
        constant("code_levels", index([k for _, k in codes]))
        constant("code_missing", torch.tensor([fields[c].missing for c, _ in codes], dtype=torch.bool))
        constant("grid", torch.tensor([fields[i].kind == "grid" for i in numeric], dtype=torch.bool))
        constant("step", torch.tensor([fields[i].step for i in numeric], dtype=torch.float64))
        constant("low", torch.tensor([fields[i].low for i in numeric], dtype=torch.float64))
        constant("high", torch.tensor([fields[i].high for i in numeric], dtype=torch.float64))
        self.normal = QuantileNormal(len(numeric))

    def _dequantise(self, x: Tensor, rng: Streams) -> Tensor:
        """Numeric columns, with grid values spread over (x - step/2, x + step/2)."""
        value = x.double()[:, self.numeric]
        if not bool(self.grid.any()):
            return value
        u = (1 - 2 * _MARGIN) * (rng.uniform(len(self.numeric)).double() - 0.5)
        return torch.where(self.grid, value + self.step * u, value)

    def fit(self, x: Tensor) -> None:
        self.normal.fit(self._dequantise(x, Streams(0, len(x), x.device).child("fit")))

    def lift(self, x: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
        value = self._dequantise(x, rng)
        absent = value.isnan()
        z, log_slope = self.normal(value.nan_to_num(0.0))
        cell = torch.where(self.grid, (self.step * (1 - 2 * _MARGIN)).log(), 0.0)
        log_q = -log_slope - cell
        if bool(absent.any()):
            filler = rng.child("missing").normal(len(self.numeric), dtype=torch.float64)
            z = torch.where(absent, filler, z)
            log_q = torch.where(absent, -0.5 * filler**2 - _LOG_SQRT_2PI, log_q)
        b = self._bits(x, absent)
        if b.shape[1] == 0:
            return z.float(), log_q.sum(1)
        p = 0.5 * math.erfc(_BIT_CUT / math.sqrt(2))
        u = p + (1 - 2 * p) * rng.uniform(b.shape[1], dtype=torch.float64)
        eps = torch.special.ndtri(u)
        v = torch.cat((z, 2.0 * b - 1.0 + _BIT_SCALE * eps), 1)
        log_bits = -0.5 * eps**2 - _LOG_SQRT_2PI - math.log(_BIT_SCALE) - math.log(1 - 2 * p)
        return v.float(), log_q.sum(1) + log_bits.sum(1)

    def _bits(self, x: Tensor, absent: Tensor) -> Tensor:
        full = torch.zeros(len(x), self.columns, dtype=torch.int64, device=x.device)
        full[:, self.numeric] = absent.long()
        codes = x[:, self.code_column]
        full[:, self.code_column] = torch.where(codes.isnan(), (self.code_levels - 1).double(), codes.double()).long()
        bits = (full[:, self.bit_column] >> self.bit_place) & 1
        return torch.cat((bits, (full[:, self.hot_column] == self.hot_code).long()), 1)

    def lower(self, v: Tensor) -> Tensor:
        count = len(self.numeric)
        x = torch.empty(len(v), self.columns, dtype=torch.float64, device=v.device)
        value = self.normal.inverse(v[:, :count].double().nan_to_num(0.0))
        value = torch.where(self.grid, torch.round(value / self.step) * self.step, value)
        value = torch.minimum(torch.maximum(value, self.low), self.high)
        n_bits = len(self.bit_column)
        on = (v[:, count : count + n_bits] > 0).long()
        n_flags = len(self.flags)
        value[:, self.flags] = torch.where(on[:, :n_flags] == 1, math.nan, value[:, self.flags])
        x[:, self.numeric] = value
        full = torch.zeros(len(v), self.columns, dtype=torch.int64, device=v.device)
        column, place = self.bit_column[n_flags:], self.bit_place[n_flags:]
        full.index_add_(1, column, on[:, n_flags:] << place)
        if len(self.group):
            scores = torch.nn.functional.pad(v[:, count + n_bits :].nan_to_num(0.0), (0, 1), value=-torch.inf)
            full[:, self.group_column] = scores[:, self.group].argmax(2)
        code = full[:, self.code_column]
        top = 1 << ((self.code_levels - 1).clamp(min=1).double().log2().floor().long())
        code = torch.where(code >= self.code_levels, code - top, code)  # an unused code drops its highest bit
        gone = self.code_missing & (code == self.code_levels - 1)
        x[:, self.code_column] = torch.where(gone, math.nan, code.double())
        return x


def relaxation_for(space: Space) -> Relaxation:
    """The relaxation by which continuous models see a space.

    Raises:
        NotSupported: for token spaces, whose models are discrete.
    """
    if space.kind == "vector":
        return Standardise(space.event)
    if space.kind == "image":
        return DequantiseImage(space.event, space.fields[0].levels)
    if space.kind == "table":
        fields = tuple(space.fields)
        free = all(f.kind == "real" and not f.missing and f.low == -math.inf and f.high == math.inf for f in fields)
        return RelaxNumbers(len(fields)) if free else RelaxTable(fields)
    raise NotSupported(f"A {space.kind} space has no continuous relaxation.", "Use a model of tokens.")
