r"""Routers: which experts a token goes to, and with what weight.

    logits r_t = W_r u_t in float32 or finer (Zoph et al. 2022, "ST-MoE": lower precision makes routing unstable),

and a *choice* turns logits into pairs of a token and an expert (`protea.nn.router_choices`). While training, a router
counts how many tokens each expert got, and adds its balance losses (`protea.nn.router_losses`) to the objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.nn.auxiliary import Term, add_loss, counted
from protea.nn.context import Context
from protea.nn.precise import precise


class Routing(NamedTuple):
    """M pairs of a token and an expert, of B rows of T tokens and E experts.

    Args:
        tokens: (M,) which of the B T tokens.
        experts: (M,) which expert it goes to.
        weights: (M,) float32 or finer, what the expert's answer is multiplied by.
        scores: (B, T, E) float32, how much each token wants each expert; not negative.
        logits: (B, T, E) float32, what the scores come from; None where nothing is learnt.
        wanted: pairs before any were dropped.
    """

    tokens: Tensor
    experts: Tensor
    weights: Tensor
    scores: Tensor
    logits: Tensor | None
    wanted: int

    def counts(self, valid: Tensor | None = None) -> Tensor:
        """(B, E): tokens of each row that go to each expert; `valid` (B, T) is False where not to count."""
        b, t, e = self.scores.shape
        ones = torch.ones_like(self.weights) if valid is None else valid.flatten()[self.tokens].to(self.weights)
        flat = self.weights.new_zeros(b * e)
        return flat.index_add(0, self.tokens // t * e + self.experts, ones.detach()).view(b, e)


Balance = Callable[[Routing, Tensor, Tensor | None], Term]  # (routing, counts, valid) to a loss


class Router(nn.Module, ABC):
    """What all routers share: the load of each expert, counted while training, and balance losses.

    `load` (E,) and `dropped` () count since they were last set to zero; they are not saved.
    """

    load: Tensor
    dropped: Tensor

    def __init__(self, n_experts: int, losses: Sequence[Balance] = ()) -> None:
        super().__init__()
        self.n_experts, self.losses = n_experts, tuple(losses)
        # On the CPU, so that a model that is built on no device can count; they move with it.
        self.register_buffer("load", torch.zeros(n_experts, device="cpu"), persistent=False)
        self.register_buffer("dropped", torch.zeros((), device="cpu"), persistent=False)

    @abstractmethod
    def route(self, x: Tensor, ctx: Context) -> Routing:
        """Pairs for x (B, T, d_model)."""

    @final
    def forward(self, x: Tensor, ctx: Context) -> Routing:
        routing = self.route(x, ctx)
        if self.training:
            counts = routing.counts(ctx.valid)
            if counted():
                with torch.no_grad():
                    self.load += counts.sum(0)
                    self.dropped += routing.wanted - len(routing.tokens)
            for loss in self.losses:
                add_loss(loss(routing, counts, ctx.valid))
        return routing


@final
class LearnedRouter(Router):
    """Logits W_r u, and a choice among the experts by them.

    Args:
        d_model: width of u.
        n_experts: E.
        choice: (logits (B, T, E), valid (B, T) or None) to a `Routing`.
        losses: balance losses, with their weights.

    >>> from protea.nn.context import plain_context
    >>> from protea.nn.router_choices import TopK
    >>> routing = LearnedRouter(8, 4, TopK(2))(torch.randn(1, 3, 8), plain_context(3))
    >>> routing.tokens.tolist(), routing.weights.view(3, 2).sum(1).round(decimals=5).tolist()
    ([0, 0, 1, 1, 2, 2], [1.0, 1.0, 1.0])
    """

    def __init__(self, d_model: int, n_experts: int, choice: nn.Module, losses: Sequence[Balance] = ()) -> None:
        super().__init__(n_experts, losses)
        self.weight = nn.Parameter(torch.randn(n_experts, d_model) * d_model**-0.5)
        self.choice = choice

    def route(self, x: Tensor, ctx: Context) -> Routing:
        with torch.autocast(x.device.type, enabled=False):
            logits = nn.functional.linear(precise(x), precise(self.weight))
            return self.choice(logits, ctx.valid)


@final
class HashRouter(Router):
    """A fixed expert for every token of the vocabulary (Roller et al. 2021, "Hash layers"): nothing is learnt.

    The table is balanced over ids, not over texts, and is drawn from a seed of its own for each layer.

    Args:
        n_experts: E.
        inputs: ids that can be read.
        seed: of the table.
    """

    table: Tensor

    def __init__(self, n_experts: int, inputs: int, seed: int = 0) -> None:
        super().__init__(n_experts)
        order = torch.randperm(inputs, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        self.register_buffer("table", order % n_experts)

    def route(self, x: Tensor, ctx: Context) -> Routing:
        """Pairs by the ids at `ctx.shared["tokens"]` (B, T), where `Decoder.hidden` puts them."""
        if "tokens" not in ctx.shared:
            raise ConfigError(
                "A hash router needs token ids, and this network was given vectors.", "Use a learned router."
            )
        experts = self.table[ctx.shared["tokens"]]
        scores = nn.functional.one_hot(experts, self.n_experts).float()
        tokens = torch.arange(experts.numel(), device=x.device)
        weights = torch.ones(experts.numel(), device=x.device)
        return Routing(tokens, experts.flatten(), weights, scores, None, len(tokens))
