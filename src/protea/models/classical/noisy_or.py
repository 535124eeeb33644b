r"""The noisy-OR network of diseases and findings (QMR-DT), a directed graph of two layers.

    d_j ~ Bernoulli(pi_j),        p(x_i = 0 | d) = exp(-theta_i0 - sum_j theta_ij d_j),        theta >= 0

A finding is absent if its leak and every disease present all fail to cause it, each alone: disease j fails with
probability e^(-theta_ij). Findings are independent given the diseases; those that were not looked at (NaN) drop out.
Drawing is ancestral: d, then x. The evidence p(x) sums over 2^D states of the diseases: exact up to about twenty of
them, and between two bounds for any number (`noisy_or_bounds.py`). Absent findings are exact in both.

Parameters are square roots of theta, so that a link of 0 is absent and stays absent under gradients.

Shwe et al. 1991, "Probabilistic diagnosis using a reformulation of the INTERNIST-1/QMR knowledge base"; Jaakkola &
Jordan 1999, "Variational probabilistic inference and the QMR-DT network"; Pearl 1988 (noisy-OR).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protea.core import Bounded
from protea.errors import ConfigError, DataError, NotSupported
from protea.models.boltzmann.enumeration import states
from protea.models.classical.noisy_or_bounds import MeanField, Network, Tangents, log1mexp
from protea.rng import Streams
from protea.spaces.columns import Column
from protea.spaces.table import Table

TOLERANCE = 1e-9  # nats by which a sweep must move a bound, for another to follow


class Evidence(NamedTuple):
    """What findings say: log p(x) in nats (B,), and p(d_j = 1 | x) (B, D)."""

    log_prob: Tensor
    marginals: Tensor


class NoisyOr(Bounded):
    """A noisy-OR network: findings (B, F), 0 and 1, NaN where unknown, float64.

    Args:
        prior: pi (D,), probabilities of the diseases, between 0 and 1.
        leak: theta_i0 (F,) > 0; a finding without a disease is present with probability 1 - e^(-theta_i0).
        theta: theta_ij (F, D) >= 0, links of the diseases; 0 where there is none.
        sweeps: most sweeps of a bound.
        resolution: of the series of the lower bound; more is tighter and dearer.

    Raises:
        ConfigError: shapes that do not fit, values outside these ranges.

    >>> model = NoisyOr([0.1, 0.2], [0.05, 0.05, 0.05], [[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    >>> x = torch.tensor([[1.0, 1.0, float("nan")]])
    >>> exact = model.exact(x)
    >>> bool(model.lower_bound(x) <= exact.log_prob) and bool(exact.log_prob <= model.upper_bound(x))
    True
    >>> [round(p, 2) for p in exact.marginals[0].tolist()]
    [0.89, 0.31]
    """

    def __init__(
        self, prior: Tensor | Sequence[float], leak: Tensor | Sequence[float],
        theta: Tensor | Sequence[Sequence[float]], *, sweeps: int = 50, resolution: int = 8,
    ) -> None:  # fmt: skip
        super().__init__()
        prior, leak, theta = (torch.as_tensor(t, dtype=torch.float64) for t in (prior, leak, theta))
        if theta.ndim != 2 or prior.shape != theta.shape[1:] or leak.shape != theta.shape[:1] or not theta.numel():
            raise ConfigError(
                f"prior {tuple(prior.shape)}, leak {tuple(leak.shape)} and theta {tuple(theta.shape)} do not fit.",
                "Give prior (D,), leak (F,) and theta (F, D).")  # fmt: skip
        for name, value, good in (
            ("prior", prior, (prior > 0) & (prior < 1)),
            ("leak", leak, (leak > 0) & leak.isfinite()),
            ("theta", theta, (theta >= 0) & theta.isfinite()),
        ):
            if not bool(good.all()):
                raise ConfigError(f"{name} holds {float(value[~good][0])}.",
                                  "Give 0 < prior < 1, leak > 0 and theta >= 0, all finite.")  # fmt: skip
        if sweeps < 1 or resolution < 1:
            raise ConfigError(f"sweeps={sweeps}, resolution={resolution}.", "Give at least 1 of each.")
        self.odds = nn.Parameter(torch.logit(prior))
        self.root_leak, self.root_theta = nn.Parameter(leak.sqrt()), nn.Parameter(theta.sqrt())
        self.sweeps, self.resolution = sweeps, resolution
        self.space = Table(tuple(Column(f"f{i}", "boolean", "boolean", (False, True), missing=True)
                                 for i in range(len(leak))))  # fmt: skip

    @property
    def network(self) -> Network:
        """Log-odds of the diseases, leak and links, as they are now."""
        return Network(self.odds, self.root_leak.square(), self.root_theta.square())

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        return self.draw_joint(rng, cond)[1]

    @torch.no_grad()
    def draw_joint(self, rng: Streams, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Diseases (B, D), then findings (B, F) given them: one of each for each stream."""
        self._no_labels(cond)
        net = self.network
        d = (rng.uniform(len(net.odds), dtype=torch.float64) < torch.sigmoid(net.odds)).double()
        a = net.leak + d @ net.theta.T
        return d, (rng.uniform(len(net.leak), dtype=torch.float64) < -torch.expm1(-a)).double()

    def log_joint(self, x: Tensor, d: Tensor) -> Tensor:
        """log p(x, d) in nats, of x (B, F) and d (B, ..., D), (B, ...); unknown findings summed out."""
        net, x = self.network, self._findings(x)
        x = x.reshape(len(x), *[1] * (d.ndim - 2), -1)
        a = net.leak + d @ net.theta.T
        findings = torch.where(x == 1, log1mexp(a), torch.where(x == 0, -a, 0.0)).sum(-1)
        return findings + (d * net.odds - F.softplus(net.odds)).sum(-1)

    # ---- inference

    def exact(self, x: Tensor) -> Evidence:
        """log p(x) and p(d_j = 1 | x), by summing over all 2^D states of the diseases; differentiable.

        Raises:
            NotSupported: more than 20 diseases.
        """
        x, net, each = self._findings(x), self.network, []
        present, absent = (x == 1).double(), (x == 0).double()
        for d in states(len(net.odds), like=net.odds):
            a = net.leak + d @ net.theta.T
            log_p = present @ log1mexp(a).T - absent @ a.T + d @ net.odds
            each.append((torch.logsumexp(log_p, 1), log_p.softmax(1) @ d))
        log_p = torch.stack([part for part, _ in each], 1)
        share = log_p.softmax(1)
        marginals = (share[:, :, None] * torch.stack([part for _, part in each], 1)).sum(1)
        return Evidence(torch.logsumexp(log_p, 1) - F.softplus(net.odds).sum(), marginals)

    def mean_field(self, x: Tensor) -> MeanField:
        """q(d | x) by coordinate ascent, swept until the bound rests."""
        with torch.no_grad():
            lower = MeanField(self.network, self._findings(x), resolution=self.resolution)
            self._sweep(lower)
        return lower

    def lower_bound(self, x: Tensor) -> Tensor:
        """The mean-field bound, at most log p(x), (B,); differentiable with respect to the parameters, q held."""
        logits = self.mean_field(x).logits
        lower = MeanField(self.network, self._findings(x), resolution=self.resolution)
        lower.logits = logits
        return lower.value()

    @torch.no_grad()
    def tangents(self, x: Tensor) -> Tangents:
        """The tangents of the upper bound, each set to its best in turn until the bound rests."""
        upper = Tangents(self.network, self._findings(x))
        self._sweep(upper)
        return upper

    def upper_bound(self, x: Tensor) -> Tensor:
        """The bound by convex duality, at least log p(x), (B,)."""
        return self.tangents(x).value()

    def posterior(self, x: Tensor) -> Tensor:
        """p(d_j = 1 | x), (B, D), by mean field. `exact` has the truth of small networks."""
        return torch.sigmoid(self.mean_field(x).logits)

    def log_prob_bound(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams, k: int = 1) -> Tensor:
        """log 1/k sum_s p(x, d_s) / q(d_s) with k draws d_s of the mean field q, (B,); Burda et al. 2016.

        Its expectation rises with k, from the mean-field bound to log p(x).
        """
        self._no_labels(cond)
        logits = self.mean_field(x).logits
        d = (rng.uniform(k, logits.shape[1], dtype=torch.float64) < torch.sigmoid(logits)[:, None]).double()
        log_q = (d * logits[:, None] - F.softplus(logits)[:, None]).sum(-1)
        return torch.logsumexp(self.log_joint(x, d) - log_q, 1) - math.log(k)

    def _sweep(self, bound: MeanField | Tangents) -> None:
        before = bound.value()
        for _ in range(self.sweeps):
            bound.sweep()
            now = bound.value()
            if not bool(((now - before).abs() > TOLERANCE).any()):
                return
            before = now

    def _no_labels(self, cond: Tensor | None) -> None:
        if cond is not None:
            raise NotSupported("A noisy-OR network has no labels.", "Leave cond out.")

    def _findings(self, x: Tensor) -> Tensor:
        x = x.to(self.root_theta)
        if x.ndim != 2 or x.shape[1] != len(self.root_leak):
            raise DataError(f"Findings of shape {tuple(x.shape)}.", f"Give (B, {len(self.root_leak)}).")
        bad = ~((x == 0) | (x == 1) | x.isnan())
        if bool(bad.any()):
            raise DataError(f"A finding is {float(x[bad][0])}.", "Give 0 (absent), 1 (present) or NaN (unknown).")
        return x
