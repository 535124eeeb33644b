r"""A neural spline flow: couplings of rational-quadratic splines between learned linear mixings.

Durkan et al. 2019, "Neural Spline Flows" (RQ-NSF (C)). With f the composition of whitening,
mixings and couplings, z = f(x; y) and p(z) = N(0, I):

    log p(x | y) = log N(f(x; y); 0, I) + log |det df/dx|,      x = f^{-1}(z; y), z ~ N(0, I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from protea.core import Model, Normalised
from protea.errors import ConfigError
from protea.models.entry import Entry
from protea.models.labels import class_frequencies, draw_labels, each_label, marginalise, refuse_labels
from protea.models.lifted import lift
from protea.nn.mlp import ResidualMLP
from protea.rng import Streams, fold
from protea.space import Rows, Space
from protea.transforms.bijection import Bijection, Chain
from protea.transforms.coupling import SplineCoupling, halves
from protea.transforms.linear import LULinear, Permute, Whiten
from protea.transforms.spline import parameters_per_spline

WHITENED = 4096  # entries up to which the whole covariance is whitened; beyond, its diagonal


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of a neural spline flow.

    Args:
        transforms: couplings; each bends half of the entries.
        width: hidden units of a coupling's conditioner.
        depth: residual blocks of a conditioner.
        bins: bins of each spline.
        bound: splines act on [-bound, bound], in standard deviations; beyond it they are the identity.
        mixing: "lu" (learned linear maps) or "permutation" (fixed, for hundreds of entries and more).
        dropout: in the conditioners.
        seed: of the permutations.
    """

    transforms: int = 6
    width: int = 128
    depth: int = 2
    bins: int = 8
    bound: float = 5.0
    mixing: str = "lu"
    dropout: float = 0.0
    seed: int = 0


class Flow(Normalised):
    """p(x | y) = N(f(x; y); 0, I) |det df/dx|, for any bijection f.

    Args:
        event: shape of x; D is its number of entries.
        whiten: the first bijection, fitted to the training rows by `initialise`.
        bijection: from (B, D) to (B, D).
        classes: labels y takes; 0 for an unconditional model.
    """

    class_prior: Tensor

    def __init__(self, event: tuple[int, ...], whiten: Whiten, bijection: Bijection, classes: int = 0) -> None:
        super().__init__()
        self.event, self.dim, self.classes = tuple(event), math.prod(event), classes
        self.whiten, self.bijection = whiten, bijection
        self.register_buffer("class_prior", torch.full((classes,), 1 / max(classes, 1), dtype=torch.float64))

    def initialise(self, rows: Rows, seed: int = 0) -> None:
        self.whiten.fit(rows.x.flatten(1))
        if self.classes:
            self.class_prior.copy_(class_frequencies(rows, self.classes))

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        if not self.classes:
            refuse_labels(cond)
        elif cond is None:
            return marginalise(self.class_prior, self.log_prob(*each_label(self.class_prior, x)))
        u, log_det_u = self.whiten(x.flatten(1))
        z, log_det_z = self.bijection(u, cond)
        return -0.5 * (z.square().sum(1) + self.dim * math.log(2 * math.pi)) + log_det_u + log_det_z

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        y = draw_labels(self.class_prior, rng, cond)
        z = rng.normal(self.dim)
        return self.whiten.inverse(self.bijection.inverse(z, y)).reshape(len(rng), *self.event)


def spline_flow(event: tuple[int, ...], classes: int, config: FlowConfig) -> Flow:
    """An untrained neural spline flow over R^event.

    >>> flow = spline_flow((2,), 0, FlowConfig(transforms=2, width=16))
    >>> flow.log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """
    if config.mixing not in ("lu", "permutation"):
        raise ConfigError(f"mixing is {config.mixing!r}.", 'Choose "lu" or "permutation".')
    dim, parts = math.prod(event), []
    for i in range(config.transforms):
        # A new partition for every pair of couplings, so that the pair transforms every entry.
        if i % 2 == 0 and i > 0:
            parts.append(Permute(dim, fold(config.seed, "flow", i)))
        if config.mixing == "lu":
            parts.append(LULinear(dim))
        mask = halves(dim, i)
        bent = int(mask.sum())
        net = ResidualMLP(
            dim - bent, bent * parameters_per_spline(config.bins), width=config.width, depth=config.depth,
            classes=classes, dropout=config.dropout, gain=1e-2,
        )  # fmt: skip
        parts.append(SplineCoupling(mask, net, bins=config.bins, bound=config.bound))
    return Flow(event, Whiten(dim, full=dim <= WHITENED), Chain(parts), classes)


def suggest(space: Space, train: Rows, seconds: float) -> FlowConfig:
    """Sizes from the number of entries, of rows, and the budget."""
    from protea.transforms.relaxations import relaxation_for

    dim = math.prod(relaxation_for(space).event)
    small = len(train) < 1000  # few rows: fewer weights, and dropout against overfitting
    if dim > 256:
        return FlowConfig(transforms=4, width=128, depth=1, bins=4, mixing="permutation", dropout=0.1)
    if dim > 24:
        return FlowConfig(transforms=4, width=128, depth=1, bins=4 if dim > 100 else 8, dropout=0.2 if small else 0.1)
    long = seconds > 60 and not small
    return FlowConfig(
        transforms=6 if long else 4, width=128 if long else 64, depth=1, bins=16 if dim <= 8 else 8,
        dropout=0.1 if small and dim > 2 else 0.0,
    )  # fmt: skip


def build(space: Space, config: FlowConfig) -> Model:
    """A neural spline flow of the relaxed data, seen from the space's own units."""
    from protea.transforms.relaxations import relaxation_for

    relaxation = relaxation_for(space)
    return lift(space, relaxation, spline_flow(relaxation.event, len(space.classes), config))


ENTRY = Entry(
    name="flow",
    family="flow",
    title="Neural spline flow (couplings)",
    source="Durkan, Bekasov, Murray & Papamakarios 2019, Neural Spline Flows",
    suits=frozenset({"vector", "table", "image"}),
    config=FlowConfig,
    build=build,
    suggest=suggest,
)
