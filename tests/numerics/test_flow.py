"""The neural spline flow is a normalised density whose samples it can score."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal

from protea.errors import ConfigError, DataError, NotSupported
from protea.models.flow.spline_coupling import FlowConfig, spline_flow
from protea.objectives.likelihood import nll
from protea.rng import Streams
from protea.space import Rows
from protea.training.budget import Budget
from protea.training.fit import fit


def roughened(event, classes=0, **options):
    """A flow with weights far from the identity."""
    flow = spline_flow(event, classes, FlowConfig(**({"transforms": 4, "width": 16, "depth": 1} | options))).eval()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.15 * torch.randn_like(p))
    return flow


@pytest.mark.parametrize("mixing", ["lu", "permutation"])
def test_it_integrates_to_one(mixing, evidence):
    flow = roughened((2,), mixing=mixing)
    side = torch.linspace(-10, 10, 301)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        mass = sum(flow.log_prob(part).double().exp().sum().item() for part in grid.split(60000))
    mass *= float(side[1] - side[0]) ** 2
    evidence(id="FL-01", system="Neural spline flow", claim=f"integral over the plane, mixing {mixing}",
             reference="1", reached=abs(mass - 1), tolerance=1e-3)  # fmt: skip


@pytest.mark.parametrize("event", [(1,), (2,), (5,), (1, 3, 4)])
@pytest.mark.parametrize("mixing", ["lu", "permutation"])
def test_draws_are_inverted_exactly(event, mixing, evidence):
    flow = roughened(event, mixing=mixing)
    flow.initialise(Rows(2 * torch.randn(200, *event) + 1, None, torch.arange(200)))
    z = Streams(3, 50).normal(math.prod(event))
    x = flow.draw(Streams(3, 50))
    with torch.no_grad():
        back, _ = flow.bijection(flow.whiten(x.flatten(1))[0])
    evidence(id="FL-01", system="Neural spline flow", claim=f"f(f^-1(z)) = z, event {event}, {mixing}",
             reference="the identity", reached=(back - z).abs().max(), tolerance=1e-4, unit="max abs")  # fmt: skip


def test_untrained_it_is_nearly_the_gaussian_of_the_data():
    x = torch.randn(5000, 3) @ torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.01]]) + 3
    flow = spline_flow((3,), 0, FlowConfig(transforms=2, width=16)).eval()
    flow.initialise(Rows(x, None, torch.arange(len(x))))
    theirs = multivariate_normal(x.double().mean(0).numpy(), x.double().T.cov(correction=0).numpy())
    gap = flow.log_prob(x[:500]).detach() - torch.from_numpy(theirs.logpdf(x[:500].double().numpy()))
    assert abs(float(gap.mean())) < 0.1  # it starts near the best Gaussian, not exactly on it


def test_constant_and_collinear_entries_keep_it_finite():
    a = torch.randn(100)
    x = torch.stack((a, 2 * a, torch.full_like(a, 7.0)), 1)
    flow = spline_flow((3,), 0, FlowConfig(transforms=2, width=8))
    flow.initialise(Rows(x, None, torch.arange(100)))
    loss = nll(flow)
    from protea.core import Batch

    total = loss(Batch(x, None, Streams(0, 100))).total
    total.backward()
    assert total.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())


def test_labels_matter_and_are_marginalised():
    flow = roughened((2,), classes=3)
    x = torch.randn(30, 2)
    flow.initialise(Rows(x, torch.tensor([0, 1, 1]).repeat(10), torch.arange(30)))
    assert torch.allclose(flow.class_prior, torch.tensor([1 / 3, 2 / 3, 0]).double())
    each = torch.stack([flow.log_prob(x, torch.full((30,), c)) for c in range(3)])
    assert float((each[0] - each[1]).abs().max()) > 0.1
    weighted = torch.logsumexp(each + flow.class_prior.log().float()[:, None], 0)
    assert torch.allclose(flow.log_prob(x), weighted, atol=1e-5)


def test_bad_input():
    with pytest.raises(ConfigError, match="permutation"):
        spline_flow((2,), 0, FlowConfig(mixing="glow"))
    with pytest.raises(NotSupported, match="classes"):
        roughened((2,)).log_prob(torch.zeros(2, 2), torch.zeros(2).long())
    flow = roughened((2,), classes=2)
    for y in (None, torch.tensor([0, 5])):
        with pytest.raises(DataError, match=r"[Ll]abels"):
            flow.initialise(Rows(torch.randn(2, 2), y, torch.arange(2)))


@pytest.mark.slow
def test_two_moons_within_reach_of_the_known_density(evidence):
    """Semicircles with Gaussian noise: the log-density is computed by quadrature along each arc."""
    sigma, n = 0.1, 6000
    rng = Streams(0, n)
    side, angle = (rng.uniform() < 0.5).float(), math.pi * rng.uniform()

    def arc(side, angle):
        sign = 1 - 2 * side
        return torch.stack((sign * angle.cos() + side, sign * angle.sin() + 0.5 * side), -1)

    x = arc(side, angle) + sigma * rng.normal(2)
    t = (torch.arange(2000) + 0.5) * (math.pi / 2000)
    means = torch.cat((arc(torch.zeros(2000), t), arc(torch.ones(2000), t))).double()
    held = x[5000:].double()
    log_p = torch.logsumexp(-0.5 * torch.cdist(held, means).square() / sigma**2, 1)
    truth = -float((log_p - math.log(len(means) * 2 * math.pi * sigma**2)).mean())
    flow = spline_flow((2,), 0, FlowConfig(transforms=4, width=64, depth=1, bins=8))
    train = Rows(x[:5000], None, torch.arange(5000))
    flow.initialise(train)
    fit(flow, train, None, budget=Budget(steps=800), batch_size=256, judge=None, progress="none")
    with torch.no_grad():
        reached = -float(flow.log_prob(x[5000:]).mean())
    evidence(id="FL-01", system="Neural spline flow", claim="two moons: held-out NLL above that of the true density",
             reference=f"quadrature along the arcs ({truth:.3f} nats)", reached=reached - truth, tolerance=0.2,
             unit="nats")  # fmt: skip
