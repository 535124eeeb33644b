r"""Keeping experts busy without a loss, and showing how busy they are.

After every step each router's selection bias moves against its load (Wang et al. 2024, "Auxiliary-loss-free load
balancing strategy for mixture-of-experts"; DeepSeek-V3, section 2.1.2):

    b_i <- b_i + gamma sign(mean_j c_j - c_i),

with c_i the tokens that expert i got in the step, over all microbatches and ranks. The biases are buffers of the model
and the counts start again at every step, so a resumed run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from protea.core import Model
from protea.nn.router import Router
from protea.nn.router_choices import Affinity
from protea.training import parallel


def routers(model: nn.Module) -> list[Router]:
    """All routers of a model, in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, Router)]


def load_figures(load: Tensor) -> dict[str, float]:
    """How evenly experts are used, of the tokens that each got, (layers, E); the worst layer counts.

    Returns:
        expert_load_cv: standard deviation over mean of the load, averaged over layers.
        expert_max_violation: largest load over mean load, less 1 (MaxVio of Wang et al. 2024).
        expert_entropy: of the shares, divided by log E, averaged over layers: 1 is even.
        dead_experts: experts that got no token.

    >>> load_figures(torch.tensor([[2.0, 2.0, 0.0, 0.0]]))["expert_max_violation"]
    1.0
    """
    mean = load.mean(1, keepdim=True).clamp_min(1e-9)
    share = load / load.sum(1, keepdim=True).clamp_min(1e-9)
    entropy = torch.special.entr(share).sum(1) / torch.tensor(float(max(2, load.shape[1]))).log()
    return {
        "expert_load_cv": float((load / mean).std(1, correction=0).mean()),
        "expert_max_violation": float((load / mean).amax() - 1),
        "expert_entropy": float(entropy.mean()),
        "dead_experts": float((load == 0).sum()),
    }


class BalanceExperts:
    """Called after every step of a learner: moves the biases of `Affinity` routers, and returns figures of the load.

    Args:
        rate: gamma; 0 only watches.

    >>> from protea.nn.router import LearnedRouter
    >>> router = LearnedRouter(4, 2, Affinity(2, 1))
    >>> router.load += torch.tensor([3.0, 1.0])
    >>> BalanceExperts(0.001)(router)["expert_max_violation"], router.choice.bias.tolist()
    (0.5, [-0.0010000000474974513, 0.0010000000474974513])
    """

    def __init__(self, rate: float = 1e-3) -> None:
        self.rate = rate

    @torch.no_grad()
    def __call__(self, model: Model | nn.Module) -> Mapping[str, float]:
        found = routers(model)
        parallel.add_([tensor for router in found for tensor in (router.load, router.dropped)])
        figures: dict[str, float] = {}
        loads = [router.load.clone() for router in found]
        if loads and all(len(load) == len(loads[0]) for load in loads):
            figures = load_figures(torch.stack(loads))
            wanted = float(sum(load.sum() for load in loads))
            dropped = float(sum(router.dropped for router in found))
            figures["dropped_tokens"] = dropped / max(1.0, wanted + dropped)
        for router, load in zip(found, loads):
            choice = getattr(router, "choice", None)
            if isinstance(choice, Affinity) and self.rate:
                choice.rebalance(load, self.rate)
            router.load.zero_()
            router.dropped.zero_()
        return figures
