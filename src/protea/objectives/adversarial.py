r"""The two losses of a Wasserstein GAN with gradient penalty.

Gulrajani, Ahmed, Arjovsky, Dumoulin & Courville 2017, "Improved Training of Wasserstein GANs"
(arXiv:1704.00028), algorithm 1. With x real, x~ = G(z, y) and x^ = e x + (1 - e) x~, e ~ U(0, 1):

    critic:     f(x~, y) - f(x, y) + lambda (|| grad_x^ f(x^, y) ||_2 - 1)^2
    generator:  -f(G(z, y), y)

E f(x) - E f(x~) estimates the Wasserstein-1 distance between data and samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from protea.core import Batch, Loss
from protea.rng import Streams


class Adversaries(Protocol):
    """What the losses need of a model: a generator, a critic f, and lambda."""

    classes: int
    penalty: float

    def generate(self, rng: Streams, y: Tensor | None) -> Tensor: ...
    def criticise(self, x: Tensor, y: Tensor | None) -> Tensor: ...


def gradient_norm(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """|| grad f ||_2 at each row of x, (B,), itself differentiable in the parameters of f (B rows to B numbers).

    >>> gradient_norm(lambda x: 3 * x[:, 0] + 4 * x[:, 1], torch.zeros(2, 2)).tolist()
    [5.0, 5.0]
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    return gradient.flatten(1).norm(dim=1)


def critic_loss(model: Adversaries) -> Callable[[Batch], Loss]:
    """A loss of the critic: its sum over rows. The generator receives no gradient."""

    def loss(batch: Batch) -> Loss:
        x, y = batch.x, batch.y if model.classes else None
        with torch.no_grad():
            fake = model.generate(batch.rng.child("critic"), y).to(x)
        e = batch.rng.child("interpolate").uniform(*[1] * (x.ndim - 1)).to(x)
        norm = gradient_norm(lambda v: model.criticise(v, y), e * x + (1 - e) * fake)
        both = model.criticise(torch.cat((fake, x)), None if y is None else torch.cat((y, y)))
        estimate = both[len(x) :] - both[: len(x)]
        return Loss((model.penalty * (norm - 1).square() - estimate).sum(), len(x))

    return loss


def generator_loss(model: Adversaries) -> Callable[[Batch], Loss]:
    """A loss of the generator: as many samples as the batch has rows, of the batch's labels, summed."""

    def loss(batch: Batch) -> Loss:
        y = batch.y if model.classes else None
        return Loss(-model.criticise(model.generate(batch.rng.child("generator"), y), y).sum(), len(batch.x))

    return loss


@torch.no_grad()
def wasserstein_estimate(model: Adversaries, batch: Batch) -> Loss:
    """Sum over rows of f(x, y) - f(G(z, y), y): the critic's estimate of the Wasserstein-1 distance."""
    y = batch.y if model.classes else None
    fake = model.generate(batch.rng.child("estimate"), y)
    return Loss((model.criticise(batch.x, y) - model.criticise(fake, y)).sum(), len(batch.x))
