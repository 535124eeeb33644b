r"""Bounds of the evidence of a noisy-OR network: a tangent above, mean field below.

A finding is absent with probability exp(-a_i), a_i = theta_i0 + sum_j theta_ij d_j, so the logarithm of an absent one
is linear in the diseases d and costs nothing. Of a present one it is f(a) = log(1 - e^-a), which couples its causes.

Above. f is concave, so it lies below its tangents. By convex duality, with f*(xi) = -xi log xi + (xi + 1) log(xi + 1),

    f(a) <= xi a - f*(xi),        with equality where xi = f'(a) = 1 / (e^a - 1)

(here xi is stored by the point a where its tangent touches: xi a' - f*(xi) = f(a) + xi (a' - a)). A line in d
factorises:

    log p(x) <= sum_i+ [xi_i theta_i0 - f*(xi_i)] - sum_i- theta_i0 + sum_j log(1 - pi_j + pi_j e^(s_j)),
    s_j = sum_i+ xi_i theta_ij - sum_i- theta_ij,

which is convex in xi: each xi_i in turn is set to its minimiser, where a_i = E[a_i] under the tilted diseases.

Below. With q(d) = prod_j q_j^d_j (1 - q_j)^(1 - d_j), the evidence is at least E_q[log p(x, d)] + H(q). Here
E_q f(a) = -sum_k e^(-k theta_i0) / k prod_j (1 - q_j + q_j e^(-k theta_ij)), as f(a) = -sum_k e^(-k a) / k. Its
products fall with k, so a group of neighbouring k is replaced by its first one, the last group being all the rest: that
lowers f at every a (and not at all where no cause is present), and what is summed stays a bound whatever the
resolution. It is linear in every q_j, so each q_j in turn is set to its exact maximiser: the bound never falls.

Jaakkola & Jordan 1999, "Variational probabilistic inference and the QMR-DT network"; Jordan, Ghahramani, Jaakkola &
Saul 1999, "An introduction to variational methods for graphical models". (Their lower bound is Jensen's, inside f; the
one here is that of mean field itself.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LAST = 4096  # the last node of the series
BISECTIONS = 45


class Network(NamedTuple):
    """The numbers of a network: log-odds of the diseases (D,), leak theta_i0 (F,), links theta_ij (F, D), all >= 0."""

    odds: Tensor
    leak: Tensor
    theta: Tensor


def log1mexp(a: Tensor) -> Tensor:
    """f(a) = log(1 - e^-a), a > 0, to full precision at both ends."""
    small = a < 0.6931
    return torch.where(small, (-torch.expm1(-torch.where(small, a, 1.0))).log(), torch.log1p(-torch.exp(-a)))


def absences(net: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """What absent findings say, exactly: their linear terms sum_i- theta_ij (B, D), and sum_i- theta_i0 (B,)."""
    absent = (x == 0).to(net.theta)
    return absent @ net.theta, absent @ net.leak


class Tangents:
    """The upper bound of the evidence of rows x (B, F) of 0, 1 and NaN, from tangents at points a (B, F).

    >>> net = Network(torch.tensor([0.0]), torch.tensor([0.1]), torch.tensor([[2.0]]))
    >>> upper = Tangents(net, torch.tensor([[1.0]]))
    >>> loose = upper.value()
    >>> upper.sweep()
    >>> bool(upper.value() < loose)
    True
    """

    def __init__(self, net: Network, x: Tensor) -> None:
        self.net, self.x = net, x
        self.present = (x == 1).to(net.theta)
        self.minus, self.constant = absences(net, x)
        self.a = (net.leak + net.theta @ torch.sigmoid(net.odds)).expand_as(self.present).clone()

    @property
    def xi(self) -> Tensor:
        """xi_i = 1 / (e^a_i - 1), (B, F); 0 where the finding is not present."""
        return self.present / torch.expm1(self.a)

    def logits(self) -> Tensor:
        """Log-odds of the tilted diseases, (B, D): the posterior that these tangents stand for."""
        return self.net.odds + self.xi @ self.net.theta - self.minus

    def value(self) -> Tensor:
        """The bound in nats, (B,)."""
        lines = (self.present * (log1mexp(self.a) - self.xi * (self.a - self.net.leak))).sum(1)
        return lines - self.constant + (F.softplus(self.logits()) - F.softplus(self.net.odds)).sum(1)

    def step(self, i: int) -> None:
        """Set xi_i to its minimiser, by bisection of E[a_i] - a_i, which falls as a_i grows."""
        theta, leak = self.net.theta[i], self.net.leak[i]
        old = self.present[:, i] / torch.expm1(self.a[:, i])
        others = self.logits() - old[:, None] * theta
        low, high = leak.expand(len(self.x)), (leak + theta.sum()).expand(len(self.x))
        for _ in range(BISECTIONS):
            a = (low + high) / 2
            mean = leak + torch.sigmoid(others + theta / torch.expm1(a)[:, None]) @ theta
            low, high = torch.where(mean > a, a, low), torch.where(mean > a, high, a)
        self.a[:, i] = torch.where(self.present[:, i] > 0, (low + high) / 2, self.a[:, i])

    def sweep(self) -> None:
        """One step for each finding that any row has."""
        for i in self.present.any(0).nonzero()[:, 0].tolist():
            self.step(i)


def series(leak: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Nodes k (K,) and weights w (F, K) with -sum_k w_ik e^(-k (a - leak_i)) <= f(a) for every a >= leak_i.

    A node stands for itself and those up to the next, its weight is the sum of their e^(-k leak) / k; nodes are about
    1 / resolution of their size apart. Above the last node the rest of the series is what is missing from f(leak).
    """
    nodes = [1]
    while nodes[-1] < LAST:
        nodes.append(nodes[-1] + max(1, nodes[-1] // resolution))
    k = torch.tensor(nodes, dtype=leak.dtype, device=leak.device)
    every = torch.arange(1, nodes[-1], dtype=leak.dtype, device=leak.device)
    sums = (torch.exp(-every * leak[:, None]) / every).cumsum(1)
    ends = torch.cat((torch.zeros_like(sums[:, :1]), sums[:, (k[1:] - 2).long()], -log1mexp(leak)[:, None]), 1)
    return k, ends.diff(dim=1).clamp(min=0)


class MeanField:
    """The lower bound of the evidence of rows x (B, F) of 0, 1 and NaN, at log-odds `logits` (B, D) of the diseases.

    It starts from the exact posterior of the absent findings.

    >>> net = Network(torch.tensor([0.0]), torch.tensor([0.1]), torch.tensor([[2.0]]))
    >>> lower = MeanField(net, torch.tensor([[1.0]]))
    >>> loose = lower.value()
    >>> lower.sweep()
    >>> bool(lower.value() > loose)
    True
    """

    def __init__(self, net: Network, x: Tensor, *, resolution: int = 8) -> None:
        self.net = net
        self.minus, self.constant = absences(net, x)
        seen = (x == 1).any(0)  # only findings that some row has enter the series
        self.present, self.theta = x[:, seen] == 1, net.theta[seen]
        self.k, self.w = series(net.leak[seen], resolution)
        self.logits = (net.odds - self.minus).detach()
        self.log_p = self._log_products()

    def _factor(self, j: int) -> Tensor:
        """log(1 - q_j + q_j e^(-k theta_ij)), (B, F, K)."""
        logits = self.logits[:, j, None, None]
        return torch.logaddexp(F.logsigmoid(-logits), F.logsigmoid(logits) - self.theta[:, j, None] * self.k)

    def _log_products(self) -> Tensor:
        total = torch.zeros(*self.present.shape, len(self.k), dtype=self.theta.dtype, device=self.theta.device)
        for j in range(self.theta.shape[1]):
            total = total + self._factor(j)
        return total

    def value(self) -> Tensor:
        """The bound in nats, (B,); differentiable with respect to the network, q held."""
        odds, logits, q = self.net.odds, self.logits, torch.sigmoid(self.logits)
        kl = q * (logits - odds) - F.softplus(logits) + F.softplus(odds)
        fit = -((self.w * self._log_products().exp()).sum(2) * self.present).sum(1)
        return fit - self.constant - (q * self.minus).sum(1) - kl.sum(1)

    @torch.no_grad()
    def step(self, j: int) -> None:
        """Set q_j to its maximiser: log-odds of the prior, and what E f gains by the disease."""
        rest = self.log_p - self._factor(j)
        gain = -self.w * torch.expm1(-self.theta[:, j, None] * self.k) * rest.exp()
        self.logits[:, j] = self.net.odds[j] - self.minus[:, j] + (gain.sum(2) * self.present).sum(1)
        self.log_p = rest + self._factor(j)

    @torch.no_grad()
    def sweep(self) -> None:
        """One step for each disease; products are then taken anew, so that rounding does not add up."""
        for j in range(self.theta.shape[1]):
            self.step(j)
        self.log_p = self._log_products()
