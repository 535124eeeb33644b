r"""The variational autoencoder, with perceptrons or convolutions.

Kingma & Welling 2014, "Auto-Encoding Variational Bayes" (arXiv:1312.6114):

    p(z) = N(0, I),   p(x | z, y) = N(m(z, y), diag s(z, y)^2),   q(z | x, y) = N(mu(x, y), diag sigma(x, y)^2),
    log p(x | y) >= E_q[log p(x | z, y)] - KL(q(z | x, y) || p(z))                        (the ELBO; analytic KL).

The scale s is learned, so that the likelihood is one of the data's own units and there is no weight
between the two terms to tune. With k draws z_j ~ q the bound tightens (Burda, Grosse &
Salakhutdinov 2016, "Importance Weighted Autoencoders"):

    log p(x | y) >= E log 1/k sum_j p(x | z_j, y) p(z_j) / q(z_j | x, y).

A sample is one of p(x): x = m + s eps with z ~ N(0, I). The picture without the noise is
`decode(z).mean`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from protea.core import Bounded, Encodes, Model
from protea.errors import ConfigError
from protea.models.entry import Entry
from protea.models.labels import class_frequencies, draw_labels, each_label, marginalise, refuse_labels
from protea.models.lifted import lift
from protea.nn.conv import ConvDecoder, ConvEncoder, is_convolutional
from protea.nn.mlp import ResidualMLP
from protea.rng import Streams
from protea.space import Rows, Space

LOWEST = -7.0  # of log s: a constant entry must not make the density unbounded
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a variational autoencoder.

    Args:
        latent: dimensions of z.
        width: hidden units of the perceptrons.
        depth: their residual blocks.
        channels: of the convolutions at full resolution; 0 for perceptrons only. Images alone use them.
        scale: "predicted" (s depends on z and on the entry) or "shared" (on the entry alone).
        beta: weight of the KL term in the objective (Higgins et al. 2017); 1 is the ELBO. Bounds never use it.
        dropout: in perceptrons.
    """

    latent: int = 16
    width: int = 128
    depth: int = 2
    channels: int = 16
    scale: str = "predicted"
    beta: float = 1.0
    dropout: float = 0.0


class VAE(Bounded, Encodes):
    """A latent Gaussian made visible by a decoder.

    Args:
        event: shape of x; D is its number of entries.
        latent: L, dimensions of z.
        encoder: (x (B, *event), y) to (B, 2 L): mu, then log sigma.
        decoder: (z (B, L), y) to D numbers, the mean m; or to 2 D, the mean and what is added to log s.
        classes: labels y takes; 0 for an unconditional model.
        beta: weight of the KL term in the objective.
    """

    class_prior: Tensor

    def __init__(
        self, event: tuple[int, ...], latent: int, encoder: nn.Module, decoder: nn.Module,
        classes: int = 0, beta: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.event, self.latent, self.classes, self.beta = tuple(event), latent, classes, beta
        self.encoder, self.decoder = encoder, decoder
        self.log_scale = nn.Parameter(torch.zeros(math.prod(self.event)))
        self.register_buffer("class_prior", torch.full((classes,), 1 / max(classes, 1), dtype=torch.float64))

    @torch.no_grad()
    def initialise(self, rows: Rows, seed: int = 0) -> None:
        # One scale for all entries, well below their spread. At the spread itself noise explains the data at
        # once and the latent variables are never used; with one scale for each entry, those that are nearly
        # constant outweigh all others.
        spread = rows.x.flatten(1).double().var(0, correction=0).mean().sqrt()
        self.log_scale.fill_(max(float(spread.clamp(min=1e-9).log()) - 2, LOWEST + 1))
        if self.classes:
            self.class_prior.copy_(class_frequencies(rows, self.classes))

    def posterior(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """mu and log sigma of q(z | x, y), each (B, L)."""
        mu, log_sigma = self.encoder(x, y).chunk(2, 1)
        return mu, log_sigma.clamp(-8, 8)

    def likelihood(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """m and log s of p(x | z, y), each (B, D)."""
        out, size = self.decoder(z, y).flatten(1), len(self.log_scale)
        log_s = self.log_scale + out[:, size:] if out.shape[1] > size else self.log_scale.expand_as(out)
        return out[:, :size], LOWEST + F.softplus(log_s - LOWEST)

    def log_likelihood(self, x: Tensor, z: Tensor, y: Tensor | None) -> Tensor:
        """log p(x | z, y), (B,)."""
        m, log_s = self.likelihood(z, y)
        return -0.5 * ((x.flatten(1) - m) * (-log_s).exp()).square().sum(1) - log_s.sum(1) - 0.5 * _LOG_2PI * m.shape[1]

    def encode(self, x: Tensor, cond: Tensor | None = None) -> Distribution:
        """q(z | x, y); without labels, its mixture over the class prior."""
        if not self.classes:
            refuse_labels(cond)
        elif cond is None:
            mu, log_sigma = self.posterior(*each_label(self.class_prior, x))
            return self._mixture(mu, log_sigma.exp())
        mu, log_sigma = self.posterior(x, cond)
        return Independent(Normal(mu, log_sigma.exp()), 1)

    def decode(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """p(x | z, y); without labels, its mixture over the class prior."""
        if not self.classes:
            refuse_labels(cond)
        elif cond is None:
            m, log_s = self.likelihood(*each_label(self.class_prior, z))
            return self._mixture(m.unflatten(1, self.event), log_s.exp().unflatten(1, self.event))
        m, log_s = self.likelihood(z, cond)
        return Independent(Normal(m.unflatten(1, self.event), log_s.exp().unflatten(1, self.event)), len(self.event))

    def _mixture(self, mean: Tensor, scale: Tensor) -> Distribution:
        mean, scale = mean.unflatten(0, (-1, self.classes)), scale.unflatten(0, (-1, self.classes))
        weights = Categorical(probs=self.class_prior.to(mean).expand(len(mean), -1))
        return MixtureSameFamily(weights, Independent(Normal(mean, scale), mean.ndim - 2))

    def log_prob_bound(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams, k: int = 1) -> Tensor:
        """The importance-weighted bound of k draws, (B,); the draws of a smaller k are the first of a larger.

        Without labels, a conditional model bounds the marginal log sum_y p(y) p(x | y).
        """
        if not self.classes:
            refuse_labels(cond)
        elif cond is None:
            xs, ys = each_label(self.class_prior, x)
            streams = Streams(rng.seed, rng.ids.repeat_interleave(self.classes), rng.device)
            return marginalise(self.class_prior, self.log_prob_bound(xs, ys, rng=streams.child("marginal"), k=k))
        mu, log_sigma = self.posterior(x, cond)
        log_w = []
        for _ in range(k):  # one draw at a time: memory does not grow with k
            eps = rng.normal(self.latent).to(mu)
            z = mu + log_sigma.exp() * eps
            log_ratio = log_sigma + 0.5 * (eps.square() - z.square())  # log p(z) - log q(z)
            log_w.append(self.log_likelihood(x, z, cond) + log_ratio.sum(1))
        return torch.logsumexp(torch.stack(log_w), 0) - math.log(k)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        y = draw_labels(self.class_prior, rng, cond)
        m, log_s = self.likelihood(rng.normal(self.latent), y)
        return (m + log_s.exp() * rng.normal(m.shape[1])).unflatten(1, self.event)


def vae(event: tuple[int, ...], classes: int, config: VAEConfig) -> VAE:
    """An untrained variational autoencoder over R^event; convolutional where the event is an image of even sides.

    >>> vae((1, 8, 8), 10, VAEConfig(latent=4)).encode(torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=int)).mean.shape
    torch.Size([3, 4])
    """
    if config.scale not in ("predicted", "shared"):
        raise ConfigError(f"scale is {config.scale!r}.", 'Choose "predicted" or "shared".')
    per_entry = 2 if config.scale == "predicted" else 1
    sizes: dict[str, Any] = {"width": config.width, "depth": config.depth, "classes": classes}
    encoder: nn.Module
    decoder: nn.Module
    if config.channels and is_convolutional(event):
        out = (per_entry * event[0], *event[1:])
        encoder = ConvEncoder(event, 2 * config.latent, channels=config.channels, **sizes)
        decoder = ConvDecoder(config.latent, out, channels=config.channels, **sizes)
    else:
        dim = math.prod(event)
        encoder = ResidualMLP(dim, 2 * config.latent, dropout=config.dropout, **sizes)
        decoder = ResidualMLP(config.latent, per_entry * dim, dropout=config.dropout, **sizes)
    return VAE(event, config.latent, encoder, decoder, classes, config.beta)


def suggest(space: Space, train: Rows, seconds: float) -> VAEConfig:
    """Sizes from the shape of the data, its number of rows, and the budget."""
    from protea.transforms.relaxations import relaxation_for

    event = relaxation_for(space).event
    dim, small = math.prod(event), len(train) < 1000
    if is_convolutional(event):
        large, short = dim > 256, seconds <= 120  # a step of a large image must stay affordable
        return VAEConfig(
            latent=32 if large else 16, width=128 if large and short else 256, depth=1,
            channels=8 if large and short else 16,
        )  # fmt: skip
    return VAEConfig(
        latent=max(2, min(dim, 32)), width=128 if small else 256, depth=2, channels=0, dropout=0.1 if small else 0.0
    )


def build(space: Space, config: VAEConfig) -> Model:
    """A variational autoencoder of the relaxed data, seen from the space's own units."""
    from protea.transforms.relaxations import relaxation_for

    relaxation = relaxation_for(space)
    return lift(space, relaxation, vae(relaxation.event, len(space.classes), config))


ENTRY = Entry(
    name="vae",
    family="latent",
    title="Variational autoencoder",
    source="Kingma & Welling 2014, Auto-Encoding Variational Bayes",
    suits=frozenset({"vector", "table", "image"}),
    config=VAEConfig,
    build=build,
    suggest=suggest,
)
