r"""Categories: K members, each a table of probabilities over codes 0 .. levels-1, for one column or for d of them.

    p(x | k) = prod_d theta_{k,d,x_d},      theta_{k,d,l} = (n_{k,d,l} + a_{k,d,l}) / sum_m (n_{k,d,m} + a_{k,d,m})

with n_{k,d,l} = sum_b r_{bk} [x_{bd} = l]. The pseudo-counts a are Lidstone's smoothing (a = 1: Laplace's), which is
the mode of the posterior under a Dirichlet(1 + a) prior; so with them a code that was never seen keeps a finite score,
and without them it has log-probability -inf.

A negative code, and NaN in floating-point x, are unknown and drop out of the product.

Lidstone 1920, "Note on the general case of the Bayes-Laplace formula for inductive or a posteriori probabilities";
Murphy 2012, "Machine learning: a probabilistic perspective", section 3.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from protea.core import Stats
from protea.distributions.family import Density, Family
from protea.errors import ConfigError, DataError
from protea.rng import Streams


class Categorical(Family):
    """K members over codes, of one column (event ()) or of d independent ones (event (d,)), in float64.

    Args:
        members: K.
        levels: number of codes; one number, or one for each column.
        event: () or (d,).
        prior: pseudo-counts a >= 0, a number or anything that broadcasts to (members, d, levels).

    Raises:
        ConfigError: fewer than one level, levels that do not fit the event, a negative prior.

    >>> family = Categorical(2, 3, prior=1.0)
    >>> family.maximise(family.expect(torch.tensor([0, 0, 1, 2]), torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])))
    >>> family.probabilities[:, 0]
    tensor([[0.5000, 0.3333, 0.1667],
            [0.2500, 0.2500, 0.5000]], dtype=torch.float64)
    """

    prior: Tensor
    allowed: Tensor

    def __init__(
        self, members: int, levels: int | tuple[int, ...], event: tuple[int, ...] = (), prior: float | Tensor = 0.0
    ) -> None:
        super().__init__()
        self.members, self.event, self.columns = members, tuple(event), math.prod(event)
        self.levels = (levels,) * self.columns if isinstance(levels, int) else tuple(levels)
        if len(event) > 1 or len(self.levels) != self.columns or min(self.levels, default=0) < 1:
            raise ConfigError(
                f"Levels {levels} do not fit observations of shape {tuple(event)}.",
                "Give event () or (d,), and one number of levels or d of them, each at least 1.",
            )
        self.size = max(self.levels)
        allowed = torch.arange(self.size) < torch.tensor(self.levels)[:, None]
        a = torch.as_tensor(prior, dtype=torch.float64)
        if not bool((a >= 0).all()):
            raise ConfigError(f"A prior of {float(a.min())} pseudo-counts makes no sense.", "Give numbers >= 0.")
        self.register_buffer("allowed", allowed, persistent=False)
        shape = (members, self.columns, self.size)
        self.register_buffer("prior", torch.where(allowed, a, 0.0).expand(shape).clone())
        start = torch.where(allowed, 0.0, -math.inf).double().log_softmax(-1)
        self.logits = nn.Parameter(start.expand(shape).clone(), requires_grad=False)

    @property
    def log_table(self) -> Tensor:
        """log theta, (members, d, levels), -inf beyond a column's levels."""
        return torch.where(self.allowed, self.logits, -math.inf).log_softmax(-1)

    @property
    def probabilities(self) -> Tensor:
        """theta, (members, d, levels)."""
        return self.log_table.exp()

    @probabilities.setter
    def probabilities(self, value: Tensor) -> None:
        value = torch.as_tensor(value, dtype=torch.float64, device=self.logits.device).reshape(self.logits.shape)
        with torch.no_grad():
            self.logits.copy_(value.log())

    # ---- density ----

    def _cells(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """(B, d) rows of the table of (d * levels) codes; d * levels stands for unknown."""
        x = x.reshape(len(x), self.columns)
        if observed is None and self.columns == 1 and x.dtype == torch.int64 and len(x):
            low, high = x.aminmax()
            if int(low) >= 0 and int(high) < self.size:
                return x
        known = x >= 0  # False for NaN too
        if observed is not None:
            known = known & observed.reshape(known.shape)
        codes = torch.where(known, x, 0).long()
        width = torch.tensor(self.levels, device=x.device)
        if bool((codes >= width).any()):
            row, column = (codes >= width).nonzero()[0].tolist()
            raise DataError(
                f"Row {row} has the code {int(codes[row, column])}, but its column has {self.levels[column]} levels.",
                "Codes run from 0 to levels - 1; unknown ones are negative or NaN.",
            )
        cells = codes + self.size * torch.arange(self.columns, device=x.device)
        return torch.where(known, cells, self.columns * self.size)

    def _flat(self, own: slice | None) -> Tensor:
        """The table by code, (d * levels + 1, members), with zeros for unknown codes."""
        table = self.log_table if own is None else self.log_table[own]
        flat = table.permute(1, 2, 0).reshape(self.columns * self.size, -1)
        return torch.cat((flat, flat.new_zeros(1, flat.shape[1])))

    def by_code(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        return (self._flat(None), self._cells(x, None)[:, 0]) if self.columns == 1 else None

    def counted(self, n: Tensor) -> Stats:
        return {"n": n[:-1].T.reshape(self.members, 1, self.size)}

    def density(self, own: slice | None = None) -> Density:
        flat = self._flat(own)

        def score(x: Tensor, observed: Tensor | None) -> Tensor:
            cells = self._cells(x, observed)
            if self.columns == 1:
                return flat.index_select(0, cells[:, 0])
            return embedding_bag(cells, flat, mode="sum")

        return score

    # ---- learning ----

    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        own = own or slice(0, self.members)
        cells = self._cells(x, observed)
        r = r.double()
        counts = r.new_zeros(self.columns * self.size + 1, r.shape[1])
        for column in cells.T:
            counts.index_add_(0, column, r)
        n = counts.new_zeros(self.members, self.columns, self.size)
        n[own] = counts[:-1].T.reshape(-1, self.columns, self.size)
        return {"n": n}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        n = stats["n"] + self.prior
        total = n.sum(-1, keepdim=True)
        self.logits.copy_(torch.where(total > 0, (n / total).log(), self.logits))

    def expected(self, stats: Stats) -> Tensor:
        return torch.where(stats["n"] > 0, stats["n"] * self.log_table, 0.0).sum()

    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """One M-step, with the shares of all rows added as if they were as many rows as there are levels."""
        n = self.expect(x, r, observed=observed)["n"]
        overall = n.sum(0) + 1e-3 * self.allowed
        self.maximise({"n": n + self.size * overall / overall.sum(-1, keepdim=True)})

    def log_prior(self) -> Tensor:
        return torch.where(self.prior > 0, self.prior * self.log_table, 0.0).sum()

    def free(self) -> int:
        return self.members * (sum(self.levels) - self.columns)

    # ---- drawing ----

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        return rng.categorical(self.log_table[which]).reshape(len(which), *self.event)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        return torch.where(observed, x, self.draw(rng, which).to(x.dtype))

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        mode = self.log_table.argmax(-1).view(1, self.members, *self.event)
        return torch.where(observed[:, None], x[:, None], mode.to(x.dtype))

    def blend(self, x: Tensor, observed: Tensor, r: Tensor) -> Tensor:
        """The most probable code of the mixture sum_k r_k theta_k, not of one member."""
        p = torch.einsum("bk,kdl->bdl", r.double(), self.probabilities)
        return torch.where(observed, x, p.argmax(-1).reshape(x.shape).to(x.dtype))
