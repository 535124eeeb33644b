r"""Choices: from a router's logits r (B, T, E) to pairs of a token and an expert.

Token choice: `TopK` with softmax scores is Mixtral's (Jiang et al. 2024), Switch's (k = 1 and a capacity; Fedus et al.
2021) and DeepSeek-V2's (limited groups); `Affinity` is DeepSeek-V3's, with

    s_i = sigmoid(r_i),   K = top-k of s_i + b_i in the best groups,   g_i = scale s_i / sum_{j in K} s_j,

where the bias b_i moves the selection alone and is set from the load, not by gradients (Wang et al. 2024,
"Auxiliary-loss-free load balancing"). Expert choice: `ExpertChoice` (Zhou et al. 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.nn.router import Routing


@dataclass(frozen=True)
class Groups:
    """Only the experts of a token's best groups may be chosen: those that live on few devices.

    Args:
        n: groups of E / n neighbours each.
        kept: groups a token may use.
        best: a group is as good as the sum of its best so many experts (DeepSeek-V2: 1, V3: 2).
    """

    n: int
    kept: int
    best: int = 1

    def allowed(self, scores: Tensor) -> Tensor:
        """(..., E) booleans of scores (..., E).

        >>> Groups(2, 1).allowed(torch.tensor([0.1, 0.2, 0.9, 0.0])).tolist()
        [False, False, True, True]
        """
        grouped = scores.unflatten(-1, (self.n, -1))
        worth = grouped.topk(min(self.best, grouped.shape[-1]), -1).values.sum(-1)
        mask = torch.zeros_like(worth, dtype=torch.bool).scatter_(-1, worth.topk(self.kept, -1).indices, True)
        return mask[..., None].expand_as(grouped).flatten(-2)


def _pairs(experts: Tensor, weights: Tensor, scores: Tensor, logits: Tensor, keep: Tensor | None = None) -> Routing:
    """The routing of experts and weights (B, T, k), of which those where `keep` is False are dropped."""
    b, t, k = experts.shape
    tokens = torch.arange(b * t, device=experts.device)[:, None].expand(-1, k).reshape(-1)
    experts, weights, wanted = experts.flatten(), weights.flatten(), experts.numel()
    if keep is not None:
        keep = keep.flatten()
        tokens, experts, weights = tokens[keep], experts[keep], weights[keep]
    return Routing(tokens, experts, weights, scores, logits, wanted)


def within_capacity(experts: Tensor, n_experts: int, capacity: int, valid: Tensor | None = None) -> Tensor:
    """Which of the choices (B, T, k) an expert has room for, at `capacity` tokens of a row, first come first served.

    >>> within_capacity(torch.tensor([[[0], [1], [0], [0]]]), 2, 2).flatten().tolist()
    [True, True, True, False]
    """
    chosen = nn.functional.one_hot(experts.flatten(1), n_experts)
    if valid is not None:
        chosen = chosen * valid.repeat_interleave(experts.shape[-1], 1)[..., None]
    rank = chosen.cumsum(1).gather(-1, experts.flatten(1)[..., None])[..., 0]
    return (rank <= capacity).view_as(experts)


class TopK(nn.Module):
    """The k experts of largest softmax probability.

    Args:
        k: experts a token.
        normalise: divide their weights by their sum (so Mixtral: softmax over the top-k logits).
        scale: multiplies the weights.
        groups: only the best groups' experts; None for all.
        capacity: while training, an expert takes at most ceil(capacity k T / E) tokens of a row and drops the rest,
            which go on by the residual stream alone; None drops nothing. In use nothing is dropped.

    >>> choice = TopK(1, normalise=False, capacity=1.0)  # Switch
    >>> routing = choice(torch.tensor([[[2.0, 0.0], [1.0, 0.0]]]), None)
    >>> routing.tokens.tolist(), routing.wanted
    ([0], 2)
    """

    def __init__(
        self, k: int, *, normalise: bool = True, scale: float = 1.0, groups: Groups | None = None,
        capacity: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.k, self.normalise, self.scale, self.groups, self.capacity = k, normalise, scale, groups, capacity

    def forward(self, logits: Tensor, valid: Tensor | None) -> Routing:
        scores = logits.softmax(-1)
        ranked = scores
        if self.groups is not None:
            ranked = scores.masked_fill(~self.groups.allowed(scores), 0.0)
        weights, experts = ranked.topk(self.k, -1)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        keep = None
        if self.capacity is not None and self.training:
            t, e = logits.shape[1:]
            keep = within_capacity(experts, e, math.ceil(self.capacity * self.k * t / e), valid)
        return _pairs(experts, weights * self.scale, scores, logits, keep)


class Affinity(nn.Module):
    """Sigmoid affinities, and a bias that balances the selection; see the module.

    Args:
        n_experts: E.
        k: experts a token.
        normalise: divide by the sum of the chosen affinities.
        scale: routed scaling factor.
        groups: only the best groups' experts; None for all.

    >>> choice = Affinity(3, 1)
    >>> choice.bias += torch.tensor([0.0, 0.0, 9.0])
    >>> routing = choice(torch.zeros(1, 1, 3), None)
    >>> routing.experts.tolist(), routing.weights.tolist()
    ([2], [1.0])
    """

    bias: Tensor

    def __init__(
        self, n_experts: int, k: int, *, normalise: bool = True, scale: float = 1.0, groups: Groups | None = None
    ) -> None:
        super().__init__()
        self.k, self.normalise, self.scale, self.groups = k, normalise, scale, groups
        self.register_buffer("bias", torch.zeros(n_experts))

    def forward(self, logits: Tensor, valid: Tensor | None) -> Routing:
        scores = logits.sigmoid()
        wanted = scores.detach() + self.bias.to(scores.dtype)
        if self.groups is not None:
            wanted = wanted.masked_fill(~self.groups.allowed(wanted), -torch.inf)
        experts = wanted.topk(self.k, -1).indices
        weights = scores.gather(-1, experts)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return _pairs(experts, weights * self.scale, scores, logits)

    @torch.no_grad()
    def rebalance(self, load: Tensor, rate: float) -> None:
        """b_i <- b_i + rate sign(mean load - load_i), of the load (E,) of a step."""
        self.bias += rate * (load.mean() - load).sign().to(self.bias)


class ExpertChoice(nn.Module):
    """Each expert takes the C = ceil(capacity T / E) tokens of a row that want it most: balance by construction.

    It is **not causal**: whether a token is taken depends on those after it, so likelihoods of texts leak the future
    and decoding token by token takes every token. It serves encoders, diffusion, and comparisons of training losses.

    Args:
        capacity: experts a token gets on average.

    >>> routing = ExpertChoice(1.0)(torch.randn(2, 8, 4), None)
    >>> routing.counts().tolist()
    [[2.0, 2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0]]
    """

    def __init__(self, capacity: float = 2.0) -> None:
        super().__init__()
        if capacity <= 0:
            raise ConfigError(f"A capacity of {capacity} takes no token.", "Use 1 or more experts a token.")
        self.capacity = capacity

    def forward(self, logits: Tensor, valid: Tensor | None) -> Routing:
        b, t, e = logits.shape
        scores = logits.softmax(-1)
        ranked = scores if valid is None else scores.masked_fill(~valid[..., None], 0.0)
        weights, chosen = ranked.transpose(1, 2).topk(min(t, math.ceil(self.capacity * t / e)), -1)  # (B, E, C)
        tokens = chosen + t * torch.arange(b, device=logits.device)[:, None, None]
        experts = torch.arange(e, device=logits.device)[:, None].expand_as(chosen)
        return Routing(tokens.flatten(), experts.flatten(), weights.flatten(), scores, logits, tokens.numel())
