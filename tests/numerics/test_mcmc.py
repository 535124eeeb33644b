"""Markov chains on R^D against known targets, and their diagnostics against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from protea.errors import DataError
from protea.rng import Streams
from protea.samplers.diagnostics import ess, rank_normalised, rhat
from protea.samplers.mcmc import begin, hamiltonian, langevin, metropolis

KERNELS = {
    "metropolis": lambda f, c, rng: metropolis(f, c, rng, 1.5),
    "langevin": lambda f, c, rng: langevin(f, c, rng, 0.8),
    "hamiltonian": lambda f, c, rng: hamiltonian(f, c, rng, 0.35, 5),
}


def skewed(x: torch.Tensor) -> torch.Tensor:
    """log f of a standard Gumbel in the first place and, given it, a Gaussian in the second."""
    a, b = x[:, 0], x[:, 1]
    return -a - torch.exp(-a) - 0.5 * (b - 0.5 * a).square()


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_leaves_the_target_invariant(name: str) -> None:
    """Exact draws stay exact draws: Kolmogorov-Smirnov after a few steps, in both places."""
    n = 20_000
    u = Streams(0, n).uniform(1, dtype=torch.float64)[:, 0]
    a = -torch.log(-torch.log(u))
    x = torch.stack((a, 0.5 * a + Streams(1, n).normal(1, dtype=torch.float64)[:, 0]), 1)
    chains, rng = begin(skewed, x), Streams(2, n)
    for _ in range(5):
        chains = KERNELS[name](skewed, chains, rng)
    rate = float(chains.accepted.double().mean())
    assert 0.1 < rate < 0.99
    assert stats.kstest(chains.x[:, 0].numpy(), "gumbel_r").pvalue > 1e-4
    assert stats.kstest((chains.x[:, 1] - 0.5 * chains.x[:, 0]).numpy(), "norm").pvalue > 1e-4
    assert not bool((chains.x == x).all(1).all())


@pytest.mark.parametrize("name", KERNELS)
def test_moves_balance_in_detail(name: str) -> None:
    """In equilibrium as many chains go from one half of the plane to the other as come back."""
    n = 40_000
    u = Streams(3, n).uniform(1, dtype=torch.float64)[:, 0]
    a = -torch.log(-torch.log(u))
    x = torch.stack((a, 0.5 * a + Streams(4, n).normal(1, dtype=torch.float64)[:, 0]), 1)
    after = KERNELS[name](skewed, begin(skewed, x), Streams(5, n)).x
    there = int(((x[:, 0] < 0) & (after[:, 0] > 1)).sum())
    back = int(((x[:, 0] > 1) & (after[:, 0] < 0)).sum())
    assert there + back > 50 and stats.binomtest(there, there + back, 0.5).pvalue > 1e-4


@pytest.mark.parametrize("name", KERNELS)
def test_chains_find_a_correlated_gaussian(name: str) -> None:
    precision = torch.tensor([[2.0, -1.2], [-1.2, 1.5]]).double()

    def log_f(x: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((x @ precision) * x).sum(1)

    chains, rng, draws = begin(log_f, 5 * torch.ones(50, 2).double()), Streams(0, 50), []
    for _ in range(400):
        chains = KERNELS[name](log_f, chains, rng)
        draws.append(chains.x)
    x = torch.stack(draws[100:])
    assert max(rhat(x[..., 0]), rhat(x[..., 1])) < 1.05
    error = 4 / math.sqrt(min(ess(x[..., i] ** 2) for i in (0, 1)))  # what the variance depends on
    assert torch.allclose(torch.cov(x.reshape(-1, 2).T), torch.linalg.inv(precision), atol=2 * error)


def test_a_chain_does_not_depend_on_its_batch() -> None:
    log_f = lambda x: -0.5 * x.square().sum(1)  # noqa: E731
    x = Streams(0, 8).normal(3, dtype=torch.float64)
    for kernel in KERNELS.values():
        whole = kernel(log_f, begin(log_f, x), Streams(7, 8)).x
        assert torch.allclose(kernel(log_f, begin(log_f, x[5:6]), Streams(7, [5])).x, whole[5:6], rtol=0, atol=1e-12)


def test_effective_size_of_an_autoregression() -> None:
    """AR(1) of coefficient phi: ESS / draws = (1 - phi) / (1 + phi)."""
    phi, n, m = 0.8, 5000, 8
    z = Streams(1, m).normal(n, dtype=torch.float64).T
    x = torch.zeros(n, m, dtype=torch.float64)
    x[0] = z[0] / math.sqrt(1 - phi**2)
    for t in range(1, n):
        x[t] = phi * x[t - 1] + z[t]
    assert ess(x) == pytest.approx(n * m * (1 - phi) / (1 + phi), rel=0.12)
    assert rhat(x) < 1.01


def test_rhat_sees_drift_shift_and_spread() -> None:
    z = Streams(2, 4).normal(1000, dtype=torch.float64).T
    assert rhat(z) < 1.01
    assert rhat(z + torch.tensor([0.0, 0, 0, 1.0])) > 1.1  # one chain elsewhere
    assert rhat(z + torch.linspace(0, 2, 1000, dtype=torch.float64)[:, None]) > 1.1  # all drift: only halves disagree
    assert rhat(z * torch.tensor([1.0, 1, 1, 4.0])) > 1.05  # one chain wider: only folding sees it
    assert rhat(torch.ones(10, 2)) == 1.0
    with pytest.raises(DataError):
        rhat(torch.zeros(3, 2))
    with pytest.raises(DataError):
        ess(torch.full((10, 2), math.nan))


def test_rhat_of_normal_draws_is_the_textbook_formula() -> None:
    """Gelman & Rubin's formula on scipy's normal scores of the split chains."""
    x = Streams(6, 3).normal(200, dtype=torch.float64).T + torch.tensor([0.0, 0.1, 0.3])
    halves = torch.cat((x[:100], x[100:]), 1)
    ranks = torch.from_numpy(stats.rankdata(halves.numpy())).reshape(halves.shape)
    z = torch.from_numpy(stats.norm.ppf((ranks - 0.375) / (halves.numel() + 0.25)))
    assert torch.allclose(rank_normalised(halves), z, rtol=0, atol=1e-12)
    w, b = z.var(0).mean(), 100 * z.mean(0).var()
    want = math.sqrt(float((99 / 100 * w + b / 100) / w))
    assert rhat(x) == pytest.approx(want, abs=1e-12)
