"""Gaussians with unknown entries against scipy's marginals and textbook conditional moments; priors likewise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from protea.distributions.gaussian import Gaussian
from protea.distributions.priors import NormalInverseWishart
from protea.errors import ConfigError, DataError
from protea.rng import Streams

KINDS = ("full", "tied", "diag", "spherical")


def family(kind: str, k: int = 3, d: int = 4, prior: NormalInverseWishart | None = None) -> Gaussian:
    rng = np.random.default_rng(1)
    made = Gaussian(k, (d,), kind, prior=prior)
    made.means.copy_(torch.from_numpy(rng.normal(size=(k, d))))
    a = rng.normal(size=(k, d, 2 * d))
    full = a @ a.transpose(0, 2, 1) / d
    some = {"full": full, "tied": full[0], "diag": np.diagonal(full, axis1=1, axis2=2), "spherical": full[:, 0, 0]}
    made.covariances = torch.from_numpy(some[kind].copy())
    made.origin.fill_(0.3)
    return made


def dense(made: Gaussian) -> np.ndarray:
    return made.kind.dense(made.scale, made.members, made.dim).numpy()


def holes(n: int = 60, d: int = 4) -> np.ndarray:
    rng = np.random.default_rng(2)
    x = 2 * rng.normal(size=(n, d))
    x[rng.random(size=x.shape) < 0.4] = np.nan
    x[0], x[1] = np.nan, 1.0
    return x


def moments(x: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """log p(x_o), E[x | x_o] and Cov[x | x_o] of one row under one Gaussian."""
    o, u = ~np.isnan(x), np.isnan(x)
    mean, cov = np.where(o, x, mu), np.zeros_like(sigma)
    if not o.any():
        return 0.0, mu, sigma
    gain = sigma[np.ix_(u, o)] @ np.linalg.inv(sigma[np.ix_(o, o)])
    mean[u] = mu[u] + gain @ (x[o] - mu[o])
    cov[np.ix_(u, u)] = sigma[np.ix_(u, u)] - gain @ sigma[np.ix_(o, u)]
    return stats.multivariate_normal(mu[o], sigma[np.ix_(o, o)]).logpdf(x[o]), mean, cov


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_entries_are_integrated_out(kind: str, evidence):
    made, x = family(kind), holes()
    r = np.random.default_rng(3).random((len(x), 3))
    rows = [[moments(row, mu, sigma) for mu, sigma in zip(made.means.numpy(), dense(made))] for row in x]
    log_p = made.log_prob(torch.from_numpy(x)).numpy()
    worst = np.abs(log_p - np.array([[m[0] for m in row] for row in rows])).max()
    fill = made.fill(torch.from_numpy(x), torch.ones(x.shape, dtype=torch.bool)).numpy()
    worst = max(worst, np.abs(fill - np.array([[m[1] for m in row] for row in rows])).max())
    got = made.expect(torch.from_numpy(x), torch.from_numpy(r))
    about = [[(m[1] - 0.3, m[2]) for m in row] for row in rows]
    s1 = np.array([sum(r[b, k] * about[b][k][0] for b in range(len(x))) for k in range(3)])
    s2 = np.array([sum(r[b, k] * (np.outer(about[b][k][0], about[b][k][0]) + about[b][k][1]) for b in range(len(x)))
                   for k in range(3)])  # fmt: skip
    packed = {"full": s2, "tied": s2.sum(0), "diag": np.diagonal(s2, axis1=1, axis2=2),
              "spherical": np.trace(s2, axis1=1, axis2=2)}[kind]  # fmt: skip
    worst = max(worst, np.abs(got["s1"].numpy() - s1).max(), np.abs(got["s2"].numpy() - packed).max())
    evidence(
        id="TR-08", system="Gaussians with unknown entries", claim=f"{kind}: log p(x_o), E[x | x_o] and E[x x^T | x_o]",
        reference="scipy.stats.multivariate_normal and the conditional moments, row by row", reached=worst,
        tolerance=1e-9, unit="max abs",
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_explicit_mask_is_the_same_as_nan(kind: str):
    made, x = family(kind), torch.from_numpy(holes())
    known = ~x.isnan()
    filled = torch.where(known, x, 7.0)
    assert torch.equal(made.log_prob(x), made.log_prob(filled, known))
    part = made.expect(x, torch.ones(len(x), 2, dtype=torch.float64), slice(1, 3))
    assert float(part["n"][0]) == 0 and float(part["s1"][0].abs().sum()) == 0 and float(part["n"][1]) == len(x)


def test_gradients_of_marginals():
    made = family("full")
    for p in made.parameters():
        p.requires_grad_(True)
    made.log_prob(torch.from_numpy(holes())).sum().backward()
    step = 1e-6
    grad = made.means.grad
    assert grad is not None
    with torch.no_grad():
        before = made.log_prob(torch.from_numpy(holes())).sum()
        made.means[1, 2] += step
        after = made.log_prob(torch.from_numpy(holes())).sum()
    assert float((after - before) / step) == pytest.approx(float(grad[1, 2]), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_completed_draws_have_the_conditional_moments(kind: str):
    made = family(kind)
    row = np.array([np.nan, 0.5, np.nan, -1.0])
    x, n = torch.from_numpy(row).expand(20_000, -1), 20_000
    drawn = made.complete(Streams(0, n), x, ~x.isnan(), torch.ones(n, dtype=torch.int64)).numpy()
    _, mean, cov = moments(row, made.means[1].numpy(), dense(made)[1])
    assert (drawn[:, [1, 3]] == row[[1, 3]]).all()
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * np.sqrt(cov.max() / n))
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=0.05 * cov.max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_maximiser_under_a_prior(kind: str, evidence):
    """For full covariances the textbook's formula; for all of them no neighbour has a higher posterior (scipy)."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(9, 3)) @ rng.normal(size=(3, 3))
    a = rng.normal(size=(3, 6))
    m, psi, kappa, nu = rng.normal(size=3), a @ a.T, 0.7, 6.5
    prior = NormalInverseWishart(3, kappa, nu, torch.from_numpy(m), torch.from_numpy(psi))
    made = Gaussian(1, (3,), kind, prior=prior)
    made.origin.fill_(0.2)
    made.maximise(made.expect(torch.from_numpy(x), torch.ones(9, 1, dtype=torch.float64)))

    def posterior(mu: np.ndarray, sigma: np.ndarray) -> float:
        normal = stats.multivariate_normal
        if kind in ("full", "tied"):
            before = stats.invwishart(nu, psi).logpdf(sigma)
        elif kind == "diag":
            before = sum(
                stats.invgamma(nu / 2, scale=p / 2).logpdf(s) for p, s in zip(psi.diagonal(), sigma.diagonal())
            )
        else:
            before = stats.invgamma(nu / 2, scale=psi.diagonal().mean() / 2).logpdf(sigma[0, 0])
        return normal(mu, sigma).logpdf(x).sum() + normal(m, sigma / kappa).logpdf(mu) + before

    mu, sigma = made.means[0].numpy(), dense(made)[0]
    best = posterior(mu, sigma)
    ours = float(made.log_prob(torch.from_numpy(x)).sum() + made.log_prior())
    worst = abs(ours - best)
    for _ in range(200):
        a = 0.02 * rng.normal(size=(3, 3))
        tilt = {"full": a, "tied": a, "diag": np.diag(a.diagonal()), "spherical": a[0, 0] * np.eye(3)}[kind]
        move = np.eye(3) + tilt
        assert posterior(mu + 0.02 * rng.normal(size=3), move @ sigma @ move.T) <= best + 1e-9
    if kind in ("full", "tied"):
        xbar = x.mean(0)
        want = psi + (x - xbar).T @ (x - xbar) + kappa * 9 / (kappa + 9) * np.outer(xbar - m, xbar - m)
        worst = max(worst, np.abs(sigma - want / (nu + 3 + 2 + 9)).max(),
                    np.abs(mu - (kappa * m + 9 * xbar) / (kappa + 9)).max())  # fmt: skip
    evidence(
        id="TR-09", system="Gaussian mixture", claim=f"{kind}: MAP and density, normal-inverse-Wishart prior",
        reference="Gelman et al. section 3.6; scipy.stats.invwishart, invgamma", reached=worst, tolerance=1e-9,
        unit="max abs",
    )  # fmt: skip


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="full"):
        Gaussian(2, (3,), "fulll")
    with pytest.raises(ConfigError):
        Gaussian(0, (3,))
    with pytest.raises(DataError, match="positive definite"):
        family("full").covariances = torch.ones(3, 4, 4)
    with pytest.raises(ConfigError, match="improper"):
        NormalInverseWishart(3, nu=1.0)
