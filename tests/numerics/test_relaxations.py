"""Relaxations: exact inverses, normalised q, and densities that integrate to one."""

from __future__ import annotations

import math

import pytest
import torch

from protea.rng import Streams
from protea.space import Field
from protea.transforms.quantile import QuantileNormal
from protea.transforms.relaxations import DequantiseImage, RelaxTable, Standardise

FIELDS = (
    Field("age", "grid", low=0, high=99),
    Field("income", "real", missing=True),
    Field("job", "category", levels=5),
    Field("sex", "category", levels=2, missing=True),
    Field("constant", "category", levels=1),
    Field("price", "grid", step=0.01),
    Field("town", "category", levels=40),
)


def table(n: int, seed: int = 0) -> torch.Tensor:
    rng = Streams(seed, n)
    age = torch.floor(rng.uniform(1).double() * 100)
    income = (rng.normal(1).double()).exp() * 1000
    income[rng.uniform(1) < 0.2] = math.nan
    job = rng.categorical(torch.tensor([3.0, 2, 1, 0, 0]).expand(n, 1, 5)).double()
    sex = rng.categorical(torch.zeros(n, 1, 3)).double()
    sex[sex == 2] = math.nan
    town = torch.floor(rng.uniform(1).double() * 40)
    price = torch.round(rng.normal(1).double() * 500) / 100
    return torch.cat((age, income, job, sex, torch.zeros(n, 1).double(), price, town), 1)


def test_table_lower_undoes_lift() -> None:
    x = table(4000)
    relaxation = RelaxTable(FIELDS)
    relaxation.fit(x[:2000])
    v, log_q = relaxation.lift(x, Streams(1, len(x)))
    assert v.shape == (4000, *relaxation.event) == (4000, 3 + 1 + 6 + 5 + 3)
    assert log_q.isfinite().all() and v.isfinite().all()
    back = relaxation.lower(v)
    assert (back.isnan() == x.isnan()).all()
    exact = [0, 2, 3, 4, 5, 6]
    assert torch.allclose(back[:, exact].nan_to_num(-1), x[:, exact].nan_to_num(-1), atol=1e-9)
    assert torch.allclose(back[:, 1].nan_to_num(-1), x[:, 1].nan_to_num(-1), rtol=1e-5)


def test_table_numbers_become_standard_normal() -> None:
    x = table(20_000)
    relaxation = RelaxTable(FIELDS)
    relaxation.fit(x)
    v, _ = relaxation.lift(x, Streams(1, len(x)))
    assert v[:, :3].mean(0).abs().max() < 0.05
    assert (v[:, :3].std(0) - 1).abs().max() < 0.05


def test_importance_weights_of_a_category_average_to_its_probability() -> None:
    """E_q[p(v)/q(v|x)] = P(x): with p the very mixture of q over two codes, each has probability 1/2."""
    relaxation = RelaxTable((Field("c", "category", levels=2),))
    x = torch.zeros(20_000, 1, dtype=torch.float64)
    v, log_q = relaxation.lift(x, Streams(0, len(x)))
    # p(v): N(+-1, 0.25^2) mixture; its mass on the cell v < 0 is 1/2 up to Phi(-4)
    p = 0.5 * (
        torch.distributions.Normal(-1.0, 0.25).log_prob(v).exp()
        + torch.distributions.Normal(1.0, 0.25).log_prob(v).exp()
    )
    estimate = (p[:, 0].double().log() - log_q).exp().mean()
    assert abs(float(estimate) - 0.5) < 2e-3


def test_unused_codes_lower_to_valid_ones() -> None:
    relaxation = RelaxTable(FIELDS)
    relaxation.fit(table(500))
    x = relaxation.lower(3 * Streams(3, 5000).normal(*relaxation.event))
    assert set(x[:, 2].unique().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert set(x[:, 4].unique().tolist()) == {0.0}
    assert set(x[:, 6].unique().tolist()) == set(range(40))
    assert x[:, 0].min() >= 0 and x[:, 0].max() <= 99


@pytest.mark.parametrize("n", [2, 3, 30, 3000])
def test_quantile_map_is_a_bijection_with_the_right_slope(n: int) -> None:
    t = QuantileNormal(2)
    t.fit(Streams(0, n).normal(2, dtype=torch.float64).exp())
    x = torch.linspace(-3, 12, 4001, dtype=torch.float64)[:, None].expand(-1, 2)
    z, log_slope = t(x)
    assert (z.diff(dim=0) > 0).all()
    assert torch.allclose(t.inverse(z), x, atol=1e-8)
    density = (-0.5 * z**2 + log_slope).exp() / math.sqrt(2 * math.pi)
    wide = torch.linspace(-60, 200, 2_000_001, dtype=torch.float64)[:, None].expand(-1, 2)
    z, log_slope = t(wide)
    density = (-0.5 * z**2 + log_slope).exp() / math.sqrt(2 * math.pi)
    if n >= 30:  # smaller sets have tails beyond the window
        assert torch.allclose(torch.trapezoid(density, wide, dim=0), torch.ones(2).double(), atol=2e-3)


def test_constant_and_tied_columns_stay_finite() -> None:
    t = QuantileNormal(3)
    x = torch.stack((torch.zeros(50), torch.tensor([0.0] * 49 + [1.0]), torch.full((50,), math.nan)), 1).double()
    t.fit(x)
    z, log_slope = t(x.nan_to_num(0.0))
    assert z.isfinite().all() and log_slope.isfinite().all()


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_image_dequantisation(levels: int) -> None:
    x = (Streams(0, 2000).uniform(1, 8, 8) * levels).floor().to(torch.uint8)
    relaxation = DequantiseImage((1, 8, 8), levels)
    v, log_q = relaxation.lift(x, Streams(1, 2000))
    assert (relaxation.lower(v) == x).all()
    # a uniform density on [-1, 1]^D must give log2(levels) bits per dimension
    bits = (64 * math.log(2) + log_q) / (64 * math.log(2))
    assert torch.allclose(bits, torch.full_like(bits, math.log2(levels)), atol=1e-3)


def test_standardise_is_exact() -> None:
    x = 5 + 3 * Streams(0, 1000).normal(4, dtype=torch.float64)
    x[:, 3] = 7.0
    relaxation = Standardise((4,))
    relaxation.fit(x)
    v, log_q = relaxation.lift(x, Streams(0, 1000))
    assert relaxation.exact and torch.allclose(relaxation.lower(v), x, atol=1e-5)
    reference = torch.distributions.MultivariateNormal(
        x.mean(0), torch.diag(torch.cat((x[:, :3].var(0, correction=0), torch.ones(1))))
    )
    ours = torch.distributions.Normal(0.0, 1.0).log_prob(v.double()).sum(1) - log_q
    assert torch.allclose(ours, reference.log_prob(x), atol=1e-4)
