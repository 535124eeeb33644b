r"""A column of labels that names the member: what makes a mixture of its classes a naive Bayes classifier.

    p(y | k) = (1 - rho) [y = k],        p(NaN | k) = rho

A mixture of C members with weights pi, whose product of columns has this one, is p(y, x) = pi_y p(x | y): the class is
the member. NaN is a label that was not given, with the same probability rho in every class (missing at random), so that
unlabelled rows count by their posterior p(y | x) (Nigam et al. 2000, "Text classification from labeled and unlabeled
documents using EM"). Where the schema knows no missing labels rho is 0, and NaN is unknown: integrated out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions.family import Density, Family
from protea.errors import DataError
from protea.rng import Streams


class Label(Family):
    """Members over one column of codes 0 .. C-1, `each` of them a code: member k always says k // each.

    Args:
        labels: C.
        missing: whether NaN is a value; otherwise it means unknown.
        each: members of a code.

    Raises:
        DataError: (`expect`) a value that is no code.

    >>> family = Label(2, missing=False)
    >>> family.log_prob(torch.tensor([[1.0]])).tolist()
    [[-inf, -0.0]]
    """

    def __init__(self, labels: int, missing: bool, each: int = 1) -> None:
        super().__init__()
        self.members, self.event, self.nan_is_value = labels * each, (1,), missing
        self.labels, self.each = labels, each
        start = 0.5 if missing else 0.0
        self.rate = nn.Parameter(torch.tensor(start, dtype=torch.float64), requires_grad=False)  # rho

    def density(self, own: slice | None = None) -> Density:
        codes = self._codes(self.rate.device)[own or slice(None)].double()
        there = torch.log1p(-self.rate)
        gone = self.rate.log() if self.nan_is_value else torch.zeros_like(self.rate)

        def log_p(x: Tensor, observed: Tensor | None) -> Tensor:
            x = x.reshape(len(x), 1).to(torch.float64)
            out = torch.where(x == codes, there, -math.inf)
            out = torch.where(x.isnan(), gone, out)
            return out if observed is None else torch.where(observed.reshape(len(x), 1), out, 0.0)

        return log_p

    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        """Weights of labels missing and given, (2,)."""
        x = x.reshape(len(x)).to(torch.float64)
        known = torch.ones_like(x, dtype=torch.bool) if observed is None else observed.reshape(len(x))
        nan = x.isnan()
        codes = (x == x.round()) & (x >= 0) & (x < self.labels)
        bad = known & ~(codes | nan)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise DataError(f"Row {row} has the label {x[row].item()}.",
                            f"Labels are codes 0 .. {self.labels - 1}, and NaN where unknown.")  # fmt: skip
        weight = r.to(torch.float64).sum(1) * known * float(self.nan_is_value)
        return {"labels": torch.stack(((weight * nan).sum(), (weight * ~nan).sum()))}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        gone, there = stats["labels"]
        if float(gone + there) > 0:
            self.rate.copy_(gone / (gone + there))

    def expected(self, stats: Stats) -> Tensor:
        gone, there = stats["labels"]
        return torch.special.xlogy(gone, self.rate) + torch.special.xlogy(there, 1 - self.rate)

    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        self.maximise(self.expect(x, r, None, observed))

    def coordinates(self, x: Tensor) -> Tensor:
        code = x.reshape(len(x)).nan_to_num(self.labels).long().clamp(0, self.labels)
        return nn.functional.one_hot(code, self.labels + 1).double()

    def allows(self, x: Tensor) -> Tensor:
        code = x.reshape(len(x), 1)
        return (code == self._codes(x.device)) | code.isnan()

    def _codes(self, device: torch.device) -> Tensor:
        """What each member says, (members,)."""
        return torch.arange(self.labels, device=device).repeat_interleave(self.each)

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        gone = rng.child("label").uniform(1, dtype=torch.float64) < self.rate
        return torch.where(gone, math.nan, (which // self.each)[:, None].double())

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        return torch.where(observed, x.to(torch.float64), self.draw(rng, which))

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        """The member's own code."""
        codes = self._codes(x.device).double()[None, :, None]
        return torch.where(observed[:, None], x.to(torch.float64)[:, None], codes)

    def blend(self, x: Tensor, observed: Tensor, r: Tensor) -> Tensor:
        """The most probable class."""
        by_label = r.view(len(r), self.labels, self.each).sum(2)
        return torch.where(observed, x, by_label.argmax(1)[:, None].to(x.dtype))

    def free(self) -> int:
        return int(self.nan_is_value)
