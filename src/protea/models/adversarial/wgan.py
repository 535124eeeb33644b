r"""The Wasserstein GAN with gradient penalty, conditional where the data have labels.

Arjovsky, Chintala & Bottou 2017, "Wasserstein GAN" (arXiv:1701.07875), with the penalty of
Gulrajani et al. 2017 (arXiv:1704.00028):

    min_G max_{|f|_Lip <= 1}  E f(x, y) - E f(G(z, y), y),      z ~ N(0, I),

where labels are given to both sides (Mirza & Osindero 2014, "Conditional Generative Adversarial
Nets"). There is no likelihood: such a model can only be drawn from. The losses are in
`objectives/adversarial.py`. The critic has no normalisation, which would make its gradient at one
sample depend on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from protea.core import Model
from protea.models.entry import Entry
from protea.models.labels import class_frequencies, draw_labels
from protea.models.lifted import lift
from protea.nn.conv import ConvDecoder, ConvEncoder, is_convolutional
from protea.nn.mlp import ResidualMLP
from protea.rng import Streams
from protea.space import Rows, Space


@dataclass(frozen=True)
class WGANConfig:
    """Sizes of a Wasserstein GAN.

    Args:
        latent: dimensions of z.
        width: hidden units of the perceptrons.
        depth: their residual blocks.
        channels: of the convolutions at full resolution; 0 for perceptrons only. Images alone use them.
        penalty: lambda, the weight of the gradient penalty. 10 is the paper's, for images; on low-dimensional data
            smaller ones let the critic follow the generator sooner (the authors' own toys take 0.1).
        n_critic: steps of the critic for each of the generator.
        generator_rate, critic_rate: learning rates. Gulrajani et al. take 1e-4 for runs of 200,000 steps; short runs
            need more, and a critic faster than its generator (Heusel et al. 2017, "GANs trained by a two time-scale
            update rule ...").
    """

    latent: int = 32
    width: int = 256
    depth: int = 2
    channels: int = 16
    penalty: float = 10.0
    n_critic: int = 5
    generator_rate: float = 5e-4
    critic_rate: float = 1e-3


class WGAN(Model):
    """A generator and its critic.

    Args:
        event: shape of x.
        latent: L, dimensions of z.
        generator: (z (B, L), y) to x, B times the event in any shape.
        critic: (x (B, *event), y) to (B, 1) or (B,).
        classes: labels y takes; 0 for an unconditional model.
        penalty: lambda.
        n_critic, generator_rate, critic_rate: for the learner.
    """

    class_prior: Tensor

    def __init__(
        self, event: tuple[int, ...], latent: int, generator: nn.Module, critic: nn.Module, *,
        classes: int = 0, penalty: float = 10.0, n_critic: int = 5,
        generator_rate: float = 5e-4, critic_rate: float = 1e-3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.event, self.latent, self.classes = tuple(event), latent, classes
        self.generator, self.critic = generator, critic
        self.penalty, self.n_critic = penalty, n_critic
        self.generator_rate, self.critic_rate = generator_rate, critic_rate
        self.register_buffer("class_prior", torch.full((classes,), 1 / max(classes, 1), dtype=torch.float64))

    def initialise(self, rows: Rows, seed: int = 0) -> None:
        if self.classes:
            self.class_prior.copy_(class_frequencies(rows, self.classes))

    def generator_parameters(self) -> list[nn.Parameter]:
        return list(self.generator.parameters())

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def generate(self, rng: Streams, y: Tensor | None) -> Tensor:
        """G(z, y) for z from the streams, (B, *event)."""
        return self.generator(rng.normal(self.latent), y).reshape(len(rng), *self.event)

    def criticise(self, x: Tensor, y: Tensor | None) -> Tensor:
        """f(x, y), (B,)."""
        return self.critic(x, y).reshape(len(x))

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        return self.generate(rng, draw_labels(self.class_prior, rng, cond))


class _Bounded(nn.Module):
    """tanh of a network: images are relaxed to (-1, 1)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.tanh(self.net(z, y))


def wgan(event: tuple[int, ...], classes: int, config: WGANConfig) -> WGAN:
    """An untrained Wasserstein GAN over R^event; convolutional where the event is an image of even sides.

    >>> wgan((1, 8, 8), 10, WGANConfig(latent=4)).criticise(torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=int)).shape
    torch.Size([3])
    """
    leaky: Callable[[], nn.Module] = partial(nn.LeakyReLU, 0.2)
    sizes: dict[str, Any] = {"width": config.width, "depth": config.depth, "classes": classes}
    generator: nn.Module
    critic: nn.Module
    if config.channels and is_convolutional(event):
        sizes["channels"] = config.channels
        generator = _Bounded(ConvDecoder(config.latent, event, activation=nn.ReLU, **sizes))
        critic = ConvEncoder(event, 1, activation=leaky, **sizes)
    else:
        dim = math.prod(event)
        generator = ResidualMLP(config.latent, dim, activation=nn.ReLU, **sizes)
        critic = ResidualMLP(dim, 1, activation=leaky, **sizes)
    return WGAN(
        event, config.latent, generator, critic, classes=classes, penalty=config.penalty,
        n_critic=config.n_critic, generator_rate=config.generator_rate, critic_rate=config.critic_rate,
    )  # fmt: skip


def suggest(space: Space, train: Rows, seconds: float) -> WGANConfig:
    """Sizes from the shape of the data and the budget."""
    from protea.transforms.relaxations import relaxation_for

    event = relaxation_for(space).event
    dim = math.prod(event)
    if is_convolutional(event):
        short = dim > 256 and seconds <= 120  # a step of a large image must stay affordable
        return WGANConfig(latent=32 if dim < 1000 else 64, width=128, depth=1, channels=8 if short else 16)
    return WGANConfig(
        latent=max(4, min(2 * dim, 64)), width=128 if seconds <= 60 or dim <= 8 else 256, depth=1, channels=0,
        penalty=1.0, critic_rate=2e-3,
    )  # fmt: skip


def build(space: Space, config: WGANConfig) -> Model:
    """A Wasserstein GAN of the relaxed data, seen from the space's own units."""
    from protea.transforms.relaxations import relaxation_for

    relaxation = relaxation_for(space)
    return lift(space, relaxation, wgan(relaxation.event, len(space.classes), config))


ENTRY = Entry(
    name="wgan",
    family="adversarial",
    title="Wasserstein GAN with gradient penalty",
    source="Gulrajani, Ahmed, Arjovsky, Dumoulin & Courville 2017, Improved Training of Wasserstein GANs",
    suits=frozenset({"vector", "table", "image"}),
    config=WGANConfig,
    build=build,
    suggest=suggest,
)
