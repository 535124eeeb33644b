r"""K multinomial distributions over vectors of counts of varying total.

    log p(x | k) = log p(t) + log t! - sum_j log x_j! + sum_j x_j log theta_kj,       t = sum_j x_j

    theta_kj = (n_kj + alpha) / (n_k + alpha D),       n_k = sum_j n_kj

The total t is a property of the row that all members share, so it says nothing about k; with its distribution p(t) and
the coefficient the members are normalised over all vectors of whole numbers. p(t) is a histogram of the totals seen,
with a geometric tail beyond (`Histogram`), from which draws take theirs. scikit-learn's MultinomialNB leaves both out;
posteriors are the same. McCallum & Nigam 1998, "A comparison of event models for naive Bayes text classification".

Unknown entries (NaN, or not observed) are integrated out exactly. With t_o the sum of the known ones and u_k the
probability of the unknown kinds, the total is a hidden variable:

    p(x_o | k) = sum_t p(t) t! / ((t - t_o)! prod_o x_j!) prod_o theta_kj^x_j u_k^(t - t_o)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.core import Stats
from protea.distributions.family import Density, Family, placed
from protea.distributions.histogram import Histogram
from protea.errors import ConfigError, DataError
from protea.rng import Streams
from protea.space import Field


class Multinomial(Family):
    """K members over vectors of counts.

    Args:
        members: K.
        event: shape of one observation, D = prod(event) kinds of thing counted.
        alpha: pseudo-count of every kind, not negative (1 Laplace, less Lidstone).

    Raises:
        ConfigError: a negative pseudo-count.
        DataError: (`expect`) a value that is not a whole number from 0. (Its log_prob is -inf.)

    >>> family = Multinomial(2, (3,))
    >>> x = torch.tensor([[3.0, 1, 0], [0, 1, 5]])
    >>> family.initialise(x, torch.eye(2, dtype=torch.float64))
    >>> family.maximise(family.expect(x, torch.eye(2, dtype=torch.float64)))
    >>> [[round(p, 3) for p in row] for row in family.theta.tolist()]
    [[0.571, 0.286, 0.143], [0.111, 0.222, 0.667]]
    """

    def __init__(self, members: int, event: tuple[int, ...], alpha: float = 1.0) -> None:
        super().__init__()
        if not alpha >= 0:
            raise ConfigError(f"The pseudo-count alpha={alpha} must not be negative.", "Try 1.0.")
        self.members, self.event, self.dim, self.alpha = members, tuple(event), math.prod(event), float(alpha)
        self.width = 1 + self.dim // members
        self.theta = nn.Parameter(torch.full((members, self.dim), 1 / self.dim, dtype=torch.float64), False)
        self.totals = Histogram(1, [Field("total", "grid", low=0.0)])

    def _known(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Counts with 0 where unknown, and what is unknown, (B, D) each."""
        x = x.reshape(len(x), self.dim).to(torch.float64)
        hidden = x.isnan() if observed is None else ~observed.reshape(len(x), self.dim) | x.isnan()
        return torch.where(hidden, 0.0, x), hidden

    # ---- density ----

    def density(self, own: slice | None = None) -> Density:
        theta = self.theta if own is None else self.theta[own]
        totals = self.totals.density()

        def log_p(x: Tensor, observed: Tensor | None) -> Tensor:
            x, hidden = self._known(x, observed)
            fits = ((x >= 0) & (x == x.round())).all(1, keepdim=True)
            x = torch.where(fits, x, 0.0)
            t = x.sum(1, keepdim=True)
            shares = _log_shares(x, theta)
            part = hidden.any(1)
            whole = totals(t, None) + torch.lgamma(t + 1)
            if bool(part.any()):
                whole = whole.expand(len(x), len(theta)).clone()
                whole[part] = torch.logsumexp(self._totals(t[part, 0], hidden[part], theta), 2)
            return torch.where(fits, whole + shares - torch.lgamma(x + 1).sum(1, keepdim=True), -math.inf)

        return log_p

    def log_shares(self, x: Tensor) -> Tensor:
        """sum_j x_j log theta_kj, (B, members): all of log p(x | k) that tells members apart, also of fractional x."""
        return _log_shares(x.reshape(len(x), self.dim), self.theta)

    def _totals(self, known: Tensor, hidden: Tensor, theta: Tensor) -> Tensor:
        """log p(t) t! / (t - t_o)! u_k^(t - t_o) of every total t that counts, (B, K, T)."""
        reach = self.totals.edges[0, -1] + 30 * self.totals.tails[0, 1]  # e^-30 of a tail is left out
        t = torch.arange(int(reach) + 2, dtype=torch.float64, device=theta.device)
        log_t = self.totals.log_prob(t[:, None])[:, 0] + torch.lgamma(t + 1)
        rest = (t - known[:, None])[:, None]  # (B, 1, T)
        u = (hidden.double() @ theta.T)[:, :, None]
        out = log_t + torch.xlogy(rest.clamp(min=0), u) - torch.lgamma(rest.clamp(min=0) + 1)
        return torch.where(rest < 0, -math.inf, out)

    # ---- learning ----

    @torch.no_grad()
    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        """n_kj (members, D), and the histogram of totals."""
        (x, hidden), r = self._known(x, observed), r.to(torch.float64)
        bad = (x < 0) | (x != x.round())
        if bool(bad.any()):
            row, j = bad.nonzero()[0].tolist()
            raise DataError(
                f"Row {row} holds {x[row, j].item()} in entry {j}, which is not a count.",
                "Multinomials describe whole numbers from 0; use a Gaussian family for others.",
            )
        part = hidden.any(1)
        t, seen = x.sum(1, keepdim=True), torch.where(part, 0.0, r.sum(1))[:, None]
        n, totals = r.T @ x, self.totals.expect(t, seen)["counts"]
        if bool(part.any()):
            theta = self.theta if own is None else self.theta[own]
            log_t = self._totals(t[part, 0], hidden[part], theta)
            # A total that the known counts rule out leaves no posterior: nothing is expected of such a row.
            post = torch.softmax(log_t, 2).nan_to_num(0.0) * r[part][:, :, None]
            value = torch.arange(log_t.shape[2], dtype=torch.float64, device=x.device)
            left = (post * (value - t[part][:, :, None])).sum(2)  # r E[t - t_o | x_o, k], (B, K)
            u = (hidden[part].double() @ theta.T).clamp(min=1e-300)
            n = n + theta * ((left / u).T @ hidden[part].double())
            totals = totals + self.totals.expect(value[:, None], post.sum((0, 1))[:, None])["counts"]
        return {"n": placed(n, own, self.members), "totals": totals}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        self.learn_shares(stats["n"])
        self.totals.maximise({"counts": stats["totals"]})

    @torch.no_grad()
    def learn_shares(self, n: Tensor) -> None:
        """theta from counts n (members, D) alone, the totals left as they are."""
        up = n + self.alpha
        total = up.sum(1, keepdim=True)
        self.theta.copy_(torch.where(total > 0, up / total.clamp(min=1e-300), self.theta))

    def expected(self, stats: Stats) -> Tensor:
        return torch.xlogy(stats["n"], self.theta).sum() + self.totals.expected({"counts": stats["totals"]})

    def log_prior(self) -> Tensor:
        return torch.xlogy(self.theta.new_tensor(self.alpha), self.theta).sum() + self.totals.log_prior()

    @torch.no_grad()
    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """One M-step, each member joined by D counts of the average row; and the bins of the totals."""
        flat, hidden = self._known(x, observed)
        whole = ~hidden.any(1)
        self.totals.place(flat[whole].sum(1, keepdim=True) if bool(whole.any()) else flat.sum(1, keepdim=True))
        stats = self.expect(x, r, None, observed)
        self.totals.maximise({"counts": stats["totals"]})
        mean = stats["n"].sum(0) + 1
        up = stats["n"] + self.dim * mean / mean.sum()
        self.theta.copy_(up / up.sum(1, keepdim=True))

    def free(self) -> int:
        return self.members * (self.dim - 1)

    # ---- drawing and completing ----

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        total = self.totals.draw(rng.child("total"), torch.zeros_like(which))[:, 0]
        return _thrown(rng, total, self.theta[which]).reshape(len(rng), *self.event)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        """The total is drawn given the known counts, and what they leave of it is thrown into the unknown kinds."""
        known, hidden = self._known(x, observed)
        seen, row = known.sum(1), torch.arange(len(x), device=x.device)
        total = rng.child("total").categorical(self._totals(seen, hidden, self.theta)[row, which])
        share = torch.where(hidden, self.theta[which], 0.0)
        return (known + _thrown(rng, total - seen, share)).reshape(x.shape)

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        """Unknown counts share what is expected of the total, E[t - t_o | x_o, k] theta_kj / u_k."""
        known, hidden = self._known(x, observed)
        log_t = self._totals(known.sum(1), hidden, self.theta)
        value = torch.arange(log_t.shape[2], dtype=torch.float64, device=x.device)
        left = (torch.softmax(log_t, 2).nan_to_num(0.0) * value).sum(2) - known.sum(1, keepdim=True)
        u = (hidden.double() @ self.theta.T).clamp(min=1e-300)
        mean = (left / u)[:, :, None] * self.theta
        out = torch.where(hidden[:, None], mean, known[:, None])
        return out.reshape(len(x), self.members, *self.event)


def _log_shares(x: Tensor, theta: Tensor) -> Tensor:
    """sum_j x_j log theta_kj of x (B, D), theta (K, D), with 0 log 0 = 0."""
    never = theta == 0
    out = x @ torch.where(never, 0.0, theta.log()).T
    if bool(never.any()):
        out = torch.where((x > 0).double() @ never.double().T > 0, -math.inf, out)
    return out


def _thrown(rng: Streams, total: Tensor, share: Tensor) -> Tensor:
    """Counts of total (B,) things thrown into D kinds of shares (B, D), by inverting the distribution function."""
    n = max(int(total.max()), 1) if len(total) else 1
    cdf = share.cumsum(1)
    u = rng.child("thing").uniform(n, dtype=torch.float64) * cdf[:, -1:]
    place = torch.searchsorted(cdf, u, right=True).clamp(max=share.shape[1] - 1)
    thrown = (torch.arange(n, device=u.device) < total[:, None]).double()
    return torch.zeros_like(cdf).scatter_add_(1, place, thrown)
