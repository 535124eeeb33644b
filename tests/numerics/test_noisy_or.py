"""The noisy-OR network against sums over all states written out here in NumPy, and its bounds on both sides of them."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from protea.errors import ConfigError, DataError, NotSupported
from protea.models.classical.noisy_or import NoisyOr
from protea.models.classical.noisy_or_bounds import MeanField, Tangents, log1mexp, series
from protea.rng import Streams


def network(diseases: int, findings: int, *, seed: int = 0, scale: float = 2.0, density: float = 0.4) -> NoisyOr:
    s = Streams(seed, 1)
    links = (s.uniform(findings, diseases)[0] < density).double()
    theta = scale * s.uniform(findings, diseases, dtype=torch.float64)[0] * links
    return NoisyOr(0.02 + 0.3 * s.uniform(diseases, dtype=torch.float64)[0],
                   0.02 + 0.1 * s.uniform(findings, dtype=torch.float64)[0], theta)  # fmt: skip


def rows(model: NoisyOr, n: int, *, seed: int = 1, missing: float = 0.2, flip: float = 0.2) -> Tensor:
    """Draws with some findings flipped, so that unlikely rows are tried too, and some unknown."""
    x = model.sample(n, rng=seed)
    s = Streams(seed + 100, n)
    x = torch.where(s.uniform(x.shape[1]) < flip, 1 - x, x)
    return torch.where(s.uniform(x.shape[1]) < missing, torch.nan, x)


def joint(model: NoisyOr, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """All states d (S, D) and log p(x, d) (B, S), finding by finding as the definition says."""
    net = [t.detach().numpy() for t in model.network]
    prior, leak, theta = special.expit(net[0]), net[1], net[2]
    d = np.array(list(itertools.product((0, 1), repeat=len(prior))))
    log_p = np.tile(np.log(np.where(d == 1, prior, 1 - prior)).sum(1), (len(x), 1))
    for b, row in enumerate(x.numpy()):
        for i, value in enumerate(row):
            absent = np.exp(-leak[i] - d @ theta[i])
            if not np.isnan(value):
                log_p[b] += np.log(1 - absent) if value == 1 else np.log(absent)
    return d, log_p


def test_exact_is_the_sum_over_all_states(evidence) -> None:
    model = network(7, 9)
    x = rows(model, 20)
    d, log_p = joint(model, x)
    want = np.asarray(special.logsumexp(log_p, axis=1))
    marginals = np.exp(log_p - want[:, None]) @ d
    found = model.exact(x)
    error = max(np.abs(found.log_prob.detach().numpy() - want).max(),
                np.abs(found.marginals.detach().numpy() - marginals).max())  # fmt: skip
    evidence(
        id="TR-15", system="Noisy-OR network", claim="log-evidence and posterior marginals by enumeration",
        reference="sum over all states in NumPy", reached=error, tolerance=1e-11, unit="max abs",
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6), st.sampled_from((0.05, 1.0, 5.0)),
       st.sampled_from((1, 3, 8)))  # fmt: skip
def test_the_evidence_lies_between_the_bounds(diseases: int, findings: int, seed: int, scale: float, resolution: int):
    base = network(diseases, findings, seed=seed, scale=scale)
    x = rows(base, 6, seed=seed)
    net = base.network
    with torch.no_grad():
        exact = base.exact(x).log_prob
        lower, upper = MeanField(net, x, resolution=resolution), Tangents(net, x)
        for _ in range(3):  # at every state of the ascent, not at its end alone
            assert bool((lower.value() <= exact + 1e-9).all()) and bool((upper.value() >= exact - 1e-9).all())
            lower.sweep()
            upper.sweep()
        other = lower.logits + 3 * Streams(seed, 6).normal(diseases, dtype=torch.float64)
        lower.logits = other  # and wherever q is
        assert bool((lower.value() <= exact + 1e-9).all())


def test_the_bounds_hold_with_room_to_tell(evidence) -> None:
    """On harder nets, whose bounds are not tight, the worst margin on either side."""
    margin = np.inf
    for seed in range(4):
        model = network(8, 14, seed=seed, density=0.6)
        x = rows(model, 25, seed=seed)
        exact = special.logsumexp(joint(model, x)[1], axis=1)
        with torch.no_grad():
            low, high = model.lower_bound(x).numpy(), model.upper_bound(x).numpy()
        margin = min(margin, (exact - low).min(), (high - exact).min())
        assert (exact - low).max() > 0.05 and (high - exact).max() > 0.05
    evidence(
        id="TR-15", system="Noisy-OR network", claim="mean-field bound <= log-evidence <= dual bound, 100 rows",
        reference="sum over all states in NumPy", reached=margin, tolerance=-1e-10,
        unit="nats, least gap", at_least=True,
    )  # fmt: skip


def test_the_series_is_below_and_touches() -> None:
    leak, reach = torch.tensor([0.001, 0.1, 2.0], dtype=torch.float64), torch.linspace(0, 30, 400, dtype=torch.float64)
    a = leak[:, None] + reach
    f = log1mexp(a)
    want = [float(mpmath.log1p(-mpmath.exp(-mpmath.mpf(v)))) for v in a[:, ::40].flatten().tolist()]
    assert np.allclose(f[:, ::40].flatten().numpy(), want, rtol=1e-13, atol=0)
    last = torch.full_like(f, -torch.inf)
    for resolution in (1, 4, 16):
        k, w = series(leak, resolution)
        below = -(w[:, None] * torch.exp(-k * reach[:, None])).sum(-1)
        assert bool((below <= f + 1e-12).all()) and torch.allclose(below[:, 0], f[:, 0], rtol=1e-12)
        assert bool((below >= last - 1e-12).all())  # finer is tighter
        last = below
    assert float((f - last).max()) < 0.06


def test_the_lower_bound_is_the_mean_field_bound(evidence) -> None:
    """Where every term of the series is a node, it is E_q[log p(x, d)] + H(q), summed over all states."""
    model = network(6, 8)
    x = rows(model, 10)
    d, log_p = joint(model, x)
    with torch.no_grad():
        lower = MeanField(model.network, x, resolution=10**4)
        lower.sweep()
        q = torch.sigmoid(lower.logits).numpy()[:, None]
        log_q = np.log(np.where(d == 1, q, 1 - q)).sum(2)
        want = (np.exp(log_q) * (log_p - log_q)).sum(1)
        error = np.abs(lower.value().numpy() - want).max()
        coarse = MeanField(model.network, x)
        coarse.logits = lower.logits
        loss = want - coarse.value().numpy()
        assert loss.min() >= -1e-12 and loss.max() < 0.1
    evidence(
        id="TR-15", system="Noisy-OR network", claim="mean-field bound E_q log p(x, d) + H(q)",
        reference="sum over all states in NumPy", reached=error, tolerance=1e-9, unit="nats",
    )  # fmt: skip


def test_no_coordinate_step_loosens_a_bound(evidence) -> None:
    model = network(8, 12, density=0.6)
    x = rows(model, 16)
    with torch.no_grad():
        lower, upper = MeanField(model.network, x), Tangents(model.network, x)
        exact, fall = model.exact(x).log_prob, 0.0
        first, first_up = exact - lower.value(), upper.value() - exact
        for _ in range(3):
            for j in range(8):
                before = lower.value()
                lower.step(j)
                fall = max(fall, float((before - lower.value()).max()))
            for i in range(12):
                before = upper.value()
                upper.step(i)
                fall = max(fall, float((upper.value() - before).max()))
        last, last_up = exact - lower.value(), upper.value() - exact
    assert float(last.mean()) < 0.5 * float(first.mean()) and float(last_up.mean()) < 0.9 * float(first_up.mean())
    evidence(
        id="TR-15", system="Noisy-OR network", claim="no coordinate step lowers the ELBO or raises the upper bound",
        reference="monotone", reached=fall, tolerance=1e-10, unit="nats",
    )  # fmt: skip


def test_the_upper_bound_is_the_conjugate_form(evidence) -> None:
    """Jaakkola & Jordan's formula with xi and f*(xi) = -xi log xi + (xi + 1) log(xi + 1), and its minimum by SciPy."""
    from scipy.optimize import minimize

    model = network(5, 6, density=0.7)
    x = rows(model, 4, missing=0.0, flip=0.5)
    odds, leak, theta = (t.detach().numpy() for t in model.network)
    pi, error = special.expit(odds), 0.0
    for row in x:
        on = row.numpy() == 1

        def bound(log_xi: np.ndarray, on: np.ndarray = on) -> float:
            xi = np.exp(log_xi)
            dual = -special.xlogy(xi, xi) + special.xlogy(xi + 1, xi + 1)
            s = xi @ theta[on] - theta[~on].sum(0)
            return (xi @ leak[on] - dual.sum()) - leak[~on].sum() + np.log(1 - pi + pi * np.exp(s)).sum()

        upper = model.tangents(row[None])
        with torch.no_grad():
            value, log_xi = float(upper.value()), np.log(upper.xi[0].numpy()[on])
        least = minimize(bound, np.zeros(on.sum()), tol=1e-12).fun
        error = max(error, abs(value - bound(log_xi)), abs(value - least))
    evidence(
        id="TR-15", system="Noisy-OR network", claim="convex-duality bound at its minimum over xi",
        reference="formula of Jaakkola & Jordan 1999, scipy.optimize", reached=error, tolerance=1e-6, unit="nats",
    )  # fmt: skip


def test_marginals_of_fifteen_diseases(evidence) -> None:
    model = network(15, 30, density=0.3)
    x = model.sample(40, rng=3)
    with torch.no_grad():
        exact, lower = model.exact(x), MeanField(model.network, x)
        gaps = [float((exact.log_prob - lower.value()).mean())]
        for _ in range(5):
            lower.sweep()
            gaps.append(float((exact.log_prob - lower.value()).mean()))
        found = model.posterior(x)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(gaps)) and gaps[-1] < 0.5 * gaps[0]
    evidence(
        id="TR-15", system="Noisy-OR network", claim="mean-field marginals, 15 diseases, 40 rows of 30 findings",
        reference="enumeration of 2^15 states", reached=np.corrcoef(found.flatten(), exact.marginals.flatten())[0, 1],
        tolerance=0.95, unit="correlation", at_least=True,
    )  # fmt: skip
    evidence(
        id="TR-15", system="Noisy-OR network", claim="gap of the mean-field bound after five sweeps, of that before",
        reference="enumeration of 2^15 states", reached=gaps[-1] / gaps[0], tolerance=0.5, unit="ratio",
    )  # fmt: skip


def test_absent_findings_are_exact(evidence) -> None:
    """Without a present finding the posterior factorises: both bounds are the evidence, q the posterior."""
    model = network(9, 12)
    x = torch.where(Streams(4, 10).uniform(12) < 0.5, 0.0, torch.nan).double()
    prior, leak, theta = (t.detach().numpy() for t in model.network)
    pi, off = special.expit(prior), (x.numpy() == 0).astype(float)
    tilt = pi * np.exp(-off @ theta)
    want, q = np.log(1 - pi + tilt).sum(1) - off @ leak, tilt / (1 - pi + tilt)
    with torch.no_grad():
        found = [model.lower_bound(x).numpy(), model.upper_bound(x).numpy(), model.exact(x).log_prob.numpy()]
        marginals = model.posterior(x).numpy()
    evidence(
        id="TR-15", system="Noisy-OR network", claim="absent findings: both bounds and the marginals are exact",
        reference="closed form, a product over diseases", tolerance=1e-12, unit="max abs",
        reached=max(*(np.abs(f - want).max() for f in found), np.abs(marginals - q).max()),
    )  # fmt: skip


def test_draws_follow_the_distribution(evidence) -> None:
    model = network(3, 4, scale=1.5, density=0.8)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    p = np.exp(np.asarray(special.logsumexp(joint(model, every)[1], axis=1)))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    n = 4000
    x = model.sample(n, rng=5)
    seen = np.bincount((x @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long().numpy(), minlength=16)
    assert (n * p).min() > 3
    evidence(
        id="TR-13", system="Noisy-OR network", claim="ancestral draws follow the distribution, 16 states",
        reference="scipy.stats.chisquare, sum over all states", reached=stats.chisquare(seen, n * p).pvalue,
        tolerance=1e-3, unit="p-value", at_least=True,
    )  # fmt: skip
    d, _ = model.draw_joint(Streams(6, n))
    pi = torch.sigmoid(model.odds).detach()
    assert bool(((d.mean(0) - pi).abs() < 4 * (pi * (1 - pi) / n).sqrt()).all())
    assert torch.equal(model.sample(1, rng=Streams(5, [70])), x[70:71])
    assert model.sample(0).shape == (0, 4)
    assert model.space.decode(x[:3]).shape == (3, 4)


def test_the_drawn_bound_tightens_to_the_evidence() -> None:
    model = network(4, 8, density=0.6)
    x = rows(model, 12)
    with torch.no_grad():
        exact, mean_field = model.exact(x).log_prob, model.lower_bound(x)
        one = torch.stack([model.log_prob_bound(x, rng=Streams(s, 12)) for s in range(20)])
        many = torch.stack([model.log_prob_bound(x, rng=Streams(s, 12), k=200) for s in range(4)])
    error = float(one.mean(1).std()) / 20**0.5
    # One draw: the mean-field bound itself, but for what the series loses.
    assert -4 * error < float(one.mean() - mean_field.mean()) < 4 * error + 0.05
    assert float(one.mean()) < float(many.mean()) <= float(exact.mean()) + 0.05
    assert float((exact - many.mean(0)).abs().max()) < 0.1


def test_learning_by_the_bound_raises_the_evidence() -> None:
    """Variational EM: q in the bound, a gradient step of the parameters. Links that are not there stay away."""
    truth = network(3, 6, scale=3.0, density=0.5)
    x = truth.sample(100, rng=8)
    theta = truth.network.theta.detach()
    model = NoisyOr([0.3] * 3, [0.3] * 6, torch.where(theta > 0, 1.0, 0.0), sweeps=3, resolution=4)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    with torch.no_grad():
        before = float(model.exact(x).log_prob.mean())
    for _ in range(25):
        optimiser.zero_grad()
        (-model.lower_bound(x).mean()).backward()
        optimiser.step()
    with torch.no_grad():
        assert float(model.exact(x).log_prob.mean()) > before + 0.1
    assert torch.equal(model.network.theta > 0, theta > 0)


def test_hundreds_of_diseases() -> None:
    """A size that cannot be summed over: the bounds are found, in order, and no number is lost."""
    model = network(200, 300, density=0.03, scale=3.0)
    x = torch.full((2, 300), torch.nan, dtype=torch.float64)
    x[:, :10], x[:, 10:60] = 1.0, 0.0
    with torch.no_grad():
        low, high = model.lower_bound(x), model.upper_bound(x)
    assert bool(low.isfinite().all()) and bool((low < high).all()) and bool((high < 0).all())
    with pytest.raises(NotSupported, match="too many"):
        model.exact(x)


def test_links_without_end_do_not_lose_a_number() -> None:
    model = NoisyOr([1e-9, 1 - 1e-9], [1e-8, 5.0], [[300.0, 0.0], [300.0, 300.0]])
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    with torch.no_grad():
        low, high, exact = model.lower_bound(x), model.upper_bound(x), model.exact(x).log_prob
    assert bool(low.isfinite().all()) and bool((low <= exact + 1e-6).all()) and bool((exact <= high + 1e-6).all())


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        NoisyOr([0.5], [0.1, 0.1], [[1.0, 1.0]])
    with pytest.raises(ConfigError, match=r"leak holds 0\.0"):
        NoisyOr([0.5], [0.0], [[1.0]])
    with pytest.raises(ConfigError, match=r"theta holds -1\.0"):
        NoisyOr([0.5], [0.1], [[-1.0]])
    model = NoisyOr([0.5], [0.1], [[1.0]])
    with pytest.raises(DataError, match=r"0\.5"):
        model.lower_bound(torch.tensor([[0.5]]))
    with pytest.raises(DataError, match="shape"):
        model.lower_bound(torch.zeros(2, 3))
    with pytest.raises(NotSupported, match="labels"):
        model.sample(2, torch.zeros(2, dtype=torch.int64))
