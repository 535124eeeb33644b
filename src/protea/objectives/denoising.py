r"""Denoising regression: E over t, eps of |f(x_t, t) - y|^2 / D, where y = a_t x_0 + b_t eps is the network's target.

With "eps" this is L_simple of Ho et al. 2020; with "velocity" on the straight path conditional flow matching (Lipman
et al. 2023); with "score" denoising score matching (Vincent 2011). The density of t is the objective's weighting.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from protea.core import Batch, Loss, Model
from protea.errors import NotSupported
from protea.processes.denoiser import GaussianDenoiser
from protea.processes.parameterisation import target
from protea.rng import Streams
from protea.samplers.guidance import Guided


def uniform(rng: Streams) -> Tensor:
    """t uniform on (0, 1), (B,)."""
    return rng.uniform(1)[:, 0]


def logit_normal(rng: Streams) -> Tensor:
    """t with logit t standard normal, (B,): more weight on the middle (Esser et al. 2024, "Scaling rectified flow")."""
    return torch.sigmoid(rng.normal(1)[:, 0])


TIMES: dict[str, Callable[[Streams], Tensor]] = {"uniform": uniform, "logit-normal": logit_normal}


def denoising_loss(model: Model) -> Callable[[Batch], Loss]:
    """The objective of a Gaussian diffusion, summed over rows; labels are dropped with `model.label_dropout`.

    Raises:
        NotSupported: for a model that is no Gaussian denoiser.
    """
    inner = model.inner if isinstance(model, Guided) else model
    if not isinstance(inner, GaussianDenoiser):
        raise NotSupported(f"{type(model).__name__} does not denoise.", "Give a diffusion or flow-matching model.")
    draw_times = TIMES[inner.times]

    def loss(batch: Batch) -> Loss:
        x_0, rng = batch.x, batch.rng
        t = draw_times(rng.child("t"))
        eps = rng.child("eps").normal(*x_0.shape[1:])
        y = batch.y
        if inner.classes and y is not None:
            hidden = rng.child("label dropout").uniform(1)[:, 0] < inner.label_dropout
            y = torch.where(hidden, inner.classes, y)
        error = inner.predict(inner.path.mix(x_0, eps, t), t, y if inner.classes else None) - target(
            inner.path, inner.parameterisation, x_0, eps, t
        )
        return Loss((error**2).flatten(1).mean(1).sum(), len(x_0))

    return loss
