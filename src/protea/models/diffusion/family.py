"""The registered diffusion models: "diffusion" and "flow-matching", one class and one network with different parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from protea.core import Model
from protea.errors import ConfigError, nearest
from protea.models.diffusion.gaussian import GaussianDiffusion, Sampler
from protea.models.entry import Entry
from protea.models.lifted import lift
from protea.nn.patch import Patched
from protea.nn.residual import ModulatedMLP
from protea.nn.unet import UNet
from protea.objectives.denoising import TIMES
from protea.processes.path import PATHS
from protea.samplers.ddim import ancestral, ddim
from protea.samplers.guidance import Guided
from protea.samplers.ode import euler, heun
from protea.space import Rows, Space
from protea.transforms.relaxations import relaxation_for

SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "ancestral": ancestral, "euler": euler, "heun": heun}


@dataclass(frozen=True)
class DiffusionConfig:
    """A Gaussian diffusion.

    Args:
        network: "unet", "mlp", or "auto": a U-Net for images and a perceptron for everything else.
        width: channels of the hidden layers; those of the first level of a U-Net.
        depth: residual blocks; those of a level of a U-Net.
        patch: for a U-Net, the side of the patches it works on; 1 is every pixel.
        multipliers: for a U-Net, channels of each level over `width`; as many levels as entries.
        path: "cosine", "linear" or "rectified".
        parameterisation: what the network predicts: "v", "eps", "x0", "velocity" or "score".
        sampler: "ddim", "ancestral", "euler" or "heun".
        steps: of the sampler; Heun's evaluates the network twice a step.
        guidance: weight of classifier-free guidance; 1 samples the model itself, other weights have no likelihood.
        label_dropout: share of labels hidden in training.
        times: density of t in training, "uniform" or "logit-normal".
    """

    network: str = "auto"
    width: int = 128
    depth: int = 3
    patch: int = 1
    multipliers: tuple[int, ...] = (1, 2)
    path: str = "cosine"
    parameterisation: str = "v"
    sampler: str = "ddim"
    steps: int = 50
    guidance: float = 1.0
    label_dropout: float = 0.1
    times: str = "uniform"


@dataclass(frozen=True)
class FlowMatchingConfig(DiffusionConfig):
    """Flow matching: the straight path, its velocity, Heun's method. The fields are those of `DiffusionConfig`."""

    path: str = "rectified"
    parameterisation: str = "velocity"
    sampler: str = "heun"
    steps: int = 20


def _named(what: str, name: str, known: dict) -> object:
    if name not in known:
        raise ConfigError(f"There is no {what} {name!r}.", nearest(name, known))
    return known[name]


def network_for(event: tuple[int, ...], classes: int, config: DiffusionConfig) -> nn.Module:
    """A U-Net for images (C, H, W), a modulated perceptron for everything else, unless the config says otherwise."""
    kind = config.network
    if kind not in ("auto", "unet", "mlp") or (kind == "unet" and len(event) != 3):
        raise ConfigError(
            f"There is no network {kind!r} for samples of shape {event}.", "Use auto, mlp or unet (images)."
        )
    if len(event) == 3 and kind != "mlp":
        if config.patch < 1:
            raise ConfigError(f"patch is {config.patch}.", "Give 1 (every pixel), 2 or 4.")
        net = UNet(event[0] * config.patch**2, [config.width * m for m in config.multipliers], config.depth, classes)
        return net if config.patch == 1 else Patched(net, config.patch)
    octaves = 3 if math.prod(event) <= 16 else 2  # fine detail is drowned in the noise of many dimensions
    return ModulatedMLP(event, config.width, config.depth, classes, octaves)


def gaussian_diffusion(event: tuple[int, ...], classes: int, config: DiffusionConfig) -> GaussianDiffusion:
    """The model in R^event that a config describes.

    Raises:
        ConfigError: for an unknown name or a size that cannot be.

    >>> from protea.rng import Streams
    >>> model = gaussian_diffusion((2,), 0, FlowMatchingConfig(width=16, depth=1, steps=4))
    >>> model.draw(Streams(0, 8)).shape
    torch.Size([8, 2])
    """
    _named("density of training times", config.times, TIMES)
    if not 0 <= config.label_dropout < 1:
        raise ConfigError(f"label_dropout is {config.label_dropout}.", "Give a share of at least 0 and below 1.")
    network = network_for(event, classes, config)
    return GaussianDiffusion(
        event,
        network,
        _named("path", config.path, PATHS)(),  # type: ignore[operator]
        config.parameterisation,
        _named("sampler", config.sampler, SAMPLERS),  # type: ignore[arg-type]
        steps=config.steps,
        classes=classes,
        label_dropout=config.label_dropout,
        times=config.times,
        block=16 if isinstance(network, (UNet, Patched)) else 256,
    )


def build(space: Space, config: DiffusionConfig) -> Model:
    """An untrained model of `space`: guided, and without a likelihood, if `config.guidance` is not 1."""
    relaxation = relaxation_for(space)
    inner = gaussian_diffusion(relaxation.event, len(space.classes), config)
    return lift(space, relaxation, inner if config.guidance == 1 else Guided(inner, config.guidance))


def _sized(config: DiffusionConfig, space: Space, seconds: float) -> DiffusionConfig:
    if len(space.event) == 3 and (math.prod(space.event) > 256 or seconds > 120):
        # Minutes are few for pictures of many pixels: patches of 2 and half the steps make both learning and sampling
        # several times cheaper, which buys more than the detail they cost.
        side, hasty = min(space.event[1:]), seconds < 600
        patch = 2 if hasty and side >= 24 else 1
        levels = max(1, min(4, int(math.log2(max(side // patch, 4) / 4)) + 1))  # the lowest resolution is 4 to 8
        width = 32 if seconds < 300 else 64
        steps = config.steps // 2 if hasty else config.steps
        return replace(config, width=width, depth=1, patch=patch, steps=steps, multipliers=(1, 2, 2, 4)[:levels])
    # A picture of few pixels and a minute to learn it: the perceptron sees twenty times as many examples.
    width, depth = (128, 3) if seconds < 60 and len(space.event) == 1 else (256, 4)
    return replace(config, network="mlp", width=width, depth=depth)


def suggest_diffusion(space: Space, train: Rows, seconds: float) -> DiffusionConfig:
    """Sizes by the shape of a sample and the budget."""
    return _sized(DiffusionConfig(), space, seconds)


def suggest_flow_matching(space: Space, train: Rows, seconds: float) -> FlowMatchingConfig:
    """Sizes by the shape of a sample and the budget."""
    config = _sized(FlowMatchingConfig(), space, seconds)
    assert isinstance(config, FlowMatchingConfig)
    return config


_SUITS = frozenset({"vector", "table", "image"})

DIFFUSION = Entry(
    name="diffusion",
    family="diffusion",
    title="Gaussian diffusion",
    source="Ho et al. 2020, Denoising diffusion probabilistic models; Nichol & Dhariwal 2021; Kingma et al. 2021",
    suits=_SUITS,
    config=DiffusionConfig,
    build=build,
    suggest=suggest_diffusion,
)

FLOW_MATCHING = Entry(
    name="flow-matching",
    family="diffusion",
    title="Flow matching",
    source="Lipman et al. 2023, Flow matching for generative modeling; Liu et al. 2023, Flow straight and fast",
    suits=_SUITS,
    config=FlowMatchingConfig,
    build=build,
    suggest=suggest_flow_matching,
)
