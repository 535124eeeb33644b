"""Optimizers as factories: (model, parameters) to an optimizer, called after the model was prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from protea.training.parallel import local


class Optimizer(Protocol):
    """What learning needs of an optimizer; those of `torch.optim` have it."""

    param_groups: list[dict[str, Any]]
    state: Any  # parameter to its state: name to tensor

    def step(self) -> Any: ...


OptimizerFactory = Callable[[nn.Module, Sequence[nn.Parameter]], Optimizer]


class AdamW:
    r"""Adam with decoupled weight decay (Loshchilov and Hutter 2019), on local shards where weights are sharded.

        m <- b1 m + (1-b1) g,   v <- b2 v + (1-b2) g^2,
        theta <- (1 - lr wd) theta - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    The arithmetic is torch's fused kernel. `torch.optim.AdamW` would do the same after importing the
    compiler, which costs seconds at the start of every run.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        self.betas, self.eps = betas, eps
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            learnt = [p for p in group["params"] if p.grad is not None]
            for p in learnt:
                if p not in self.state:
                    zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                    self.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), **zeros}
            for kind in {(p.device, p.dtype) for p in learnt}:
                same = [p for p in learnt if (p.device, p.dtype) == kind]
                states = [self.state[p] for p in same]
                steps = [s["step"] for s in states]
                torch._foreach_add_(steps, 1.0)
                torch._fused_adamw_(
                    [local(p) for p in same], [local(p.grad) for p in same],
                    [local(s["exp_avg"]) for s in states], [local(s["exp_avg_sq"]) for s in states], [], steps,
                    lr=group["lr"], beta1=self.betas[0], beta2=self.betas[1], weight_decay=group["weight_decay"],
                    eps=self.eps, amsgrad=False, maximize=False,
                )  # fmt: skip


def embeddings_of(model: nn.Module) -> set[int]:
    """The ids of embeddings: parameters of `nn.Embedding`, and those whose own name, or whose module's, says so."""
    found = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    named = ((name.split("."), p) for name, p in model.named_parameters())
    return found | {id(p) for name, p in named if any("embed" in part.lower() for part in name[-3:])}


def decay_groups(model: nn.Module, params: Sequence[nn.Parameter], weight_decay: float) -> list[dict]:
    """Two groups: weight decay for matrices and kernels; none for biases, norms' gains and embeddings.

    A norm's gain, a bias and a scale have at most one dimension; for embeddings see `embeddings_of`.
    """
    embeddings = embeddings_of(model)
    decayed = [p for p in params if p.ndim > 1 and id(p) not in embeddings]
    kept = [p for p in params if p.ndim <= 1 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(
    lr: float = 1e-3, *, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> OptimizerFactory:
    """AdamW (Loshchilov and Hutter 2019) with parameter groups.

    >>> layer = nn.Linear(3, 2)
    >>> [group["weight_decay"] for group in adamw(1e-2)(layer, list(layer.parameters())).param_groups]
    [0.01, 0.0]
    """

    return lambda model, params: AdamW(decay_groups(model, params, weight_decay), lr, betas, eps)


def sgd(lr: float = 1e-2, *, momentum: float = 0.0) -> OptimizerFactory:
    """Stochastic gradient descent (torch's)."""
    return lambda model, params: torch.optim.SGD(params, lr=lr, momentum=momentum)
