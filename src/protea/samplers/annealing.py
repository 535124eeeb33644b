r"""Simulated annealing of binary units: low-energy states of E(s) = -b . s - 1/2 s^T C s.

Gibbs sweeps at inverse temperatures that rise geometrically from beta_0 to beta_1,

    beta_t = beta_0 (beta_1 / beta_0)^{t / (T - 1)},

keep the best state of each chain (Kirkpatrick, Gelatt & Vecchi 1983, "Optimization by simulated annealing"). A quench
is the same with beta_0 = beta_1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.errors import ConfigError
from protea.rng import Streams
from protea.samplers.gibbs import colours, gibbs


def pairwise_energy(s: Tensor, bias: Tensor, coupling: Tensor) -> Tensor:
    """E(s) = -b . s - 1/2 s^T C s of states (B, n), (B,)."""
    return -(s @ bias) - 0.5 * ((s @ coupling) * s).sum(1)


@torch.no_grad()
def anneal(
    bias: Tensor, coupling: Tensor, rng: Streams, *, sweeps: int = 200, coldest: float = 20.0, hottest: float = 0.1
) -> tuple[Tensor, Tensor]:
    """The best state of each chain (B, n), and its energy (B,).

    Args:
        bias: (n,).
        coupling: (n, n), symmetric with a zero diagonal.
        rng: one stream for each chain.
        sweeps: T.
        coldest, hottest: beta_1 and beta_0, in units of one over the energy.

    Raises:
        ConfigError: inverse temperatures that are not positive and rising.

    >>> C = torch.tensor([[0.0, -2.0], [-2.0, 0.0]])
    >>> s, energy = anneal(torch.tensor([1.0, 1.5]), C, Streams(0, 3), sweeps=20)
    >>> s.tolist()
    [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    """
    if not 0 < hottest <= coldest or sweeps < 1:
        raise ConfigError(f"Annealing from {hottest} to {coldest} in {sweeps} sweeps makes no sense.",
                          "Inverse temperatures are positive and rise.")  # fmt: skip
    order = colours(coupling)
    s = rng.bernoulli(bias.new_full((len(rng), len(bias)), 0.5))
    best, lowest = s, pairwise_energy(s, bias, coupling)
    for t in range(sweeps):
        beta = hottest * (coldest / hottest) ** (t / max(sweeps - 1, 1))
        s = gibbs(s, bias, coupling, rng, beta, order=order)
        energy = pairwise_energy(s, bias, coupling)
        best = torch.where((energy < lowest)[:, None], s, best)
        lowest = torch.minimum(energy, lowest)
    return best, lowest
