"""Estimated partition functions against sums over all states; parallel tempering where Gibbs sampling sticks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import optimize, stats
from scipy.special import expit

from protea.models.boltzmann.conservative import conservative_log_prob
from protea.models.boltzmann.dbm import DBM
from protea.models.boltzmann.enumeration import states
from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial, Gaussian, Units
from protea.rng import Streams
from protea.samplers.ais import Weights, ais, spacing
from protea.samplers.sandwich import bennett, combined
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


# ---- both sides


def strong(scale: float, seed: int = 1) -> RBM:
    """Fourteen binary units and ten hidden ones with strong couplings and no field: many separate modes."""
    model = randomised(RBM((14,), Binomial(14, 10), dtype=torch.float64).double(), scale, seed)
    with torch.no_grad():
        model.visible.bias.copy_(-model.visible.weight.sum(1) / 2)
        model.bias.copy_(-model.visible.weight.sum(0) / 2)
    return model


@torch.no_grad()
def exact_hidden(model: RBM, n: int, seed: int) -> torch.Tensor:
    """Independent draws of p(h) by enumeration."""
    h = torch.cat(list(states(len(model.bias), like=model.bias)))
    return h[Streams(seed, n).categorical(model.machine.log_centre(h).expand(n, -1))]


def test_bennett_on_gaussian_weights(evidence) -> None:
    """Weights N(C - s^2/2, s^2) forward are N(C + s^2/2, s^2) backward: C is known. pymbar's equation, by scipy."""
    rng = Streams(0, 400)
    z = rng.normal(2, dtype=torch.float64)
    forward, backward = 10 - 4.5 + 3 * z[:, 0], 10 + 4.5 + 3 * z[:300, 1]

    def score(c: float) -> float:
        m = math.log(len(forward) / len(backward))
        return float(expit(forward.numpy() - c - m).sum() - expit(c + m - backward.numpy()).sum())

    want = optimize.brentq(score, -50, 50, xtol=1e-12)
    assert float(bennett(forward, backward)) == pytest.approx(want, abs=1e-9)
    value, error, _ = combined(forward, backward)
    assert abs(value - 10) < 3 * error < 1


@pytest.mark.slow
@pytest.mark.parametrize("warm", [False, True], ids=["one side", "both sides"])
def test_intervals_of_log_z_cover_the_truth(warm: bool, evidence) -> None:
    """At least 90 of 100 seeds for 95 %, of a machine whose chains get stuck."""
    model = strong(2.0)
    want = float(model.exact_log_partition().detach())
    found = [
        model.machine.estimate(seed, chains=48, steps=96, particles=exact_hidden(model, 200, seed) if warm else None)
        for seed in range(100)
    ]
    covered = sum(low <= want <= high for low, high in (z.interval() for z in found))
    evidence(
        id="EB-06", system=f"rbm, log Z from {'both sides' if warm else 'one side'}", unit="of 100",
        claim="95 % intervals that cover the sum over all states", reference="sum over all states",
        reached=covered, tolerance=90, at_least=True,
    )  # fmt: skip
    assert sum(z.converged for z in found) >= 50
    beyond = sum(z.lower > want + 3 for z in found) + sum(z.upper < want - 3 for z in found)
    assert beyond <= 10  # each has a probability below exp(-3)
    if warm:
        spread = torch.tensor([z.value - want for z in found]).square().mean().sqrt()
        one = torch.tensor([z.lower - want for z in found]).square().mean().sqrt()
        assert spread < one  # both sides together are nearer than the forward one


def test_a_path_that_is_too_short_says_so() -> None:
    """Four temperatures for couplings of 6: the chains' weights differ by nats, and hardly any is called converged."""
    model = strong(6.0)
    found = [model.machine.estimate(seed, chains=32, steps=4) for seed in range(10)]
    assert sum(z.converged for z in found) <= 1


def test_the_conservative_likelihood_is_that_of_the_annealed_sampler(evidence) -> None:
    """RAISE: by enumeration, E[exp(bound)] = p_ann, whose h_0 .. h_K are 2^H states with known transitions."""
    model = randomised(RBM((4,), Binomial(4, 3), dtype=torch.float64).double(), 1.5, 4)
    v = torch.cat(list(states(4, like=model.bias)))
    h = torch.cat(list(states(3, like=model.bias)))
    path, visible = spacing(3), model.visible
    with torch.no_grad():

        def u_given_h(beta: float) -> torch.Tensor:
            p = torch.sigmoid(visible.base + beta * (visible.bias - visible.base + h @ visible.weight.T))
            return (v[None] * p[:, None] + (1 - v[None]) * (1 - p[:, None])).prod(2)

        def h_given_u(beta: float) -> torch.Tensor:
            p = torch.sigmoid(beta * (v @ visible.weight + model.bias))
            return (h[None] * p[:, None] + (1 - h[None]) * (1 - p[:, None])).prod(2)

        at = torch.full((len(h),), 1 / len(h)).double()
        for beta in path[1:-1]:
            at = at @ u_given_h(beta) @ h_given_u(beta)
        want = at @ u_given_h(1.0)
        n = 20_000
        found = conservative_log_prob(model, v.repeat_interleave(n, 0), steps=3).exp().reshape(len(v), n)
    assert float(want.sum()) == pytest.approx(1)
    z = (found.mean(1) - want) / (found.std(1) / n**0.5)
    evidence(
        id="EB-06", system="rbm, reverse annealing from data", claim="p_ann of 16 states, largest z-score",
        reference="transitions multiplied out", reached=float(z.abs().max()), tolerance=4.5, unit="standard errors",
    )  # fmt: skip
    assert bool((found.log().mean(1) <= want.log()).all())  # low on average
