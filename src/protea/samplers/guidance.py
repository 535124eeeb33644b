r"""Classifier-free guidance (Ho & Salimans 2022): a denoiser pushed away from what it would do unasked.

    D_w(x_t, t, y) = D(x_t, t) + w (D(x_t, t, y) - D(x_t, t))

The same combination holds for eps, v, velocity and score, which are affine in D. w = 1 is the conditional model,
w = 0 the unconditional one, w > 1 trades variety for fidelity. There is no density whose denoiser D_w is known to be
for w other than 0 and 1, so a guided model is not `Bounded`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.core import Denoises
from protea.errors import ConfigError
from protea.processes.denoiser import GaussianDenoiser
from protea.rng import Streams
from protea.space import Rows


class Guided(Denoises):
    """A model that samples with classifier-free guidance; it denoises and draws, and has no likelihood.

    Args:
        inner: a conditional diffusion trained with label dropout.
        weight: w.

    Raises:
        ConfigError: if `inner` has no classes to be guided by.
    """

    def __init__(self, inner: GaussianDenoiser, weight: float) -> None:
        if inner.classes == 0:
            raise ConfigError("Guidance needs a conditional model, and this one has no classes.", "Use guidance 1.")
        super().__init__()
        self.inner, self.weight, self.block = inner, float(weight), inner.block

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None or self.weight == 1:
            return self.inner.denoise(x_t, t, cond)
        nobody = torch.full_like(cond, self.inner.classes)
        both = self.inner.denoise(torch.cat((x_t, x_t)), torch.cat((t, t)), torch.cat((nobody, cond)))
        free, asked = both.chunk(2)
        return free + self.weight * (asked - free)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        y = self.inner.labels(rng, cond)
        return self.inner.integrate(lambda x_t, t: self.denoise(x_t, t, y), rng)

    def initialise(self, rows: Rows, seed: int = 0) -> None:
        self.inner.initialise(rows, seed)
