"""Classifier-free guidance: what w = 0, 1 and more do, on a mixture whose denoisers are closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from protea.core import Batch, Bounded, capabilities
from protea.errors import ConfigError
from protea.models.diffusion.family import DIFFUSION, DiffusionConfig, gaussian_diffusion
from protea.models.diffusion.gaussian import GaussianDiffusion
from protea.models.lifted import LiftedBound
from protea.objectives.denoising import denoising_loss
from protea.processes.path import VPCosine
from protea.rng import Streams
from protea.samplers.ddim import ddim
from protea.samplers.guidance import Guided
from protea.spaces import Vector

CENTRES = torch.tensor([[-1.0], [1.0]])
VAR = 0.25


class Mixture(nn.Module):
    """E[x_0 | x_t, y] of N(-1, 1/4) for y = 0, N(1, 1/4) for y = 1, and of their mixture for y = 2 or None."""

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, sigma = VPCosine().alpha(t)[:, None], VPCosine().sigma(t)[:, None]
        var = alpha**2 * VAR + sigma**2
        each = CENTRES.T + alpha * VAR / var * (x_t - alpha * CENTRES.T)  # (B, 2)
        mixed = (torch.softmax(-0.5 * (x_t - alpha * CENTRES.T) ** 2 / var, 1) * each).sum(1, keepdim=True)
        table = torch.cat((each, mixed), 1)
        y = torch.full((len(x_t),), 2) if y is None else y
        return table.gather(1, y[:, None])


def model() -> GaussianDiffusion:
    return GaussianDiffusion((1,), Mixture(), VPCosine(), "x0", ddim, steps=50, classes=2, block=512)


def test_weight_one_is_the_conditional_model(evidence) -> None:
    inner, y = model(), torch.arange(512) % 2
    gap = (Guided(inner, 1.0).sample(512, y, rng=3) - inner.sample(512, y, rng=3)).abs().max()
    evidence(id="DI-10", system="Classifier-free guidance", claim="w = 1 equals the conditional model",
             reference="the unguided model, same noise", reached=gap, tolerance=0.0, unit="max abs")  # fmt: skip
    x_t, t = Streams(1, 512).normal(1), torch.full((512,), 0.4)
    near = Guided(inner, 1.0 + 1e-6).denoise(x_t, t, y)  # through the combination itself
    torch.testing.assert_close(near, inner.denoise(x_t, t, y), atol=1e-4, rtol=0)


def test_weight_zero_is_the_unconditional_model() -> None:
    inner, y = model(), torch.arange(512) % 2
    x_t, t = Streams(1, 512).normal(1), torch.full((512,), 0.4)
    assert torch.equal(Guided(inner, 0.0).denoise(x_t, t, y), inner.denoise(x_t, t))
    assert torch.equal(Guided(inner, 3.0).denoise(x_t, t, None), inner.denoise(x_t, t))


def test_the_combination_is_that_of_scores() -> None:
    """Guided score = (1 - w) score(x_t) + w score(x_t | y), by Tweedie's formula."""
    inner, y = model(), torch.zeros(64, dtype=torch.int64)
    x_t, t, w = Streams(1, 64).normal(1), torch.full((64,), 0.3), 2.5
    alpha, sigma = VPCosine().alpha(t)[:, None], VPCosine().sigma(t)[:, None]
    var = alpha**2 * VAR + sigma**2

    def log_p(x: Tensor) -> tuple[Tensor, Tensor]:
        each = -0.5 * (x - alpha * CENTRES.T) ** 2 / var
        return each[:, 0].sum(), torch.logsumexp(each, 1).sum()

    x = x_t.clone().requires_grad_()
    asked, free = (torch.autograd.grad(p, x, retain_graph=True)[0] for p in log_p(x))
    found = (alpha * Guided(inner, w).denoise(x_t, t, y) - x_t) / sigma**2
    torch.testing.assert_close(found, (1 - w) * free + w * asked, atol=1e-4, rtol=1e-4)


def test_guidance_trades_variety_for_fidelity() -> None:
    """Samples of a class move away from the other class, the more the larger w."""
    y = torch.ones(2048, dtype=torch.int64)
    draws = [Guided(model(), w).sample(2048, y, rng=1) for w in (0.0, 1.0, 2.0, 4.0)]
    shares = [float((x > 0).float().mean()) for x in draws]
    assert shares[0] == pytest.approx(0.5, abs=0.05)
    assert shares[1] == pytest.approx(0.5 * math.erfc(-1 / math.sqrt(2 * VAR)), abs=0.02)
    spreads = [float(x.std()) for x in draws]
    means = [float(x.mean()) for x in draws]
    assert shares[1] <= shares[2] <= shares[3] and spreads[0] > spreads[1] and means[1] < means[2] < means[3]


def test_guided_models_have_no_likelihood_and_still_learn() -> None:
    space = Vector(("a", "b"), ("left", "right"))
    lifted = DIFFUSION.build(space, DiffusionConfig(width=16, depth=1, guidance=2.0, steps=3))
    assert capabilities(lifted.inner) == ["Denoises"]
    assert not isinstance(lifted, (Bounded, LiftedBound))
    assert lifted.sample(4, torch.tensor([0, 1, 0, 1])).shape == (4, 2)
    batch = Batch(Streams(0, 8).normal(2), torch.arange(8) % 2, Streams(1, 8))
    loss, plain = denoising_loss(lifted.inner)(batch), denoising_loss(lifted.inner.inner)(batch)
    assert float(loss.total) == float(plain.total)


def test_guidance_needs_classes() -> None:
    with pytest.raises(ConfigError, match="no classes"):
        Guided(gaussian_diffusion((2,), 0, DiffusionConfig(width=16, depth=1)), 2.0)


def test_labels_are_dropped_at_the_stated_rate() -> None:
    inner = model()
    seen: list[Tensor] = []
    inner.network.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    y = torch.arange(20_000) % 2
    denoising_loss(inner)(Batch(torch.zeros(20_000, 1), y, Streams(1, 20_000)))
    hidden = seen[0] == 2
    assert float(hidden.float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(seen[0][~hidden], y[~hidden])
