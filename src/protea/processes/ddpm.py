r"""The discrete schedules of DDPM, and any such table of alpha-bar as a Gaussian path.

q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i I),  alpha-bar_i = prod_{j <= i} (1 - beta_j), so that
x_i = sqrt(alpha-bar_i) x_0 + sqrt(1 - alpha-bar_i) eps (Ho et al. 2020, "Denoising diffusion probabilistic models").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from protea.errors import ConfigError, nearest
from protea.processes.path import GaussianPath

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def betas(
    schedule: str = "linear",
    steps: int = 1000,
    start: float = 1e-4,
    end: float = 0.02,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The variances beta_1 .. beta_T of a named schedule, (steps,).

    Args:
        schedule: "linear" in beta (Ho et al. 2020), "scaled_linear" in sqrt(beta) (Rombach et al. 2022), or
            "squaredcos_cap_v2", the cosine of Nichol & Dhariwal 2021 capped at 0.999.
        steps: T.
        start, end: the first and the last beta of the linear schedules.

    Raises:
        ConfigError: for an unknown schedule.

    >>> betas("linear")[[0, -1]].tolist()
    [0.0001, 0.02]
    """
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=dtype)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=dtype) ** 2
    if schedule == "squaredcos_cap_v2":
        a = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * (math.pi / 2)
        bar = a.cos() ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999).to(dtype)
    raise ConfigError(f"There is no noise schedule {schedule!r}.", nearest(schedule, SCHEDULES))


def alphas_cumprod(beta: Tensor) -> Tensor:
    """alpha-bar_i = prod_{j <= i} (1 - beta_j), (steps,)."""
    return (1 - beta).cumprod(0)


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha-bar) so that the last is exactly 0 and the first is kept.

    Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", algorithm 1.
    """
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


@dataclass(frozen=True)
class Tabulated(GaussianPath):
    """A variance-preserving path through a table: alpha at t = i/T is sqrt(alpha-bar_i), linear in between.

    Args:
        alpha_bar: alpha-bar_1 .. alpha-bar_T, decreasing, (T,); alpha-bar_0 = 1 is implied.
    """

    alpha_bar: Tensor
    _table: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = torch.cat((torch.ones(1, dtype=torch.float64), self.alpha_bar.double().sqrt().cpu()))
        if not bool((table.diff() < 0).all()):
            raise ConfigError("alpha_bar does not decrease.", "Give the cumulative products of 1 - beta.")
        object.__setattr__(self, "_table", table)

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = self._table.to(t.device)
        steps = len(table) - 1
        low = (t * steps).floor().clamp(0, steps - 1).long()
        slope = (table[low + 1] - table[low]) * steps
        # exactly the table's entries at both ends of a piece, so that alpha-bar_T = 0 stays 0
        w = t * steps - low
        return table[low] * (1 - w) + table[low + 1] * w, slope

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, alpha_dot = self._alpha(t)
        sigma = (1 - alpha**2).clamp(min=0).sqrt()
        return sigma, -alpha * alpha_dot / sigma

    def time(self, log_snr: Tensor) -> Tensor:
        alpha = torch.sigmoid(log_snr.double()).sqrt()
        table = self._table.to(alpha.device)
        low = torch.searchsorted(-table, -alpha).sub(1).clamp(0, len(table) - 2)
        w = (table[low] - alpha) / (table[low] - table[low + 1])
        return ((low + w) / (len(table) - 1)).clamp(0, 1).to(log_snr.dtype)
