"""Laws of the Gaussian diffusion: its bound, its denoiser, its draws."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from protea.core import Batch, Bounded, Denoises, capabilities
from protea.errors import ConfigError, NotSupported
from protea.models.diffusion.family import (
    DIFFUSION,
    FLOW_MATCHING,
    DiffusionConfig,
    FlowMatchingConfig,
    gaussian_diffusion,
)
from protea.models.diffusion.gaussian import GaussianDiffusion
from protea.models.lifted import LiftedBound
from protea.objectives.denoising import denoising_loss
from protea.processes.path import GaussianPath, Rectified, VPCosine, VPLinear, expand
from protea.rng import Streams
from protea.samplers.ddim import ddim
from protea.samplers.ode import heun
from protea.space import Rows
from protea.spaces import Image, Vector

PATHS: list[GaussianPath] = [VPLinear(), VPCosine(), Rectified()]
CONFIGS = [DiffusionConfig(width=16, depth=1, steps=5), FlowMatchingConfig(width=16, depth=1, steps=4)]


class Exact(nn.Module):
    """E[x_0 | x_t] of data N(mean, var I)."""

    def __init__(self, path: GaussianPath, mean: float, var: float) -> None:
        super().__init__()
        self.path, self.mean, self.var = path, mean, var

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, sigma = self.path.alpha(t.double()), self.path.sigma(t.double())
        gain = alpha * self.var / (alpha**2 * self.var + sigma**2)
        return (self.mean + expand(gain, x_t.double()) * (x_t.double() - expand(alpha, x_t.double()) * self.mean)).to(
            x_t
        )


def exact(path: GaussianPath, mean: float = 0.5, var: float = 0.25) -> GaussianDiffusion:
    return GaussianDiffusion((3,), Exact(path, mean, var), path, "x0", ddim, steps=20, block=64)


def with_weights(model: GaussianDiffusion) -> GaussianDiffusion:
    """The model away from its zero initialisation."""
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    return model


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_bound_is_exact_for_the_exact_denoiser(path: GaussianPath, evidence) -> None:
    """Data N(m, s^2 I) and its own denoiser: the continuous-time bound is the likelihood."""
    model = exact(path)
    x = (0.5 + 0.5 * Streams(3, 6).normal(3, dtype=torch.float64)).float()
    true = torch.distributions.Normal(0.5, 0.5).log_prob(x.double()).sum(1)
    each = torch.stack([model.log_prob_bound(row.expand(1024, 3), rng=Streams(i, 1024), k=16)
                        for i, row in enumerate(x)])  # fmt: skip
    error, noise = each.mean(1) - true, each.std(1) / 1024**0.5
    assert bool((error.abs() < 5 * noise).all())
    evidence(id="DI-04", system="Variational bound", claim=f"equals the exact likelihood, {type(path).__name__}",
             reference="Normal.log_prob, its exact denoiser", reached=abs(float(error.mean())),
             tolerance=0.03, unit="nats")  # fmt: skip


def test_bound_is_below_for_a_wrong_denoiser() -> None:
    """Data of variance 1/4 denoised as if it were 1/2: the bound is the likelihood less a divergence."""
    x = (0.5 + 0.5 * Streams(3, 4096).normal(3, dtype=torch.float64)).float()
    true = torch.distributions.Normal(0.5, 0.5).log_prob(x.double()).sum(1).mean()
    wrong = torch.distributions.Normal(0.5, 0.5**0.5).log_prob(x.double()).sum(1).mean()
    model = exact(VPCosine(), 0.5, 0.5)  # is itself N(1/2, 1/2 I): its bound may not exceed that density
    bound = model.log_prob_bound(x, rng=Streams(1, 4096), k=8).mean()
    assert bound < true - 0.1
    assert bound == pytest.approx(float(wrong), abs=0.02)


def test_bound_of_the_standard_normal_has_no_noise() -> None:
    model = exact(Rectified(), 0.0, 1.0)
    x = Streams(3, 32).normal(3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x.double()).sum(1)
    torch.testing.assert_close(model.log_prob_bound(x, rng=Streams(0, 32)), expected, atol=2e-2, rtol=0)


def test_bound_with_more_draws_is_less_noisy_with_the_same_mean() -> None:
    model = exact(VPCosine(), 0.5, 0.5)
    x = torch.zeros(4096, 3)
    one, many = (model.log_prob_bound(x, rng=Streams(1, 4096), k=k) for k in (1, 8))
    assert many.std() < 0.6 * one.std()
    assert abs(float(one.mean() - many.mean())) < 5 * float(one.std()) / 64


def test_bound_of_a_row_depends_on_the_row_alone() -> None:
    model = with_weights(gaussian_diffusion((3,), 0, CONFIGS[0]))
    x = Streams(3, 8).normal(3)
    whole = model.log_prob_bound(x, rng=Streams(1, 8), k=2)
    some = model.log_prob_bound(x[[5, 2]], rng=Streams(1, [5, 2]), k=2)
    torch.testing.assert_close(some, whole[[5, 2]], rtol=1e-5, atol=1e-4)


def test_lifted_bound_averages_draws() -> None:
    """The bound's noise is not that of importance weights, so draws may only be averaged.

    The log-mean-exp of unbiased estimates of a bound is biased upwards, above log p for noisy ones.
    """
    space = Image(1, 2, 2, levels=4)
    model = DIFFUSION.build(space, DiffusionConfig(network="mlp", width=8, depth=1, steps=4))
    assert isinstance(model, LiftedBound)
    x = torch.zeros(512, 1, 2, 2, dtype=torch.uint8)
    one = model.log_prob_bound(x, rng=Streams(1, 512), k=1)
    many = model.log_prob_bound(x, rng=Streams(2, 512), k=16)
    assert abs(float(one.mean() - many.mean())) < 5 * float(one.std()) / 512**0.5


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("event", [(2,), (1, 5, 4)])
@pytest.mark.parametrize("classes", [0, 3])
def test_draws_do_not_depend_on_the_batch(config: DiffusionConfig, event: tuple[int, ...], classes: int) -> None:
    model = with_weights(gaussian_diffusion(event, classes, replace(config, width=8, steps=2)))
    model.block = 8
    cond = torch.arange(8) % classes if classes else None
    together = model.sample(8, cond, rng=4)
    singly = torch.cat(
        [model.sample(1, None if cond is None else cond[i : i + 1], rng=Streams(4, [i])) for i in range(0, 8, 3)]
    )
    assert torch.equal(together[::3], singly)
    assert together.std() > 0.1 and bool(together.isfinite().all())
    assert not torch.equal(together, model.sample(8, cond, rng=5))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_gradients_reach_every_parameter(config: DiffusionConfig) -> None:
    for event in ((2,), (1, 8, 8)):
        model = with_weights(gaussian_diffusion(event, 3, config))
        x, y = Streams(0, 64).normal(*event), torch.arange(64) % 3
        loss = denoising_loss(model)(Batch(x, y, Streams(1, 64)))
        (loss.total / loss.count).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and bool((p.grad != 0).any()), name


def test_loss_is_additive_over_microbatches() -> None:
    model = with_weights(gaussian_diffusion((2,), 3, CONFIGS[1]))
    x, y, rng = Streams(0, 8).normal(2), torch.arange(8) % 3, Streams(1, 8)
    loss = denoising_loss(model)
    whole = loss(Batch(x, y, rng))
    parts = [loss(Batch(x[i], y[i], rng.take(i))) for i in (slice(0, 3), slice(3, 8))]
    assert whole.count == sum(p.count for p in parts)
    torch.testing.assert_close(sum(p.total for p in parts), whole.total)


def test_loss_of_the_exact_denoiser_is_the_posterior_variance() -> None:
    """E|x_0 - D|^2 / D = E_t[s^2 sigma^2 / (alpha^2 s^2 + sigma^2)], by quadrature over uniform t."""
    path = VPCosine()
    x = (0.5 + 0.5 * Streams(3, 40_000).normal(3, dtype=torch.float64)).float()
    loss = denoising_loss(exact(path))(Batch(x, None, Streams(1, 40_000)))
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    expected = (0.25 * path.sigma(t) ** 2 / (0.25 * path.alpha(t) ** 2 + path.sigma(t) ** 2)).mean()
    assert float(loss.total / loss.count) == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize(("entry", "path", "sampler"), [(DIFFUSION, VPCosine, ddim), (FLOW_MATCHING, Rectified, heun)])
@pytest.mark.parametrize("space", [Vector(("a", "b")), Image(3, 32, 32), Image(1, 8, 8, classes=("0", "1"))], ids=str)
def test_suggested_models_are_built(entry, path, sampler, space) -> None:
    rows = Rows(torch.zeros(4, *space.event, dtype=space.dtype), None, torch.arange(4))
    model = entry.build(space, entry.suggest(space, rows, 60.0))
    assert isinstance(model.inner, GaussianDiffusion)
    assert isinstance(model.inner.path, path) and model.inner.sampler is sampler
    assert model.block == (16 if space.event == (3, 32, 32) else 256)
    assert capabilities(model.inner) == ["Bounded", "Denoises"]
    assert issubclass(GaussianDiffusion, Bounded) and issubclass(GaussianDiffusion, Denoises)


def test_unconditional_models_refuse_labels() -> None:
    model = gaussian_diffusion((2,), 0, CONFIGS[0])
    with pytest.raises(NotSupported, match="without classes"):
        model.sample(2, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    "change", [{"path": "cosin"}, {"sampler": "dimm"}, {"parameterisation": "noise"}, {"times": "log"}, {"steps": 0},
               {"label_dropout": 1.0}, {"guidance": 2.0}]
)  # fmt: skip
def test_bad_configs_are_refused(change: dict) -> None:
    with pytest.raises(ConfigError):
        DIFFUSION.build(Vector(("a", "b")), DiffusionConfig(**change))


def test_eps_prediction_samples_are_finite() -> None:
    model = with_weights(gaussian_diffusion((2,), 0, DiffusionConfig(width=16, depth=1, parameterisation="eps")))
    x = model.sample(16)
    assert bool(x.isfinite().all()) and math.isfinite(float(model.log_prob_bound(x, rng=Streams(0, 16)).mean()))
