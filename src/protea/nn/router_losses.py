r"""Losses that keep experts busy. With n tokens, E experts, k a token, c_i the tokens that expert i got, and p scores:

    Switch (Fedus et al. 2021):      E sum_i f_i P_i,   f_i = c_i / n,   P_i = mean_t p_{t,i}
    z-loss (Zoph et al. 2022):       mean_t (logsumexp_i r_{t,i})^2
    sequence-wise (DeepSeek-V2/V3):  the same within each text, f_i = E c_i / (k T), p divided by its sum
    device, communication (DeepSeek-V2, equations 26-31): the same between groups of experts that share a device.

Each is called with a `Routing`, its counts (B, E) and which tokens are valid, and gives a `Term`: sums and counts, of
which the learner makes the loss of the whole batch, over microbatches and processes. Gradients flow through P alone;
f counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protea.nn.auxiliary import Term
from protea.nn.router import Routing


def _of(x: Tensor, valid: Tensor | None) -> Tensor:
    """(n, E) of (B, T, E), the valid tokens alone."""
    return x.flatten(0, 1) if valid is None else x[valid]


def _texts(routing: Routing, counts: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """f (B, E), P (B, E) and the tokens (B, 1) of each text."""
    scores = routing.scores / (routing.scores.sum(-1, keepdim=True) + 1e-20)
    if valid is None:
        t = counts.new_full((len(counts), 1), scores.shape[1])
        mean = scores.mean(1)
    else:
        t = valid.sum(1, keepdim=True).to(counts).clamp_min(1)
        mean = (scores * valid[..., None]).sum(1) / t
    k = counts.sum(1, keepdim=True).clamp_min(1) / t
    return counts.shape[1] * counts / (k * t), mean, t


def _mean(name: str, weight: float, items: Tensor) -> Term:
    """The weighted mean of items (n,), of tokens or texts."""

    def value(sums: Tensor, counts: Tensor) -> Tensor:
        return weight * (sums / counts.clamp_min(1)).sum()

    return Term(name, items.sum()[None], items.new_tensor([len(items)]), value)


@dataclass(frozen=True)
class SwitchBalance:
    """Switch's load balance, over all tokens of the batch: S_i = sum_t p_{t,i}, C = (c_1 ... c_E, n).

    It is k at perfect balance.

    >>> SwitchBalance(1.0).value(torch.full((4,), 6 / 4), torch.tensor([1.5, 1.5, 1.5, 1.5, 6.0])).item()
    1.0
    """

    weight: float = 0.01

    def value(self, sums: Tensor, counts: Tensor) -> Tensor:
        n = counts[-1].clamp_min(1)
        return self.weight * len(sums) * (counts[:-1] / n * (sums / n)).sum()

    def __call__(self, routing: Routing, counts: Tensor, valid: Tensor | None) -> Term:
        scores = _of(routing.scores, valid)
        number = counts.new_tensor([len(scores)])
        return Term("SwitchBalance", scores.sum(0), torch.cat((counts.sum(0), number)), self.value)


@dataclass(frozen=True)
class ZLoss:
    """Keeps logits small, so that float32 can tell them apart."""

    weight: float = 1e-3

    def __call__(self, routing: Routing, counts: Tensor, valid: Tensor | None) -> Term:
        assert routing.logits is not None
        return _mean("ZLoss", self.weight, _of(routing.logits, valid).logsumexp(-1).square())


@dataclass(frozen=True)
class SequenceBalance:
    """DeepSeek's balance within each text (V2: expert-level; V3: complementary, with a tiny weight)."""

    weight: float = 1e-4

    def __call__(self, routing: Routing, counts: Tensor, valid: Tensor | None) -> Term:
        f, mean, _ = _texts(routing, counts, valid)
        return _mean("SequenceBalance", self.weight, (f * mean).sum(1))


@dataclass(frozen=True)
class DeviceBalance:
    """DeepSeek-V2's balance of the work of `devices` that hold E / devices neighbouring experts each."""

    devices: int
    weight: float = 0.05

    def __call__(self, routing: Routing, counts: Tensor, valid: Tensor | None) -> Term:
        f, mean, _ = _texts(routing, counts, valid)
        f, mean = (x.unflatten(1, (self.devices, -1)) for x in (f, mean))
        return _mean("DeviceBalance", self.weight, (f.mean(-1) * mean.sum(-1)).sum(1))


@dataclass(frozen=True)
class CommunicationBalance:
    """DeepSeek-V2's balance of what `devices` receive, where a token goes to at most `limit` of them."""

    devices: int
    limit: int
    weight: float = 0.02

    def __call__(self, routing: Routing, counts: Tensor, valid: Tensor | None) -> Term:
        b, t, e = routing.scores.shape
        sent = counts.new_zeros(b * t, self.devices)
        sent[routing.tokens, routing.experts // (e // self.devices)] = 1.0
        if valid is not None:
            sent = sent * valid.flatten()[:, None]
        _, mean, length = _texts(routing, counts, valid)
        f = self.devices / (self.limit * length) * sent.view(b, t, -1).sum(1)
        balance = (f * mean.unflatten(1, (self.devices, -1)).sum(-1)).sum(1)
        return _mean("CommunicationBalance", self.weight, balance)
