"""Optimizers as factories: (model, parameters) to an optimizer, called after the model was prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

OptimizerFactory = Callable[[nn.Module, Sequence[nn.Parameter]], torch.optim.Optimizer]


def decay_groups(model: nn.Module, params: Sequence[nn.Parameter], weight_decay: float) -> list[dict]:
    """Two groups: weight decay for matrices and kernels; none for biases, norms' gains and embeddings.

    A norm's gain, a bias and a scale have at most one dimension; embeddings are those of `nn.Embedding`
    and parameters whose name says so.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    embeddings |= {id(p) for name, p in model.named_parameters() if "embed" in name.rsplit(".", 1)[-1].lower()}
    decayed = [p for p in params if p.ndim > 1 and id(p) not in embeddings]
    kept = [p for p in params if p.ndim <= 1 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(
    lr: float = 1e-3, *, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> OptimizerFactory:
    """AdamW (Loshchilov and Hutter 2019) with parameter groups; one fused kernel where weights are whole.

    >>> layer = nn.Linear(3, 2)
    >>> [group["weight_decay"] for group in adamw(1e-2)(layer, list(layer.parameters())).param_groups]
    [0.01, 0.0]
    """

    def factory(model: nn.Module, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        whole = all(not isinstance(p, DTensor) and p.is_floating_point() for p in params)
        groups = decay_groups(model, params, weight_decay)
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True if whole else None)

    return factory


def sgd(lr: float = 1e-2, *, momentum: float = 0.0) -> OptimizerFactory:
    """Stochastic gradient descent."""
    return lambda model, params: torch.optim.SGD(params, lr=lr, momentum=momentum)
