"""The Wasserstein GAN: its penalty is a gradient norm, its phases keep to themselves, its critic measures."""

import math

import pytest
import torch
from scipy.stats import wasserstein_distance

from protea.core import Batch, capabilities
from protea.models.adversarial.wgan import WGAN, WGANConfig, wgan
from protea.objectives.adversarial import critic_loss, generator_loss, gradient_norm, wasserstein_estimate
from protea.rng import Streams
from protea.space import Rows
from protea.training.defaults import default_learner


def small(event=(2,), classes=0, **options):
    return wgan(event, classes, WGANConfig(**({"latent": 3, "width": 16, "depth": 1, "channels": 4} | options)))


def batch(event, n=8, classes=0, seed=0):
    x = torch.randn(n, *event)
    return Batch(x, torch.arange(n) % classes if classes else None, Streams(seed, n))


@pytest.mark.parametrize("event", [(3,), (1, 8, 8)])
def test_the_penalty_is_the_norm_of_finite_differences(event, evidence):
    model = small(event).double()
    x = torch.randn(2, *event, dtype=torch.float64)
    h, size = 1e-6, math.prod(event)
    steps = h * torch.eye(size, dtype=torch.float64).reshape(size, *event)
    with torch.no_grad():
        slopes = [(model.criticise(v + steps, None) - model.criticise(v - steps, None)) / (2 * h) for v in x]
    gap = (gradient_norm(lambda v: model.criticise(v, None), x) - torch.stack(slopes).norm(dim=1)).abs().max()
    evidence(id="GA-11", system="WGAN-GP", claim=f"gradient norm, event {event}", reference="central differences",
             reached=gap.detach(), tolerance=1e-3)  # fmt: skip


def test_the_critic_loss_is_that_of_the_paper():
    """A linear critic has a known gradient, a constant generator known samples."""

    class Constant(torch.nn.Module):
        def forward(self, z, y=None):
            return z.new_tensor([[1.0, 1.0]]).expand(len(z), -1)

    critic = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[3.0, 4.0]]))  # f(x~) = 7, norm 5
    model = WGAN((2,), 3, Constant(), Unlabelled(critic), penalty=10.0)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # f(x) = 3, 4
    loss = critic_loss(model)(Batch(x, None, Streams(0, 2)))
    assert float(loss.total) == pytest.approx((7 - 3) + (7 - 4) + 2 * 10 * (5 - 1) ** 2) and loss.count == 2
    assert float(generator_loss(model)(Batch(x, None, Streams(0, 2))).total) == pytest.approx(-14)


class Unlabelled(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y=None):
        return self.net(x)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("event", [(2,), (1, 8, 8), (3, 12, 20), (1, 5, 5)])
def test_each_phase_changes_its_own_side_alone(event, classes):
    model = small(event, classes)
    learner = default_learner(model)
    sides = {"critic": model.critic, "generator": model.generator}
    seen = []
    for step in range(6):
        before = {k: [p.detach().clone() for p in side.parameters()] for k, side in sides.items()}
        learner.step(batch(event, classes=classes, seed=step))
        seen.append(
            {k: any(not torch.equal(a, b) for a, b in zip(before[k], side.parameters())) for k, side in sides.items()}
        )
    assert [s["critic"] for s in seen] == [True] * 6
    assert [s["generator"] for s in seen] == [True, False, False, False, False, True]


@pytest.mark.parametrize("classes", [0, 3])
def test_gradients_reach_one_side_at_a_time(classes, evidence):
    model = small((1, 8, 8), classes)
    leaks = 0
    for loss, mine, other in (
        (critic_loss(model), model.critic_parameters(), model.generator_parameters()),
        (generator_loss(model), model.generator_parameters(), []),
    ):
        model.zero_grad()
        loss(batch((1, 8, 8), classes=classes)).total.backward()
        leaks += sum(p.grad is not None for p in other)
        # A bias behind which everything is linear moves no gradient of f: it may have none in the penalty alone.
        assert all(p.grad is not None and p.grad.isfinite().all() for p in mine)
    evidence(id="GA-03", system="WGAN-GP", claim=f"generator parameters with a gradient in the critic's step, {classes}"
             " classes", reference="0", reached=leaks, tolerance=0)  # fmt: skip


def test_labels_reach_both_sides():
    model = small((2,), 3)
    rng, x = Streams(0, 6), torch.randn(6, 2)
    a, b = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    assert not torch.allclose(model.draw(rng, a), model.draw(Streams(0, 6), b))
    assert not torch.allclose(model.criticise(x, a), model.criticise(x, b))
    model.initialise(Rows(x, torch.full((6,), 2), torch.arange(6)))
    drawn = model.draw(Streams(1, 6))  # every label drawn from the prior is 2
    assert torch.equal(drawn, model.draw(Streams(1, 6), torch.full((6,), 2)))


def test_it_claims_no_likelihood():
    assert capabilities(WGAN) == []


@pytest.mark.slow
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_critic_measures_a_shift(shift, evidence):
    """Against a generator frozen at N(0, 0.1), the critic's estimate is the distance to N(shift, 0.1).

    A critic of slope s gains s W - lambda (s - 1)^2, most at s = 1 + W / (2 lambda): lambda 50 keeps that within 3 %.
    """

    class Narrow(torch.nn.Module):
        def forward(self, z, y=None):
            return 0.1 * z

    model = wgan((1,), 0, WGANConfig(latent=1, width=64, depth=1, channels=0, penalty=50.0))
    model.generator = Narrow()
    critic = torch.optim.Adam(model.critic_parameters(), 1e-3, betas=(0.0, 0.9))
    loss = critic_loss(model)
    for step in range(400):
        rng = Streams(step, 128)
        critic.zero_grad()
        (loss(Batch(shift + 0.1 * rng.child("x").normal(1), None, rng)).total / 128).backward()
        critic.step()
    rng = Streams(10_000, 2000)
    x = shift + 0.1 * rng.child("x").normal(1)
    estimate = float(wasserstein_estimate(model, Batch(x, None, rng)).total) / 2000
    truth = wasserstein_distance(x[:, 0].numpy(), (0.1 * rng.child("estimate").normal(1))[:, 0].numpy())
    evidence(id="GA-08", system="WGAN-GP", claim=f"critic's estimate of W1 for a shift of {shift}",
             reference="scipy.stats.wasserstein_distance", reached=abs(estimate / truth - 1), tolerance=0.1,
             unit="relative")  # fmt: skip


@pytest.mark.slow
def test_eight_gaussians_are_all_covered(evidence):
    angle = torch.arange(8) * (math.pi / 4)
    centres = math.sqrt(2) * torch.stack((angle.cos(), angle.sin()), 1)
    model = wgan((2,), 0, WGANConfig(latent=4, width=128, depth=1, channels=0, penalty=1.0, critic_rate=2e-3))
    learner = default_learner(model)
    for step in range(1500):
        rng = Streams(step, 128)
        which = (8 * rng.child("mode").uniform()).long()
        learner.step(Batch(centres[which] + 0.07 * rng.child("x").normal(2), None, rng))
    with learner.averaged(), torch.no_grad():
        distance, nearest = torch.cdist(model.draw(Streams(0, 1000)), centres).min(1)
    hits = torch.bincount(nearest[distance < 4 * 0.07], minlength=8)
    evidence(id="GA-06", system="WGAN-GP", claim="modes of eight Gaussians with at least 1 % of samples",
             reference="8 by construction", reached=int((hits >= 10).sum()), tolerance=8, at_least=True)  # fmt: skip
