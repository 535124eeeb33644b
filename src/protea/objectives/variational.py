r"""The negative evidence lower bound of a variational autoencoder.

    L(x) = -log p(x | z, y) + beta KL(q(z | x, y) || N(0, I)),    z = mu + sigma eps, eps ~ N(0, I),
    KL   = 1/2 sum_l (mu_l^2 + sigma_l^2 - 1 - log sigma_l^2).

Kingma & Welling 2014 (arXiv:1312.6114), eq. 7 and appendix B: one reparameterised draw, the KL in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from protea.core import Batch, Loss


class LatentGaussian(Protocol):
    """What the bound needs of a model: mu and log sigma of q(z | x, y), and log p(x | z, y)."""

    latent: int  # dimensions of z
    classes: int
    beta: float

    def posterior(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]: ...
    def log_likelihood(self, x: Tensor, z: Tensor, y: Tensor | None) -> Tensor: ...


def kl_to_standard_normal(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, diag sigma^2) || N(0, I)) in nats, (B,), of mu and log sigma (B, L).

    >>> import torch
    >>> kl_to_standard_normal(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)).item()
    0.5
    """
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(1)


def negative_elbo(model: LatentGaussian) -> Callable[[Batch], Loss]:
    """A loss: the sum over rows of the negative ELBO in nats (with beta, where the model sets it)."""

    def loss(batch: Batch) -> Loss:
        y = batch.y if model.classes else None
        mu, log_sigma = model.posterior(batch.x, y)
        z = mu + log_sigma.exp() * batch.rng.normal(model.latent).to(mu)
        kl = kl_to_standard_normal(mu, log_sigma)
        return Loss((model.beta * kl - model.log_likelihood(batch.x, z, y)).sum(), len(batch.x))

    return loss
