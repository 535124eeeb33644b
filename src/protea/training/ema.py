r"""Averages of weights along the path of training: theta_bar <- theta_bar + w_t (theta - theta_bar).

The weight w_t = 1 - beta_t of update t = 1, 2, ... is what distinguishes the kinds below. All have
w_1 = 1, so that the initial weights leave no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from protea.training.parallel import local

Weight = Callable[[int], float]  # update number t >= 1 to the weight of the newest weights


def constant(decay: float = 0.999) -> Weight:
    r"""Exponential average with Adam's bias correction: w_t = (1 - d) / (1 - d^t), with d the decay.

    >>> [round(constant(0.5)(t), 4) for t in (1, 2, 3)]
    [1.0, 0.6667, 0.5714]
    """
    return lambda t: (1 - decay) / (1 - decay**t)


def power(gamma: float = 16.0, decay: float = 1.0) -> Weight:
    r"""Power-function average (Karras et al. 2024, "Analyzing and improving the training dynamics of
    diffusion models", eq. 129): beta_t = (1 - 1/t)^(gamma+1), a window that is a fixed fraction of the
    path; capped at `decay`, where it becomes an exponential average.

    >>> [round(power(0.0)(t), 4) for t in (1, 2, 4)]
    [1.0, 0.5, 0.25]
    """
    return lambda t: 1 - min(decay, (1 - 1 / t) ** (gamma + 1))


class Ema:
    """The running average of some tensors, kept beside them (local shards where they are sharded)."""

    def __init__(self, params: Mapping[str, Tensor], weight: Weight) -> None:
        self.params, self.weight, self.updates = dict(params), weight, 0
        self.average = {name: p.detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        self.updates += 1
        torch._foreach_lerp_(_locals(self.average), _locals(self.params), self.weight(self.updates))

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap the average and the weights in place; a second call undoes it."""
        for a, p in zip(_locals(self.average), _locals(self.params)):
            held = p.clone()
            p.copy_(a)
            a.copy_(held)


def _locals(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [local(t) for t in tensors.values()]
