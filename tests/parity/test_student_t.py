"""Student-t members against scipy's multivariate t, its one-dimensional fit, and numerical conditionals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from protea.distributions.gamma import gamma
from protea.distributions.gaussian import Gaussian
from protea.distributions.student_t import StudentT
from protea.models.classical.mixture import Mixture
from protea.rng import Streams
from protea.space import Rows

KINDS = ("full", "tied", "diag", "spherical")


def family(kind: str, k: int = 3, d: int = 3) -> StudentT:
    rng = np.random.default_rng(1)
    made = StudentT(k, (d,), kind)
    made.means.copy_(torch.from_numpy(rng.normal(size=(k, d))))
    a = rng.normal(size=(k, d, 2 * d))
    full = a @ a.transpose(0, 2, 1) / d
    some = {"full": full, "tied": full[0], "diag": np.diagonal(full, axis1=1, axis2=2), "spherical": full[:, 0, 0]}
    made.covariances = torch.from_numpy(some[kind].copy())
    made.nu.copy_(torch.tensor([0.7, 3.0, 40.0])[:k])
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_densities_and_marginals(kind: str, evidence):
    """A marginal of a t is a t of the same degrees of freedom."""
    made = family(kind)
    rng = np.random.default_rng(2)
    x = 3 * rng.normal(size=(40, 3))
    x[rng.random(x.shape) < 0.3] = np.nan
    got = made.log_prob(torch.from_numpy(x)).numpy()
    sigma = made.kind.dense(made.scale, 3, 3).numpy()
    want = np.zeros_like(got)
    for b, row in enumerate(x):
        o = ~np.isnan(row)
        for k in range(3):
            if o.any():
                t = stats.multivariate_t(made.means[k].numpy()[o], sigma[k][np.ix_(o, o)], df=float(made.nu[k]))
                want[b, k] = t.logpdf(row[o])
    evidence(
        id="TR-07", system="Student-t mixture", claim=f"{kind}: log p(x_o), some entries unknown",
        reference="scipy.stats.multivariate_t", reached=np.abs(got - want).max(), tolerance=1e-9, unit="nats",
    )  # fmt: skip


def test_degrees_of_freedom_are_scipys(evidence):
    """One member, one dimension: EM's optimum against scipy's maximum-likelihood fit."""
    x = stats.t(3.0, loc=2.0, scale=0.5).rvs(2000, random_state=0)
    model = Mixture(StudentT(1, (1,), floor=1e-12), 1)
    rows = torch.from_numpy(x)[:, None]
    model.initialise(Rows(rows, None, torch.arange(len(x))))
    for _ in range(300):
        model.maximise(model.expect(rows))
    df, loc, scale = stats.t.fit(x)
    best = stats.t(df, loc, scale).logpdf(x).sum()
    assert float(model.family.nu[0]) == pytest.approx(df, rel=2e-3)  # type: ignore[union-attr]
    evidence(
        id="TR-08", system="Student-t mixture", claim="optimum of location, scale and degrees of freedom, 2,000 draws",
        reference="scipy.stats.t.fit", reached=best - float(model.log_prob(rows).sum()), tolerance=1e-4, unit="nats",
    )  # fmt: skip


def test_gamma_draws_follow_their_distribution():
    for shape in (0.3, 1.0, 2.5, 500.0):
        drawn = gamma(Streams(3, 4000), torch.full((4000,), shape)).numpy()
        assert stats.kstest(drawn, stats.gamma(shape).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_draws_and_completions(kind: str):
    """Draws are scipy's; x_u given x_o is a t of nu + D_o degrees, scaled by (nu + delta_o) / (nu + D_o)."""
    made, n = family(kind), 4000
    which = torch.ones(n, dtype=torch.int64)
    drawn = made.draw(Streams(0, n), which).numpy()
    sigma = made.kind.dense(made.scale, 3, 3).numpy()[1]
    mu, nu = made.means[1].numpy(), 3.0
    for j in range(3):
        assert stats.kstest((drawn[:, j] - mu[j]) / np.sqrt(sigma[j, j]), stats.t(nu).cdf).pvalue > 1e-3
    x = torch.tensor([4.0, np.nan, -2.0], dtype=torch.float64).expand(n, -1)
    done = made.complete(Streams(1, n), x, ~x.isnan(), which).numpy()
    o, u = [0, 2], [1]
    inverse = np.linalg.inv(sigma[np.ix_(o, o)])
    away = np.array([4.0, -2.0]) - mu[o]
    mean = mu[u] + sigma[np.ix_(u, o)] @ inverse @ away
    left = sigma[np.ix_(u, u)] - sigma[np.ix_(u, o)] @ inverse @ sigma[np.ix_(o, u)]
    scale = np.sqrt(left * (nu + away @ inverse @ away) / (nu + 2))[0, 0]
    assert (done[:, o] == [4.0, -2.0]).all()
    assert stats.kstest((done[:, 1] - mean[0]) / scale, stats.t(nu + 2).cdf).pvalue > 1e-3


def test_outliers_do_not_pull(evidence):
    """Two clusters with a tenth of the rows thrown far away: centres stay, where Gaussians' do not."""
    rng = np.random.default_rng(0)
    x = np.concatenate((rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + np.array([8, 0])))
    x[::10] += 60 * rng.normal(size=(40, 2))
    rows = torch.from_numpy(x)
    error = {}
    for name, made in (("t", StudentT(2, (2,))), ("gaussian", Gaussian(2, (2,)))):
        model = Mixture(made, 2)
        model.initialise(Rows(rows, None, torch.arange(400)))
        made.means.copy_(torch.tensor([[0.0, 0], [8, 0]]))
        made.scale.copy_(torch.eye(2).expand(2, 2, 2))
        for _ in range(100):
            model.maximise(model.expect(rows))
        order = made.means[:, 0].argsort()
        error[name] = float((made.means[order] - torch.tensor([[0.0, 0], [8, 0]])).norm(dim=1).max())
    assert error["gaussian"] > 5 * error["t"]
    evidence(
        id="TR-09", system="Student-t mixture", claim="error of centres, a tenth of the rows 60 deviations away",
        reference="the true centres", reached=error["t"], tolerance=0.3, unit="standard deviations",
    )  # fmt: skip
