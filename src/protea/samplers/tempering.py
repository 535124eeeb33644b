r"""Parallel tempering: replicas of a chain at several temperatures that trade places.

    p_r(s) proportional to exp(-(E_base(s) + beta_r D(s))),   D = E - E_base,   1 = beta_1 > beta_2 > ... > beta_R >= 0

Neighbours r, r + 1 exchange their states with probability min(1, exp((beta_r - beta_{r+1}) (D(s_r) - D(s_{r+1})))),
which leaves the product of all p_r invariant (Swendsen & Wang 1986; Geyer 1991; for Boltzmann machines Desjardins et
al. 2010). Even and odd pairs take turns. All replicas of all chains are one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from protea.rng import Streams

State = dict[str, Tensor]


def ladder(replicas: int, lowest: float = 0.0) -> Tensor:
    """Inverse temperatures from 1 down to `lowest`, evenly spaced, (replicas,).

    >>> ladder(3).tolist()
    [1.0, 0.5, 0.0]
    """
    return torch.linspace(1.0, lowest, replicas)


def exchange(tilt: Tensor, betas: Tensor, u: Tensor, odd: bool) -> Tensor:
    """Which replica each one takes its state from, (R, n), after one round of exchanges.

    Args:
        tilt: D(s) of every replica and chain, (R, n).
        betas: (R,), decreasing.
        u: uniform numbers, (R, n), of which the first of each pair is used.
        odd: pairs (1, 2), (3, 4) ... instead of (0, 1), (2, 3) ...
    """
    replicas, n = tilt.shape
    source = torch.arange(replicas, device=tilt.device)[:, None].expand(-1, n).clone()
    low = torch.arange(int(odd), replicas - 1, 2, device=tilt.device)
    if len(low) == 0:
        return source
    log_accept = (betas[low] - betas[low + 1])[:, None] * (tilt[low] - tilt[low + 1])
    swap = u[low].log() < log_accept
    source[low], source[low + 1] = (
        torch.where(swap, low[:, None] + 1, low[:, None]),
        torch.where(swap, low[:, None], low[:, None] + 1),
    )
    return source


class Tempering:
    """n chains of R replicas each. Chain i's replicas are rows r * n + i of the state's tensors.

    Args:
        sweep: (state, streams, betas (B, 1)) to the next state, leaving each row's p_r invariant.
        tilt: state to D(s), (B,).
        betas: (R,), from 1 downwards.
    """

    def __init__(
        self, sweep: Callable[[State, Streams, Tensor], State], tilt: Callable[[State], Tensor], betas: Tensor
    ) -> None:
        self.sweep, self.tilt, self.betas = sweep, tilt, betas
        self.accepted = 0.0  # share of exchanges accepted in the last round

    def step(self, state: State, rng: Streams, odd: bool) -> State:
        """One sweep of every replica and one round of exchanges."""
        rows = len(next(iter(state.values())))
        n = rows // len(self.betas)
        state = self.sweep(state, rng, self.betas.repeat_interleave(n)[:, None])
        source = exchange(self.tilt(state).reshape(-1, n), self.betas, rng.uniform(1).reshape(-1, n), odd)
        here = torch.arange(len(self.betas), device=source.device)[:, None]
        self.accepted = float((source != here).double().sum() / 2 / max(n * len(range(int(odd), len(here) - 1, 2)), 1))
        index = (source * n + torch.arange(n, device=source.device)).reshape(-1)
        return {name: value[index] for name, value in state.items()}

    def coldest(self, state: Mapping[str, Tensor]) -> State:
        """The replicas at beta = 1: the sample."""
        n = len(next(iter(state.values()))) // len(self.betas)
        return {name: value[:n] for name, value in state.items()}
