"""What a trained Gaussian diffusion shows to objectives and to guidance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from protea.core import Denoises
from protea.processes.path import GaussianPath
from protea.rng import Streams

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, *event), t (B,)) -> E[x_0 | x_t]


class GaussianDenoiser(Denoises):
    """A denoiser along a Gaussian path, made of a network that predicts some target a_t x_0 + b_t eps.

    Labels are 0 .. classes-1; the index `classes` stands for "no label", which a network learns when labels are
    dropped in training (Ho & Salimans 2022), so that one network holds p(x | y) and p(x).
    """

    path: GaussianPath
    parameterisation: str
    event: tuple[int, ...]
    classes: int
    label_dropout: float  # the share of labels hidden in training
    times: str  # the density of t in training

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's output in the model's own parameterisation; y (B,) may hold the index "no label"."""

    @abstractmethod
    def labels(self, rng: Streams, cond: Tensor | None) -> Tensor | None:
        """The labels to draw with: those given, else drawn from the class frequencies, else None."""

    @abstractmethod
    def integrate(self, denoise: Denoiser, rng: Streams) -> Tensor:
        """Run the model's sampler from noise with a denoiser, its own or a guided one: (B, *event)."""
