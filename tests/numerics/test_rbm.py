"""Restricted Boltzmann machines of a few units against sums over all their states, written out here."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from protea.errors import ConfigError, DataError, NotSupported
from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial, Gaussian, Levels, Units
from protea.objectives.contrastive_divergence import DataChains
from protea.rng import Streams


def machine(visible: Units, classes: int = 0, scale: float = 0.8, seed: int = 0) -> RBM:
    """A machine of random parameters, in float64."""
    model = RBM((visible.size,), visible, classes, dtype=torch.float64).double()
    for i, p in enumerate(model.parameters()):
        with torch.no_grad():
            p.copy_(scale * Streams(seed, p.numel()).child(i).normal(1, dtype=torch.float64).reshape(p.shape))
    model.visible.base.copy_(0.3 * Streams(seed, visible.size).normal(1, dtype=torch.float64)[:, 0])
    return model


def every(units: int, levels: int = 2) -> Tensor:
    return torch.tensor(list(itertools.product(range(levels), repeat=units)), dtype=torch.float64)


def joint(model: RBM, v: Tensor, h: Tensor, y: int | None = None) -> Tensor:
    """-E(v, h), (V, H), straight from the definition."""
    w, b = model.visible.weight, model.visible.bias
    n = getattr(model.visible, "trials", 1)
    count = torch.tensor(
        [[math.log(math.comb(n, int(k))) for k in row] for row in v.tolist()], dtype=torch.float64
    ).sum(1)
    out = (v @ b + count)[:, None] + (h @ model.bias)[None] + v @ w @ h.T
    if y is not None:
        assert model.label is not None
        out = out + model.label.bias[y] + (h @ model.label.weight[y])[None]
    return out


@pytest.mark.parametrize("trials", [1, 3])
def test_free_energy_and_partition_by_enumeration(trials: int) -> None:
    model = machine(Binomial(5, 4, trials))
    v, h = every(5, trials + 1), every(4)
    log_joint = joint(model, v, h).detach()
    assert torch.allclose(model.energy(v), -torch.logsumexp(log_joint, 1), rtol=0, atol=1e-11)
    log_z = torch.logsumexp(log_joint.flatten(), 0)
    assert float(model.exact_log_partition().detach()) == pytest.approx(float(log_z), abs=1e-11)
    assert model.log_partition().exact and model.log_partition().value == pytest.approx(float(log_z), abs=1e-11)
    assert float(model.normalised().log_prob(v).exp().sum().detach()) == pytest.approx(1, abs=1e-11)
    posterior = (log_joint - torch.logsumexp(log_joint, 1, keepdim=True)).exp() @ h
    assert torch.allclose(model.hidden(v), posterior, rtol=0, atol=1e-11)


def test_levels_by_enumeration() -> None:
    """A weight for each level of a pixel: binary visible units of which one in each group is on."""
    units = Levels(3, 4, levels=3)
    model = RBM((3,), units, dtype=torch.float64).double()
    for i, p in enumerate(model.parameters()):
        with torch.no_grad():
            p.copy_(0.8 * Streams(i, p.numel()).normal(1, dtype=torch.float64).reshape(p.shape))
    v, h = every(3, 3), every(4)
    hot = torch.nn.functional.one_hot(v.long(), 3).double().flatten(1)
    log_f = (hot @ units.bias)[:, None] + (h @ model.bias)[None] + hot @ units.weight @ h.T
    assert torch.allclose(model.energy(v), -torch.logsumexp(log_f, 1), rtol=0, atol=1e-11)
    log_z = model.exact_log_partition()
    assert float((log_z - torch.logsumexp(log_f.flatten(), 0)).detach()) == pytest.approx(0, abs=1e-11)
    found = model.machine.estimate(0, chains=400, steps=200)
    assert abs(found.value - float(log_z.detach())) < 4 * found.error < 0.4
    x = v[[1, 5, 20]]
    want = torch.autograd.grad(-model.energy(x).sum(), list(model.parameters()))
    plus = model.machine.statistics(model.infer(x, None, Streams(0, 3)))
    for (name, _), g in zip(model.named_parameters(), want):
        assert torch.allclose(plus[name], g, rtol=0, atol=1e-10), name
    p = (-model.energy(v) - log_z).exp().detach()
    code = (model.sample(2048).double() @ torch.tensor([9.0, 3, 1]).double()).long()
    assert stats.chisquare(torch.bincount(code, minlength=27).numpy(), (p * 2048).numpy()).pvalue > 1e-4


def test_the_visible_side_is_summed_where_it_is_smaller() -> None:
    model = machine(Binomial(4, 24), scale=0.4)
    log_f = -model.energy(every(4))
    assert float(model.exact_log_partition().detach()) == pytest.approx(float(torch.logsumexp(log_f, 0)), abs=1e-10)


def test_labels_are_one_more_visible_layer() -> None:
    model = machine(Binomial(4, 3), classes=3)
    v, h = every(4), every(3)
    each = torch.stack([torch.logsumexp(joint(model, v, h, y), 1) for y in range(3)], 1)
    assert torch.allclose(model.energy(v), -torch.logsumexp(each, 1), rtol=0, atol=1e-11)
    y = torch.arange(len(v)) % 3
    assert torch.allclose(model.energy(v, y), -each.gather(1, y[:, None])[:, 0], rtol=0, atol=1e-11)
    assert torch.allclose(model.posterior(v), each.softmax(1), rtol=0, atol=1e-11)
    log_p = model.normalised().log_prob(v, torch.full((len(v),), 1))
    assert torch.allclose(log_p, each[:, 1] - torch.logsumexp(each[:, 1], 0), rtol=0, atol=1e-11)
    assert float(model.exact_log_partition().detach()) == pytest.approx(
        float(torch.logsumexp(each.flatten(), 0)), abs=1e-11
    )


def test_a_gaussian_machine_is_a_mixture_of_gaussians() -> None:
    """p(v) = sum_h p(h) N(v; b + W h, diag sigma^2), of 2^H members, from scipy."""
    model = machine(Gaussian(2, 3))
    h, w = every(3).numpy(), model.visible.weight.detach().numpy()
    b, variance = model.visible.bias.detach().numpy(), model.visible.log_variance.detach().exp().numpy()
    mean = b + h @ w.T
    log_weight = h @ model.bias.detach().numpy() + (0.5 * mean**2 / variance).sum(1)  # each member's integral
    log_weight += 0.5 * np.log(2 * np.pi * variance).sum()
    x = np.random.default_rng(0).normal(size=(20, 2))
    members = np.stack([stats.multivariate_normal(m, np.diag(variance)).logpdf(x) for m in mean], 1)
    want = np.log((np.exp(log_weight - log_weight.max()) * np.exp(members)).sum(1))
    want -= np.log(np.exp(log_weight - log_weight.max()).sum())
    assert np.allclose(model.normalised().log_prob(torch.from_numpy(x)).detach().numpy(), want, atol=1e-10)


@pytest.mark.parametrize(
    "visible", [Binomial(4, 3), Binomial(4, 3, 2), Gaussian(4, 3)], ids=["binary", "binomial", "gaussian"]
)
def test_the_difference_of_phases_is_the_gradient(visible: Units) -> None:
    """Positive minus exact negative statistics against autograd of the exact log-likelihood."""
    model = machine(visible, classes=2)
    x = every(4)[[0, 3, 9, 14]] if isinstance(visible, Binomial) else Streams(3, 4).normal(4, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0])
    log_p = -model.energy(x, y).sum() - len(x) * model.exact_log_partition()
    want = dict(zip(dict(model.named_parameters()), torch.autograd.grad(log_p, list(model.parameters()))))
    with torch.no_grad():
        plus = model.machine.statistics(model.infer(model.flat(x), model.one_hot(y, 4), Streams(0, 4)))
    # The negative phase by autograd of log Z alone would prove nothing: check the positive phase, then the sum.
    energy = dict(zip(want, torch.autograd.grad(-model.energy(x, y).sum(), list(model.parameters()))))
    for name in want:
        assert torch.allclose(plus[name], energy[name], rtol=0, atol=1e-10), name
    log_z = dict(zip(want, torch.autograd.grad(model.exact_log_partition(), list(model.parameters()))))
    with torch.no_grad():  # E over p(h) of the statistics, with the outer layers at their means given h
        h = every(3)
        p = model.machine.log_centre(h).softmax(0)
        outer = {name: units.mean(units.pull(h)) for name, units in model.machine.outer.items()}
        for name in want:
            if name.endswith("log_variance"):
                continue  # not linear in the mean
            one = [model.machine.statistics({**{k: u[i : i + 1] for k, u in outer.items()}, "mean": h[i : i + 1]})[name]
                   for i in range(len(h))]  # fmt: skip
            negative = sum(p[i] * one[i] for i in range(len(h)))
            assert torch.allclose(negative, log_z[name], rtol=0, atol=1e-10), name
            assert torch.allclose(plus[name] - len(x) * negative, want[name], rtol=0, atol=1e-9), name


def test_cd_k_tends_to_the_gradient() -> None:
    """EB-03: cosine with the exact gradient, of 40,000 chains from the data."""
    model = machine(Binomial(6, 4), scale=0.7, seed=5)
    x = every(6)[[5, 23, 40, 61]].repeat(10_000, 1)
    log_p = -model.energy(x[:4]).mean() - model.exact_log_partition()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(log_p, list(model.parameters()))])
    names = list(dict(model.named_parameters()))
    cosine = {}
    with torch.no_grad():
        positive = model.infer(x, None, Streams(0, len(x)))
        plus = model.machine.statistics(positive)
        for k in (1, 30):
            minus = model.machine.statistics(DataChains(k)(model.machine, positive, Streams(1, len(x))))
            estimate = torch.cat([((plus[n] - minus[n]) / len(x)).flatten() for n in names])
            cosine[k] = float(torch.cosine_similarity(estimate, exact, 0))
    assert cosine[30] > 0.99 and cosine[1] < cosine[30]


@pytest.mark.parametrize("visible", [Binomial(3, 3), Binomial(3, 3, 2)], ids=["binary", "binomial"])
def test_a_sweep_leaves_the_distribution_invariant(visible: Units) -> None:
    """Exact draws stay exact draws after a sweep: chi-square over all visible states."""
    model = machine(visible)
    v, n = every(3, visible.trials + 1), 20_000  # type: ignore[attr-defined]
    with torch.no_grad():
        p = model.normalised().log_prob(v).exp()
        index = Streams(1, n).categorical(p.log().expand(n, -1))
        hidden = Streams(2, n).bernoulli(model.hidden(v[index]))
        after = model.machine.sweep({"h": hidden}, Streams(3, n))["visible"]
        code = (after @ torch.tensor([(visible.trials + 1.0) ** i for i in (2, 1, 0)]).double()).long()  # type: ignore[attr-defined]
    seen = torch.bincount(code, minlength=len(v)).double()
    assert stats.chisquare(seen.numpy(), (p * n).numpy()).pvalue > 1e-4


def test_samples_follow_the_likelihood() -> None:
    model = machine(Binomial(5, 4))
    v, n = every(5), 4096
    code = (model.sample(n).double() @ torch.tensor([16.0, 8, 4, 2, 1]).double()).long()
    with torch.no_grad():
        p = model.normalised().log_prob(v).exp()
    assert stats.chisquare(torch.bincount(code, minlength=32).numpy(), (p * n).numpy()).pvalue > 1e-4


def test_completions_follow_the_conditional() -> None:
    model = machine(Binomial(4, 3), seed=2)
    x, observed = torch.tensor([1.0, 0.0, 1.0, 0.0]).double(), torch.tensor([True, False, True, False])
    n = 2048
    drawn = model.given(x, observed).sample(n)
    assert bool((drawn[:, observed] == x[observed]).all())
    v = every(4)
    v = v[(v[:, 0] == 1) & (v[:, 2] == 1)]
    with torch.no_grad():
        p = (-model.energy(v)).softmax(0)
    code = (2 * drawn[:, 1] + drawn[:, 3]).long()
    assert stats.chisquare(torch.bincount(code, minlength=4).numpy(), (p * n).numpy()).pvalue > 1e-4
    mean = model.given(x, observed).mean(2000)[0]
    assert torch.allclose(mean, (p[:, None] * v).sum(0), atol=0.05)


def test_bad_input() -> None:
    model = RBM((4,), Binomial(4, 3))
    with pytest.raises(DataError, match="is 2; units take whole numbers"):
        model.energy(torch.tensor([[0.0, 2, 0, 1]]))
    with pytest.raises(DataError, match="do not fit"):
        model.given(torch.zeros(4), torch.ones(3, dtype=torch.bool))
    with pytest.raises(DataError, match="True where observed"):
        model.given(torch.zeros(4), torch.ones(4))
    with pytest.raises(ConfigError, match="nothing to couple"):
        RBM((4,), Binomial(4, 0))
    with pytest.raises(NotSupported):
        RBM((30,), Binomial(30, 30)).exact_log_partition()
    whole = torch.tensor([1.0, 0, 1, 1])
    assert model.given(whole, torch.ones(4, dtype=torch.bool)).sample(2).tolist() == [whole.tolist()] * 2
    with pytest.raises(DataError, match="NaN"):
        RBM((2,), Gaussian(2, 2)).energy(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(NotSupported):
        model.sample(2, torch.zeros(2, dtype=torch.int64))


def test_free_energy_is_that_of_scikit_learn(evidence) -> None:
    from sklearn.neural_network import BernoulliRBM

    rng = np.random.default_rng(0)
    x = (rng.random((50, 12)) < 0.3).astype(np.float64)
    peer = BernoulliRBM(5, n_iter=2, random_state=0).fit(x)
    model = RBM((12,), Binomial(12, 5), dtype=torch.float64).double()
    with torch.no_grad():
        model.visible.weight.copy_(torch.from_numpy(peer.components_.T))
        model.visible.bias.copy_(torch.from_numpy(peer.intercept_visible_))
        model.bias.copy_(torch.from_numpy(peer.intercept_hidden_))
        ours = model.energy(torch.from_numpy(x)).numpy()
        hidden = model.hidden(torch.from_numpy(x)).numpy()
    gap = max(np.abs(ours - peer._free_energy(x)).max(), np.abs(hidden - peer.transform(x)).max())
    evidence(
        id="EB-02", system="rbm", claim="free energy and hidden probabilities of the same weights",
        reference="sklearn.neural_network.BernoulliRBM", reached=gap, tolerance=1e-8, unit="nats",
    )  # fmt: skip
