r"""Gibbs sampling of binary and binomial units with any pairwise couplings, many chains at once.

    p(s) proportional to m(s) exp(s . b + 1/2 s^T C s),    s_i | rest ~ Binomial(n, sigma(b_i + sum_j C_ij s_j))

(Geman & Geman 1984.) Units that are not coupled to each other are drawn together: `colours` finds such groups, so that
a grid takes two steps, a layered machine one a layer, and a fully connected one a step a unit. Every chain of the batch
takes each step at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protea.rng import Streams


def colours(coupling: Tensor) -> list[Tensor]:
    """Groups of units without couplings inside a group: a greedy colouring of the graph of non-zero couplings (n, n).

    >>> chain = torch.diag(torch.ones(3), 1) + torch.diag(torch.ones(3), -1)
    >>> [group.tolist() for group in colours(chain)]
    [[0, 2], [1, 3]]
    """
    linked = (coupling != 0).cpu()
    colour: list[int] = []
    for i in range(len(linked)):
        taken = {colour[j] for j in linked[i, :i].nonzero()[:, 0].tolist()}
        colour.append(next(c for c in range(i + 1) if c not in taken))
    found = torch.tensor(colour)
    return [(found == c).nonzero()[:, 0].to(coupling.device) for c in range(max(colour, default=-1) + 1)]


def gibbs(
    s: Tensor, bias: Tensor, coupling: Tensor, rng: Streams, beta: float | Tensor = 1.0, *,
    base: Tensor | None = None, trials: int = 1, held: Tensor | None = None, order: Sequence[Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """One sweep: every unit drawn once given all others, at inverse temperature beta; returns a new s.

    Args:
        s: (B, n) states, 0 .. trials.
        bias: (n,) or (B, n).
        coupling: (n, n), symmetric with a zero diagonal.
        rng: B streams.
        beta: a number or (B, 1); energies are (1 - beta) E_base + beta E.
        base: biases of the base distribution; None for 0.
        held: (B, n), True for units that stay as they are.
        order: groups of uncoupled units; None for one unit after another.

    >>> s = gibbs(torch.zeros(4, 3), torch.tensor([0.0, 50.0, -50.0]), torch.zeros(3, 3), Streams(0, 4))
    >>> s[:, 1:].tolist()
    [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    """
    s, n = s.clone(), s.shape[1]
    coins = rng.coins(n, trials)
    zero = torch.zeros_like(bias) if base is None else base
    groups = [slice(i, i + 1) for i in range(n)] if order is None else order
    for group in groups:
        logits = zero[..., group] + beta * (bias[..., group] - zero[..., group] + s @ coupling[:, group])
        drawn = (coins[:, group] < torch.sigmoid(logits)[..., None]).sum(-1).to(s.dtype)
        s[:, group] = drawn if held is None else torch.where(held[:, group], s[:, group], drawn)
    return s


def mean_field(
    bias: Tensor, coupling: Tensor, *, steps: int = 30, damping: float = 0.5, start: Tensor | None = None
) -> Tensor:
    """Means m (B, n) of the factorised q(s) that is (locally) closest to p in KL(q || p), binary units.

        m_i <- damping m_i + (1 - damping) sigma(b_i + sum_j C_ij m_j)      (Peterson & Anderson 1987)

    Args:
        bias: (B, n).
        coupling: (n, n).
    """
    m = torch.sigmoid(bias) if start is None else start
    for _ in range(steps):
        m = damping * m + (1 - damping) * torch.sigmoid(bias + m @ coupling)
    return m


def entropy(m: Tensor) -> Tensor:
    """Entropy of independent binary units of means m, (B,) nats.

    >>> float(entropy(torch.tensor([[0.5, 1.0]])))  # log 2
    0.6931471824645996
    """
    return -(torch.xlogy(m, m) + torch.xlogy(1 - m, 1 - m)).sum(1)
