"""How each kind of model learns unless told otherwise. Families register here; models never import training."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

from protea.core import Countable, Learner, Model, Normalised, Phase
from protea.errors import NotSupported
from protea.models.adversarial.wgan import WGAN
from protea.models.autoregressive.language import LanguageModel
from protea.models.autoregressive.ngram import NGram
from protea.models.boltzmann.boltzmann import Boltzmann
from protea.models.diffusion.gaussian import GaussianDiffusion
from protea.models.flow.spline_coupling import Flow
from protea.models.latent.vae import VAE
from protea.models.lifted import Lifted
from protea.objectives.adversarial import critic_loss, generator_loss
from protea.objectives.contrastive_divergence import DataChains, PersistentChains, TemperedChains
from protea.objectives.denoising import denoising_loss
from protea.objectives.likelihood import nll, token_nll
from protea.objectives.variational import negative_elbo
from protea.samplers.guidance import Guided
from protea.training.budget import Budget
from protea.training.contrast import Contrast
from protea.training.em import EM
from protea.training.experts import BalanceExperts, routers
from protea.training.gradient import Gradient
from protea.training.lifting import Lifting
from protea.training.optim import adamw
from protea.training.schedule import warmup_cosine


@singledispatch
def default_learner(model: Model, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    """The learner of a model: EM for `Countable`, maximum likelihood by gradients for `Normalised`.

    Args:
        model: dispatched on its type; more specific types registered below win.
        budget: what the fit may spend.
        seed: of the fit; fixes noise that must not change between epochs.
        options: passed on to `Gradient` (optimizer, schedule, prepare, precision, microbatch ...).

    Raises:
        NotSupported: nothing is registered for the model's type.
    """
    raise NotSupported(
        f"No way of learning is registered for {type(model).__name__}.",
        "Pass a learner: fit(model, ..., learner=Gradient(model, phases)).",
    )


@default_learner.register
def _lifted(model: Lifted, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    inner = default_learner(model.inner, budget=budget, seed=seed, **options)
    return Lifting(model, inner, seed=seed if isinstance(inner, EM) else None)


@default_learner.register
def _countable(model: Countable, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    return EM(model)


@default_learner.register
def _normalised(model: Normalised, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    if isinstance(model, Countable):  # whichever base comes first: EM needs no step size
        return EM(model)
    return Gradient(model, [Phase("nll", list(model.parameters()), nll(model))], **options)


@default_learner.register
def _ngram(model: NGram, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    return EM(model, epochs=1)  # counting: one pass is exact


def _images(event: tuple[int, ...]) -> int | None:
    """Rows of a batch of large images, whose steps cost by the row; otherwise the loop chooses."""
    return 64 if len(event) == 3 and math.prod(event) > 256 else None


@default_learner.register
def _vae(model: VAE, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    parts: dict[str, Any] = {"optimizer": adamw(2e-3), "batch_size": _images(model.event)}
    return Gradient(model, [Phase("elbo", list(model.parameters()), negative_elbo(model))], **(parts | options))


@default_learner.register
def _flow(model: Flow, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    parts: dict[str, Any] = {"optimizer": adamw(2e-3), "batch_size": _images(model.event)}
    return Gradient(model, [Phase("nll", list(model.parameters()), nll(model))], **(parts | options))


@default_learner.register
def _wgan(model: WGAN, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    """Algorithm 1 of Gulrajani et al. 2017: n_critic steps of the critic for one of the generator."""
    phases = [
        Phase("critic", model.critic_parameters(), critic_loss(model)),
        Phase("generator", model.generator_parameters(), generator_loss(model), every=model.n_critic),
    ]
    rates = {"critic": model.critic_rate, "generator": model.generator_rate}
    adam = {name: adamw(rate, weight_decay=0.0, betas=(0.0, 0.9)) for name, rate in rates.items()}
    size = 64 if len(model.event) == 3 else 128  # images cost by the row, vectors by the step
    parts: dict[str, Any] = {"optimizer": adam, "clip": None, "schedule": warmup_cosine(floor=0.1), "batch_size": size}
    return Gradient(model, phases, **(parts | options))


@default_learner.register(GaussianDiffusion)
@default_learner.register(Guided)
def _diffusion(model: Model, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    parts: dict[str, Any] = {"optimizer": adamw(2e-3, weight_decay=0.0, betas=(0.9, 0.99))}
    return Gradient(model, [Phase("denoise", list(model.parameters()), denoising_loss(model))], **(parts | options))


@default_learner.register
def _boltzmann(model: Boltzmann, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    c = model.learning
    made = {"pcd": lambda: PersistentChains(c.chains, c.k), "cd": lambda: DataChains(c.k),
            "tempering": lambda: TemperedChains(max(1, c.chains // 8), 8, c.k)}  # fmt: skip
    chosen = {"rate": c.rate, "momentum": c.momentum, "decay": c.decay, "batch_size": c.batch}
    chosen |= {name: value for name, value in options.items() if name in ("precision", "schedule", "ema", *chosen)}
    return Contrast(model, made[c.negative](), **chosen)


@default_learner.register
def _transformer(model: LanguageModel, *, budget: Budget | None = None, seed: int = 0, **options: Any) -> Learner:
    """AdamW at 6e-3 for a width of 64, falling with its square root; 8 tokens of a step for each unit of width."""
    width, length = model.net.embed.weight.shape[1], model.space.event[0]
    parts: dict[str, Any] = {"optimizer": adamw(6e-3 * (64 / width) ** 0.5, weight_decay=0.1, betas=(0.9, 0.95)),
             "batch_size": max(2, min(8 * width, 8192) // length)}  # fmt: skip
    if routers(model):
        parts["after"] = [BalanceExperts()]
    return Gradient(model, [Phase("nll", list(model.parameters()), token_nll(model))], **(parts | options))
