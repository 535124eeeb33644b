"""Families of columns against closed forms, scipy and enumeration: masses, unknown entries, missing values, draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from protea.distributions.bernoulli import Bernoulli
from protea.distributions.discretised import Discretised, log_mass, truncated_moments
from protea.distributions.family import Family
from protea.distributions.gaussian import Gaussian
from protea.distributions.histogram import Histogram
from protea.distributions.label import Label
from protea.distributions.multinomial import Multinomial
from protea.distributions.optional import Optional
from protea.distributions.product import Product, Shaped
from protea.errors import ConfigError, DataError
from protea.rng import Streams
from protea.space import Field

INTEGER, BOUNDED = Field("n", "grid"), Field("level", "grid", levels=6, low=0.0, high=5.0)
CITY = Field("city", "category", levels=3, missing=True)


def rows(n: int, *columns: str, seed: int = 0) -> Tensor:
    """Random rows of columns: 'bit', 'code' (0-2, some NaN), 'count', 'whole', 'level' (0-5), 'real'."""
    rng = np.random.default_rng(seed)
    made = {
        "bit": rng.integers(0, 2, n), "code": np.where(rng.random(n) < 0.2, np.nan, rng.integers(0, 3, n)),
        "count": rng.poisson(2.0, n), "whole": np.round(3 * rng.normal(size=n) + 10), "real": rng.normal(size=n),
        "level": rng.binomial(5, 0.4, n),
    }  # fmt: skip
    return torch.from_numpy(np.stack([made[c] for c in columns], 1).astype(np.float64))


def weights(n: int, members: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(members), size=n))


# ---- normals rounded to a grid ----


def test_rounded_masses_are_scipys():
    """Grid masses from scipy's distribution function, in the middle and 30 sigmas out, and they sum to one."""
    family = Discretised(2, [Field("price", "grid", step=0.25), BOUNDED])
    family.means.copy_(torch.tensor([[1.0, 1.0], [-2.0, 4.5]]))
    family.sigmas.copy_(torch.tensor([[0.4, 0.7], [3.0, 2.0]]))
    grid = torch.arange(-120, 121).double() * 0.25
    levels = torch.arange(6).double()
    for k in range(2):
        d = stats.norm(float(family.means[k, 0]), float(family.sigmas[k, 0]))
        want = d.cdf(grid + 0.125) - d.cdf(grid - 0.125)
        x = torch.stack((grid, torch.full_like(grid, math.nan)), 1)
        got = family.log_prob(x)[:, k].exp()
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15)
        d = stats.norm(float(family.means[k, 1]), float(family.sigmas[k, 1]))
        ends = [d.cdf(0.5), *(d.cdf(v + 0.5) - d.cdf(v - 0.5) for v in range(1, 5)), d.sf(4.5)]
        x = torch.stack((torch.full_like(levels, math.nan), levels), 1)
        got = family.log_prob(x)[:, k].exp()
        np.testing.assert_allclose(got, ends, rtol=1e-9)
        assert float(got.sum()) == pytest.approx(1, abs=1e-12)
    a = torch.tensor([5.0, 30.0, -0.2, 1e-7, 3.0], dtype=torch.float64)
    b = torch.tensor([6.0, 31.0, 0.3, 3e-7, 3.0 + 5e-4], dtype=torch.float64)
    want = stats.norm.logsf(a) + np.log1p(-np.exp(stats.norm.logsf(b) - stats.norm.logsf(a)))
    want[3] = stats.norm.logpdf(2e-7) + math.log(2e-7)
    np.testing.assert_allclose(log_mass(a, b), want, rtol=1e-10)
    np.testing.assert_allclose(log_mass(-b, -a), want, rtol=1e-10)


def test_truncated_moments_are_scipys():
    a = torch.tensor([-1.0, 0.5, 4.0, -math.inf, 2.0, 1.0], dtype=torch.float64)
    b = torch.tensor([1.0, 0.6, 7.0, -0.5, math.inf, 1.0 + 1e-5], dtype=torch.float64)
    first, second = truncated_moments(a, b, log_mass(a, b))
    for i in range(len(a)):
        d = stats.truncnorm(float(a[i]), float(b[i]))
        assert float(first[i]) == pytest.approx(d.mean(), rel=1e-8)
        assert float(second[i]) == pytest.approx(d.var() + d.mean() ** 2, rel=1e-8)


def test_rounding_is_undone():
    """The mean and sigma of normals come back from values rounded to a coarse grid: Sheppard's correction and more."""
    z = Streams(0, 40_000).normal(1, dtype=torch.float64) * 0.8 + 0.3
    family = Discretised(1, [INTEGER])
    x, one = z.round(), torch.ones(len(z), 1, dtype=torch.float64)
    family.initialise(x, one)
    for _ in range(60):
        family.maximise(family.expect(x, one))
    assert float(family.means) == pytest.approx(0.3, abs=0.02)
    assert float(family.sigmas) == pytest.approx(0.8, abs=0.02)  # the plain deviation of x is 0.85
    assert float(x.std()) > 0.84


# ---- multinomials ----


def test_multinomial_sums_to_one_and_integrates_unknown_counts_out():
    family = Multinomial(2, (3,), alpha=0.5)
    x = rows(300, "count", "count", "bit")
    r = weights(300, 2)
    family.initialise(x, r)
    family.maximise(family.expect(x, r))
    every = torch.tensor(list(itertools.product(range(60), repeat=3)), dtype=torch.float64)
    p = family.log_prob(every).exp()
    tail = float(family.totals.log_prob(torch.arange(60.0)[:, None].double()).exp().sum())
    np.testing.assert_allclose(p.sum(0), tail, atol=1e-4)
    part = torch.tensor([[2.0, math.nan, 1.0]], dtype=torch.float64)
    same = (every[:, 0] == 2) & (every[:, 2] == 1)
    np.testing.assert_allclose(family.log_prob(part).exp()[0], p[same].sum(0), rtol=1e-6)
    assert float(p[same].sum()) > 1e-4
    weight = p[same] / p[same].sum(0)
    mean = (weight * every[same][:, 1, None]).sum(0)
    np.testing.assert_allclose(family.fill(part, ~part.isnan())[0, :, 1], mean, rtol=1e-5)
    # Statistics of a row with an unknown count: the known ones, and the expectation of the other.
    stats_ = family.expect(part, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    np.testing.assert_allclose(stats_["n"][0], [2.0, float(mean[0]), 1.0], rtol=1e-5)


# ---- missing as a value, products ----


def test_missing_has_its_own_probability():
    family = Optional(Gaussian(2, (2,), "full"), alpha=0.5)
    x = rows(200, "real", "real")
    x[:50, 0] = math.nan
    family.initialise(x, weights(200, 2))
    family.maximise(family.expect(x, weights(200, 2)))
    rho = family.rates
    there = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    half = torch.tensor([[math.nan, -1.0]], dtype=torch.float64)
    for k in range(2):
        mean, cov = family.inner.means[k].numpy(), family.inner.covariances[k].numpy()  # type: ignore[union-attr, index]
        want = stats.multivariate_normal.logpdf(there[0].numpy(), mean, cov) + torch.log1p(-rho[k]).sum()
        assert float(family.log_prob(there)[0, k]) == pytest.approx(float(want), abs=1e-9)
        marginal = stats.norm(mean[1], math.sqrt(cov[1, 1])).logpdf(-1.0)
        want = float(rho[k, 0].log() + torch.log1p(-rho[k, 1])) + marginal
        assert float(family.log_prob(half)[0, k]) == pytest.approx(want, abs=1e-9)
    unseen = torch.tensor([[False, True]])
    rest = torch.log1p(-rho[:, 1]) + torch.from_numpy(np.array([
        stats.norm(float(family.inner.means[k, 1]), float(family.inner.covariances[k, 1, 1].sqrt())).logpdf(-1.0)  # type: ignore[union-attr, index]
        for k in range(2)]))  # fmt: skip
    torch.testing.assert_close(family.log_prob(there, unseen)[0], rest, atol=1e-9, rtol=0)
    drawn = family.draw(Streams(3, 20_000), torch.zeros(20_000, dtype=torch.int64)).isnan().double().mean(0)
    np.testing.assert_allclose(drawn, rho[0], atol=0.015)


def mixed(members: int) -> Product:
    return Product([
        ([4, 0], Histogram(members, [CITY, Field("x", "real")], bins=6)), ([1], Bernoulli(members, (1,))),
        ([3], Optional(Discretised(members, [INTEGER]))), ([2, 5], Multinomial(members, (2,))),
    ])  # fmt: skip


COLUMNS = ("real", "bit", "count", "whole", "code", "count")


def test_a_product_is_the_sum_of_its_parts():
    family, x, r = mixed(3), rows(150, *COLUMNS), weights(150, 3)
    x[::7, 3] = math.nan
    family.initialise(x, r)
    family.maximise(family.expect(x, r))
    parts = [f.log_prob(x[:, c]) for c, f in family]
    torch.testing.assert_close(family.log_prob(x), torch.stack(parts).sum(0), atol=1e-12, rtol=0)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    parts = [f.log_prob(x[:, c], observed[:, c]) for c, f in family]
    torch.testing.assert_close(family.log_prob(x, observed), torch.stack(parts).sum(0), atol=1e-12, rtol=0)
    own = slice(1, 2)
    torch.testing.assert_close(family.density(own)(x, None), family.log_prob(x)[:, own], atol=1e-12, rtol=0)
    stats_ = family.expect(x, r[:, own], own)
    for name, value in family.expect(x, r * torch.tensor([0.0, 1.0, 0.0])).items():
        torch.testing.assert_close(stats_[name], value, atol=1e-9, rtol=0)


FAMILIES = {
    "bernoulli": (lambda k: Bernoulli(k, (2,), 0.5), ("bit", "bit")),
    "multinomial": (lambda k: Multinomial(k, (2,), 0.5), ("count", "count")),
    "rounded": (lambda k: Discretised(k, [INTEGER, BOUNDED]), ("whole", "level")),
    "histogram": (lambda k: Histogram(k, [CITY, INTEGER], bins=5), ("code", "whole")),
    "optional": (lambda k: Optional(Discretised(k, [INTEGER])), ("whole",)),
    "product": (mixed, COLUMNS),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_and_completions_follow_log_prob(name: str, evidence):
    """Mean of -log p of draws against draws of another seed scored as data: both estimate the entropy; completions of
    half-observed draws are distributed as draws are, so that they have the same mean log p too."""
    make, columns = FAMILIES[name]
    family: Family = make(2)
    x = rows(400, *columns)
    if name == "optional":
        x[::5] = math.nan
    r = weights(400, 2)
    family.initialise(x, r)
    family.maximise(family.expect(x, r))
    n = 4000
    which = torch.zeros(n, dtype=torch.int64)
    drawn = family.draw(Streams(1, n), which)
    again = family.draw(Streams(2, n), which)
    observed = Streams(4, n).uniform(*family.event) < 0.5
    done = family.complete(Streams(5, n), again, observed, which)
    kept = (done == again) | (done.isnan() & again.isnan()) | ~observed
    assert bool(kept.all())
    first, second, third = (family.log_prob(t)[:, 0] for t in (drawn, again, done))
    p = min(stats.ks_2samp(first, second).pvalue, stats.ks_2samp(second, third).pvalue)
    for c in range(len(columns)):
        a, b = (t.reshape(n, -1)[:, c].nan_to_num(-99.0) for t in (drawn, done))
        p = min(p, stats.ks_2samp(a, b).pvalue)
    evidence(
        id="TR-13", system=f"Family: {name}", claim="draws and completions have one distribution",
        reference="scipy.stats.ks_2samp of log p and of columns", reached=p, tolerance=1e-3, unit="p-value",
        at_least=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["bernoulli", "rounded", "histogram", "multinomial"])
def test_draws_have_the_probabilities_of_log_prob(name: str):
    """Chi-squared of the counts of every frequent value against n p(x)."""
    make, columns = FAMILIES[name]
    family: Family = make(1)
    x = rows(400, *columns)
    one = torch.ones(400, 1, dtype=torch.float64)
    family.initialise(x, one)
    family.maximise(family.expect(x, one))
    n = 20_000
    drawn = family.draw(Streams(7, n), torch.zeros(n, dtype=torch.int64)).nan_to_num(-99.0)
    value, count = drawn.unique(dim=0, return_counts=True)
    p = family.log_prob(torch.where(value == -99.0, math.nan, value))[:, 0].exp()
    often = n * p > 20
    seen, want = count[often].numpy(), (n * p[often]).numpy()
    seen, want = np.append(seen, n - seen.sum()), np.append(want, n - want.sum())
    assert want[-1] > -1e-6 and often.sum() > 3
    if want[-1] < 5:
        seen, want = seen[:-1], want[:-1] * seen[:-1].sum() / want[:-1].sum()
    assert stats.chisquare(seen, want).pvalue > 1e-3


def test_shaped_pixels():
    family = Shaped(Histogram(2, [Field(str(i), "grid", levels=4, low=0.0, high=3.0) for i in range(6)]), (1, 2, 3),
                    torch.uint8)  # fmt: skip
    x = torch.randint(0, 4, (50, 1, 2, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    family.initialise(x, weights(50, 2))
    drawn = family.draw(Streams(0, 5), torch.tensor([0, 1, 0, 1, 1]))
    assert drawn.dtype == torch.uint8 and drawn.shape == (5, 1, 2, 3)
    torch.testing.assert_close(family.log_prob(x), family.inner.log_prob(x.reshape(50, 6)), atol=0, rtol=0)
    assert family.fill(x, torch.zeros_like(x, dtype=torch.bool)).shape == (50, 2, 1, 2, 3)


def test_histogram_means():
    """E[x | k] of a histogram with tails, against the mean of many draws."""
    fields = [Field("x", "real"), INTEGER, Field("short", "grid", low=0.0), CITY]
    family = Histogram(1, fields, bins=5)
    x = torch.cat((rows(60, "real", "whole"), rows(60, "count", "code")), 1)
    family.initialise(x, torch.ones(60, 1, dtype=torch.float64))
    drawn = family.draw(Streams(0, 40_000), torch.zeros(40_000, dtype=torch.int64))
    mean = drawn[:, :3].mean(0)
    error = drawn[:, :3].std(0) / 200
    assert bool(((family.means()[0, :3] - mean).abs() < 4 * error).all())
    code = drawn[:, 3][~drawn[:, 3].isnan()].long()
    assert int(family.means()[0, 3]) == int(torch.bincount(code).argmax())


# ---- refusals ----


def test_refusals():
    one = torch.ones(1, 1)
    with pytest.raises(DataError, match=r"holds 2\.0 in entry 1"):
        Bernoulli(1, (2,)).expect(torch.tensor([[0.0, 2.0]]), one)
    with pytest.raises(DataError, match="not a count"):
        Multinomial(1, (2,)).expect(torch.tensor([[1.0, 0.5]]), one)
    with pytest.raises(DataError, match=r"label 0\.5"):
        Label(2, missing=False).expect(torch.tensor([[0.5]]), torch.ones(1, 2))
    assert Bernoulli(1, (2,)).log_prob(torch.tensor([[0.0, 0.5]])).item() == -math.inf
    assert Multinomial(1, (2,)).log_prob(torch.tensor([[-1.0, 0.5]])).item() == -math.inf
    with pytest.raises(ConfigError, match="alpha=-1"):
        Bernoulli(1, (2,), alpha=-1.0)
    with pytest.raises(ConfigError, match=r"columns \[0, 0\]"):
        Product([([0], Bernoulli(1, (1,))), ([0], Bernoulli(1, (1,)))])
    with pytest.raises(ConfigError, match="members"):
        Product([([0], Bernoulli(1, (1,))), ([1], Bernoulli(2, (1,)))])
    with pytest.raises(ConfigError, match="not grids"):
        Discretised(1, [Field("x", "real")])
