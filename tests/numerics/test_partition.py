"""Estimated partition functions against sums over all states; parallel tempering where Gibbs sampling sticks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from protea.models.boltzmann.dbm import DBM
from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial, Gaussian, Units
from protea.rng import Streams
from protea.samplers.ais import Weights, ais, spacing
from protea.samplers.tempering import Tempering, exchange, ladder


def randomised(model, scale: float, seed: int = 0):
    for i, p in enumerate(model.parameters()):
        with torch.no_grad():
            p.copy_(scale * Streams(seed, p.numel()).child(i).normal(1, dtype=torch.float64).reshape(p.shape))
    return model


def test_no_couplings_no_error() -> None:
    """Zero weights, base = biases: the path is constant but for the hidden biases, and log Z is a closed form."""
    model = RBM((5,), Binomial(5, 3), dtype=torch.float64).double()
    with torch.no_grad():
        model.visible.weight.zero_()
        model.visible.bias.copy_(torch.tensor([0.3, -1, 2, 0, 0.5]))
        model.visible.base.copy_(model.visible.bias)
    want = torch.nn.functional.softplus(model.visible.bias).sum() + 3 * math.log(2)
    found = model.machine.estimate(0, chains=8, steps=20)
    assert found.value == pytest.approx(float(want.detach()), abs=1e-9) and found.error < 1e-9
    assert found.effective == pytest.approx(8)


@pytest.mark.parametrize(
    "visible", [Binomial(8, 7), Binomial(6, 5, 4), Gaussian(4, 6)], ids=["binary", "binomial", "gaussian"]
)
def test_estimates_agree_with_enumeration(visible: Units, evidence) -> None:
    """Within its stated error: z-scores over seeds are standard normal enough, and 95 % intervals cover."""
    model = randomised(RBM((visible.size,), visible, classes=2, dtype=torch.float64).double(), 0.6)
    want = float(model.exact_log_partition().detach())
    runs = model.machine.weights(0, chains=4000, steps=200).log_w.split(100)
    found = [Weights(log_w) for log_w in runs]
    z = torch.tensor([(model.machine.log_base() + f.log_ratio - want) / f.error for f in found])
    covered = int((z.abs() <= 1.96).sum())
    assert covered >= 33  # of 40; 38 expected, fewer than 33 has a probability below 0.001
    evidence(
        id="EB-06", system=f"rbm, {type(visible).__name__.lower()} units", claim="AIS log Z, mean error of 40 runs",
        reference="sum over all states", reached=abs(float(z.mean())),
        tolerance=3 / math.sqrt(40) + 0.25, unit="standard errors",
    )  # fmt: skip


def test_weights_are_unbiased() -> None:
    """EB-06: E[w] = Z / Z_0 even along a short, bad path."""
    model = randomised(RBM((6,), Binomial(6, 9), dtype=torch.float64).double(), 0.8)
    ratio = math.exp(float(model.exact_log_partition().detach()) - model.machine.log_base())
    estimates = [model.machine.estimate(seed, chains=2000, steps=4) for seed in range(5)]
    w = [math.exp(e.value - model.machine.log_base()) for e in estimates]
    spread = [w_i * e.error for w_i, e in zip(w, estimates)]
    assert abs(sum(w) / 5 - ratio) < 4 * math.sqrt(sum(s**2 for s in spread)) / 5


def test_a_deep_machine_agrees_with_enumeration() -> None:
    model = randomised(DBM((6,), Binomial(6, 5), top=4, dtype=torch.float64).double(), 0.7)
    want = float(model.exact_log_partition().detach())
    found = model.machine.estimate(3, chains=400, steps=300)
    assert abs(found.value - want) < 4 * found.error < 0.2


def test_the_path_runs_from_0_to_1() -> None:
    for steps in (1, 2, 3, 10, 1000):
        path = spacing(steps)
        assert path[0] == 0 and path[-1] == 1 and len(path) == steps + 1
        assert all(a < b for a, b in itertools.pairwise(path))


def test_a_gaussian_integral() -> None:
    """From N(0, I) to exp(-x^T A x / 2) in 3 dimensions, exact moves at every temperature: log Z = -1/2 log |A| + c."""
    rng = Streams(0, 4000)
    scale = torch.tensor([0.5, 2.0, 5.0], dtype=torch.float64)

    def step(x, b0, b1):
        log_ratio = -0.5 * (b1 - b0) * ((scale - 1) * x.square()).sum(1)
        return log_ratio, rng.normal(3, dtype=torch.float64) / (1 + b1 * (scale - 1)).sqrt()

    w, _ = ais(rng.normal(3, dtype=torch.float64), spacing(50), step)
    assert abs(w.log_ratio + 0.5 * float(scale.log().sum())) < 4 * w.error < 0.1


def two_modes() -> RBM:
    """Eight visible units, all on or all off: one hidden unit of strong couplings binds them."""
    model = RBM((8,), Binomial(8, 1), dtype=torch.float64).double()
    with torch.no_grad():
        model.visible.weight.fill_(7.0)
        model.visible.bias.fill_(-3.5)
        model.bias.fill_(-28.0)  # as much as the eight gain
        model.visible.base.zero_()
    return model


def test_tempering_mixes_where_gibbs_does_not(evidence) -> None:
    """Modes of equal weight; 64 chains start in one. After 200 sweeps Gibbs has hardly left it."""
    model, n, sweeps = two_modes(), 64, 200
    machine = model.machine
    with torch.no_grad():
        state = {"h": torch.zeros(n, 1, dtype=torch.float64)}
        rng, stay = Streams(0, n), 0.0
        for _ in range(sweeps):
            state = machine.sweep(state, rng)
        stay = float((state["visible"].mean(1) < 0.5).double().mean())
        betas = ladder(8).double()
        tempering = Tempering(machine.sweep, machine.tilt, betas)
        rng = Streams(1, 8 * n)
        state = machine.sweep({"h": torch.zeros(8 * n, 1, dtype=torch.float64)}, rng)
        for t in range(sweeps):
            state = tempering.step(state, rng, bool(t % 2))
        low = float((tempering.coldest(state)["visible"].mean(1) < 0.5).double().mean())
    p = torch.tensor([0.0, 1.0]).double()
    exact = machine.log_centre(p[:, None]).softmax(0)
    assert float(exact[0].detach()) == pytest.approx(0.5, abs=1e-9)
    assert stay > 0.9  # Gibbs stays
    assert stats.binomtest(round(low * n), n, 0.5).pvalue > 1e-3
    evidence(
        id="EB-03", system="rbm: parallel tempering", claim="share of chains in one of two equal modes, from 1/2",
        reference=f"1/2 exactly; Gibbs {stay:.2f}", reached=abs(low - 0.5), tolerance=0.2, unit="share",
    )  # fmt: skip


def test_exchanges_leave_the_product_invariant() -> None:
    """Two replicas of a two-state system, exact joint draws in, exact joint draws out."""
    betas, energy, n = torch.tensor([1.0, 0.3]).double(), torch.tensor([0.0, 2.0]).double(), 40_000
    p = torch.stack([(-b * energy).softmax(0) for b in betas])
    rng = Streams(0, n)
    s = torch.stack([rng.categorical(p[r].log().expand(n, 2)) for r in range(2)])
    source = exchange(energy[s], betas, torch.stack([rng.uniform(1)[:, 0] for _ in range(2)]), odd=False)
    after = s.gather(0, source)
    seen = torch.bincount(2 * after[0] + after[1], minlength=4)
    want = (p[0][:, None] * p[1][None]).flatten() * n
    assert stats.chisquare(seen.numpy(), want.numpy()).pvalue > 1e-4
    assert bool((source != torch.tensor([[0], [1]])).any())
