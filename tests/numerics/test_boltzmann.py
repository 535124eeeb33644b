"""Boltzmann machines with all couplings, and deep ones, against sums over all states written out here."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from protea.core import Batch
from protea.errors import ConfigError, NotSupported
from protea.models.boltzmann.dbm import DBM
from protea.models.boltzmann.full import BoltzmannMachine
from protea.models.boltzmann.units import Binomial, Gaussian
from protea.objectives.contrastive_divergence import PersistentChains
from protea.rng import Streams, fold
from protea.samplers.annealing import anneal, pairwise_energy
from protea.samplers.diagnostics import rhat
from protea.samplers.gibbs import entropy, gibbs, mean_field
from protea.training.contrast import Contrast


def every(units: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=torch.float64)


def randomise(model, scale: float, seed: int = 0):
    for i, p in enumerate(model.parameters()):
        with torch.no_grad():
            p.copy_(scale * Streams(seed, p.numel()).child(i).normal(1, dtype=torch.float64).reshape(p.shape))
    return model


def full(visible: int, hidden: int, scale: float = 0.7, **parts) -> BoltzmannMachine:
    return randomise(
        BoltzmannMachine((visible,), Binomial(visible, hidden), dtype=torch.float64, **parts).double(), scale
    )


def couplings(model: BoltzmannMachine) -> tuple[Tensor, Tensor]:
    """One symmetric matrix and one bias over all units, visible first."""
    w = model.visible.weight.detach()
    upper = torch.cat((torch.cat((model.lateral.detach().triu(1), w), 1),  # type: ignore[union-attr]
                       torch.cat((torch.zeros_like(w).T, model.inner.detach().triu(1)), 1)))  # fmt: skip
    return upper + upper.T, torch.cat((model.visible.bias, model.bias)).detach()


def test_the_energy_is_that_of_all_pairs() -> None:
    model = full(5, 3)
    c, b = couplings(model)
    s = every(8)
    log_f = s @ b + 0.5 * ((s @ c) * s).sum(1)
    energy = model.machine.energy({"visible": s[:, :5], "h": s[:, 5:]})
    assert torch.allclose(energy, -log_f, rtol=0, atol=1e-11)
    by_v = torch.logsumexp(log_f.reshape(32, 8), 1)
    assert torch.allclose(model.unnormalised(every(5)), by_v, rtol=0, atol=1e-11)
    found = model.log_partition()
    assert found.exact and found.value == pytest.approx(float(torch.logsumexp(log_f, 0)), abs=1e-10)
    estimate = model.machine.estimate(0, chains=400, steps=300)
    assert abs(estimate.value - found.value) < 4 * estimate.error < 0.4


def test_the_gradient_is_clamped_minus_free(evidence) -> None:
    """EB-01: <s_i s_j>_clamped - <s_i s_j>_free over enumerated states, by the learner's own statistics, is autograd's
    gradient of the exact log-likelihood."""
    model = full(5, 4)
    x, h, machine = every(5)[[3, 9, 21]], every(4), model.machine
    log_p = model.unnormalised(x).sum() - len(x) * model.exact_log_partition()
    names = list(dict(model.named_parameters()))
    want = dict(zip(names, torch.autograd.grad(log_p, list(model.parameters()))))
    with torch.no_grad():

        def states(v: Tensor) -> dict[str, Tensor]:
            return {"visible": v.repeat_interleave(16, 0), "h": h.repeat(len(v), 1)}

        clamped, free = states(x), states(every(5))
        q = (-machine.energy(clamped)).reshape(3, 16).softmax(1).flatten()
        p = (-machine.energy(free)).softmax(0)
        plus, minus = machine.statistics(clamped, q), machine.statistics(free, p)
    gap = max(float((plus[n] - len(x) * minus[n] - want[n]).abs().max()) for n in names)
    evidence(
        id="EB-01", system="boltzmann", claim="clamped minus free averages, 9 units",
        reference="autograd of the exact log-likelihood", reached=gap, tolerance=1e-9, unit="max abs",
    )  # fmt: skip


@pytest.mark.slow
def test_gibbs_chains_reach_the_distribution_of_ten_spins(evidence) -> None:
    """TR-14, EB-04: 1e5 sweeps over 100 chains of a fully connected machine of 10 units."""
    n, chains, steps = 10, 100, 1000
    z = Streams(4, n * n).normal(1, dtype=torch.float64).reshape(n, n).triu(1)
    c, b = 0.5 * (z + z.T), 0.5 * Streams(5, n).normal(1, dtype=torch.float64)[:, 0]
    s, rng = torch.zeros(chains, n, dtype=torch.float64), Streams(0, chains)
    places = 2 ** torch.arange(n - 1, -1, -1)
    seen, energies = torch.zeros(2**n, dtype=torch.float64), []
    for t in range(steps + 100):
        s = gibbs(s, b, c, rng)
        if t >= 100:
            seen += torch.bincount((s.long() * places).sum(1), minlength=2**n)
            energies.append(pairwise_energy(s, b, c))
    p = (-pairwise_energy(every(n), b, c)).softmax(0)
    q = seen / seen.sum()
    kl, tv = float(torch.xlogy(q, q / p).sum()), 0.5 * float((q - p).abs().sum())
    facts = {"system": "gibbs, 10 spins, 1e5 sweeps", "reference": "enumeration of 1,024 states"}
    evidence(id="TR-14", claim="KL(empirical || exact)", reached=kl, tolerance=0.01, unit="nats", **facts)
    evidence(id="EB-04", claim="total variation", reached=tv, tolerance=0.04, unit="", **facts)
    evidence(id="TR-14", claim="R-hat of the energy", reached=rhat(torch.stack(energies)), tolerance=1.05, **facts)


@pytest.mark.parametrize("trials", [1, 2])
def test_a_sweep_leaves_the_machine_invariant(trials: int) -> None:
    model = randomise(BoltzmannMachine((3,), Binomial(3, 2, trials), dtype=torch.float64).double(), 0.7)
    machine, levels, n = model.machine, trials + 1, 20_000
    v = torch.tensor(list(itertools.product(range(levels), repeat=3)), dtype=torch.float64)
    v, h = v.repeat_interleave(4, 0), every(2).repeat(len(v), 1)
    with torch.no_grad():
        p = (-machine.energy({"visible": v, "h": h})).softmax(0)
        i = Streams(1, n).categorical(p.log().expand(n, -1))
        state = machine.sweep({"visible": v[i], "h": h[i]}, Streams(2, n))
        code = (state["visible"] @ torch.tensor([levels**2.0, levels, 1]).double()) * 4 + state["h"] @ torch.tensor(
            [2.0, 1]
        ).double()
    seen = torch.bincount(code.long(), minlength=len(v)).double()
    assert stats.chisquare(seen.numpy(), (p * n).numpy()).pvalue > 1e-4


def test_samples_and_completions_follow_the_machine() -> None:
    model = full(4, 2)
    v = every(4)
    p = (model.unnormalised(v) - model.exact_log_partition()).exp().detach()
    n = 2048
    code = (model.sample(n) @ torch.tensor([8.0, 4, 2, 1]).double()).long()
    assert stats.chisquare(torch.bincount(code, minlength=16).numpy(), (p * n).numpy()).pvalue > 1e-4
    observed = torch.tensor([True, True, False, False])
    drawn = model.given(torch.tensor([1.0, 0, 0, 0]).double(), observed).sample(n)
    assert drawn[:, :2].unique(dim=0).tolist() == [[1, 0]]
    q = p[8:12] / p[8:12].sum()
    code = (drawn[:, 2:] @ torch.tensor([2.0, 1]).double()).long()
    assert stats.chisquare(torch.bincount(code, minlength=4).numpy(), (q * n).numpy()).pvalue > 1e-4


def test_mean_field_bounds_the_sum_and_is_exact_without_couplings() -> None:
    model = full(4, 5, 0.5)
    x = every(4)
    exact = model.unnormalised(x)
    model.tight = False
    bound = model.unnormalised(x)
    assert bool((bound <= exact + 1e-12).all()) and float((exact - bound).max().detach()) < 0.5
    with torch.no_grad():
        model.inner.zero_()
        model.tight = True
        exact = model.unnormalised(x)
        model.tight = False
        assert torch.allclose(model.unnormalised(x), exact, rtol=0, atol=1e-6)
    field, c = torch.tensor([[0.3, -1.0]]).double(), torch.tensor([[0.0, 0.8], [0.8, 0.0]]).double()
    m = mean_field(field, c, steps=200)
    assert torch.allclose(m, torch.sigmoid(field + m @ c), rtol=0, atol=1e-12)  # its fixed point
    assert entropy(torch.full((1, 3), 0.5)).item() == pytest.approx(3 * math.log(2))


def kl_after_learning(hidden: int) -> float:
    """XOR of two bits as a third: correlations of order three, which pairs of visible units cannot make."""
    data = torch.tensor([[0.0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]).double()
    model = BoltzmannMachine((3,), Binomial(3, max(hidden, 1)), settle=2, dtype=torch.float64).double()
    with torch.no_grad():
        model.visible.weight.copy_(Streams(3, 3).normal(max(hidden, 1), dtype=torch.float64))
    learner = Contrast(model, PersistentChains(100, 2), rate=0.2, momentum=0.8, decay=0.0, centre=None)
    learner.horizon = 3000 if hidden else 300
    x = data.repeat(10, 1)
    for step in range(learner.horizon):
        if not hidden:
            with torch.no_grad():
                model.visible.weight.zero_()
        learner.step(Batch(x, None, Streams(fold(0, "step", step), len(x))))
    with torch.no_grad():
        if not hidden:
            model.visible.weight.zero_()
        log_p = model.unnormalised(data) - model.exact_log_partition()
    return float((math.log(0.25) - log_p).mean())


@pytest.mark.slow
def test_hidden_units_learn_what_pairs_cannot(evidence) -> None:
    facts = {"id": "EB-01", "system": "boltzmann: XOR", "reference": "uniform over the 4 rows of XOR", "unit": "nats"}
    evidence(claim="KL(data || model), 4 hidden units", reached=kl_after_learning(4), tolerance=0.05, **facts)
    evidence(
        claim="KL(data || model), no hidden units", reached=kl_after_learning(0), tolerance=0.2, at_least=True, **facts
    )


def test_annealing_finds_ground_states(evidence) -> None:
    """EB-05: a spin glass of 16 units, +-1 spins written as bits; 100 runs each."""
    n = 16
    z = Streams(20, n * n).normal(1, dtype=torch.float64).reshape(n, n).triu(1)
    j = z + z.T
    c, b = 4 * j, -2 * j.sum(1)  # s = (1 + spin) / 2
    ground = float(pairwise_energy(every(n), b, c).min())
    hits = {}
    for name, hottest in (("annealed", 0.02), ("quenched", 20.0)):
        _, energy = anneal(b, c, Streams(0, 100), sweeps=200, hottest=hottest, coldest=20.0)
        hits[name] = int((energy < ground + 1e-9).sum())
    assert hits["quenched"] < 50
    evidence(
        id="EB-05", system="simulated annealing", claim="runs of 100 that find the ground state of a 16-spin glass",
        reference=f"enumeration of 65,536 states; quenched: {hits['quenched']}",
        reached=hits["annealed"], tolerance=95, unit="runs", at_least=True,
    )  # fmt: skip


# ---- deep machines


def deep(visible: int, hidden: int, top: int, scale: float = 0.7) -> DBM:
    return randomise(DBM((visible,), Binomial(visible, hidden), top, dtype=torch.float64).double(), scale)


def test_a_deep_machine_by_enumeration() -> None:
    model = deep(4, 3, 3)
    v, h1, h2 = every(4), every(3), every(3)
    w1, w2 = model.visible.weight, model.top.weight.T  # (visible, h1), (h1, h2)
    log_f = (v @ model.visible.bias)[:, None, None] + (h1 @ model.bias)[None, :, None] + (h2 @ model.top.bias)
    log_f = log_f + (v @ w1 @ h1.T)[:, :, None] + (h1 @ w2 @ h2.T)[None]
    assert torch.allclose(model.unnormalised(v), torch.logsumexp(log_f, (1, 2)), rtol=0, atol=1e-11)
    assert model.log_partition().value == pytest.approx(float(torch.logsumexp(log_f.flatten(), 0).detach()), abs=1e-10)
    exact = model.unnormalised(v)
    model.tight = False
    bound = model.unnormalised(v)
    assert bool((bound <= exact + 1e-12).all()) and float((exact - bound).max().detach()) < 0.5


def test_deep_samples_follow_the_machine() -> None:
    model = deep(4, 3, 2)
    p = (model.unnormalised(every(4)) - model.exact_log_partition()).exp().detach()
    n = 2048
    code = (model.sample(n) @ torch.tensor([8.0, 4, 2, 1]).double()).long()
    assert stats.chisquare(torch.bincount(code, minlength=16).numpy(), (p * n).numpy()).pvalue > 1e-4


def test_the_stages_of_greedy_learning() -> None:
    """Each stage moves its own layers only; chains start anew with each."""
    model = DBM((6,), Binomial(6, 4), 3, pretrain=2)
    learner = Contrast(model, PersistentChains(10))
    x = (Streams(0, 20).uniform(6) < 0.3).float()
    moved = []
    for step in range(6):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        learner.step(Batch(x, None, Streams(fold(0, "step", step), 20)))
        moved.append({name.split(".")[1] if "." in name else name for name, p in model.named_parameters()
                      if not torch.equal(p, before[name])})  # fmt: skip
    assert moved[0] == moved[1] == {"visible", "bias"} and moved[2] == moved[3] == {"top", "bias"}
    assert moved[4] == moved[5] == {"visible", "top", "bias"}


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="couplings"):
        BoltzmannMachine((2,), Gaussian(2, 2))
    with pytest.raises(ConfigError, match="posterior"):
        BoltzmannMachine((2,), Binomial(2, 2), posterior="exact")
    with pytest.raises(ConfigError, match="nothing to couple"):
        DBM((2,), Binomial(2, 2), top=0)
    with pytest.raises(NotSupported):
        BoltzmannMachine((30,), Binomial(30, 4)).exact_log_partition()
    with pytest.raises(ConfigError, match="makes no sense"):
        anneal(torch.zeros(2), torch.zeros(2, 2), Streams(0, 1), hottest=0.0)
