"""A softmax layer that is a Gaussian mixture: Bayes' rule exactly, and rows without labels teach the classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from protea.errors import ConfigError, DataError
from protea.inference.coupled import Coupled, GaussianSoftmax, fit_coupled
from protea.rng import Streams, permutation

SYSTEM = "Gaussian-coupled softmax"


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    order = permutation(len(bunch.target), 0, "coupled")
    x = torch.from_numpy(bunch.data).float()[order]
    return (x - x.mean()) / x.std(), torch.from_numpy(bunch.target)[order].long()


@pytest.fixture(scope="module")
def moments() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mu, root, pi = rng.normal(size=(4, 6)), rng.normal(size=(6, 6)), rng.dirichlet(np.ones(4))
    return mu, root @ root.T + 0.3 * np.eye(6), pi, 2 * rng.normal(size=(50, 6))


def test_the_softmax_is_bayes_rule_of_the_gaussians(moments, evidence):
    mu, sigma, pi, z = moments
    head = GaussianSoftmax.of(*map(torch.from_numpy, (mu, sigma, pi)))
    joint = np.stack([np.log(p) + multivariate_normal(m, sigma).logpdf(z) for m, p in zip(mu, pi)], 1)
    evidence_z = np.logaddexp.reduce(joint, 1)
    rows = torch.from_numpy(z)
    w, b = head.linear()
    gaps = [
        head.log_joint(rows) - torch.from_numpy(joint),
        head.log_prob(rows) - torch.from_numpy(evidence_z),
        head.log_posterior(rows) - torch.from_numpy(joint - evidence_z[:, None]),
        w - torch.from_numpy(np.linalg.solve(sigma, mu.T).T),
        b - torch.from_numpy(np.log(pi) - np.einsum("kd,kd->k", mu, np.linalg.solve(sigma, mu.T).T) / 2),
    ]
    evidence(
        id="TR-20", system=SYSTEM, claim="log p(z, y), log p(z), log p(y | z), W and b of four Gaussians in R^6",
        reference="scipy.stats.multivariate_normal, Bayes' rule",
        reached=max(float(g.detach().abs().max()) for g in gaps), tolerance=1e-8, unit="max abs",
    )  # fmt: skip


def test_the_softmax_is_linear_discriminant_analysis(digits, evidence):
    z = PCA(20, random_state=0).fit_transform(digits[0].double().numpy())
    y = digits[1].numpy()
    peer = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(z[:1000], y[:1000])
    head = GaussianSoftmax.of(*(torch.from_numpy(v) for v in (peer.means_, peer.covariance_, peer.priors_)))
    with torch.no_grad():
        got = head.log_posterior(torch.from_numpy(z[1000:])).exp().numpy()
    evidence(
        id="TR-20", system=SYSTEM, claim="p(y | z) of 797 digits in 20 principal components",
        reference="sklearn LinearDiscriminantAnalysis", reached=float(np.abs(got - peer.predict_proba(z[1000:])).max()),
        tolerance=1e-8, unit="max abs",
    )  # fmt: skip


def test_rows_without_labels_move_the_classifier_through_the_density(moments):
    """The gradient of log p(z) reaches every parameter of the softmax, and is that of finite differences."""
    head = GaussianSoftmax.of(*map(torch.from_numpy, moments[:3]))
    z = torch.from_numpy(moments[3])
    head.log_prob(z).sum().backward()
    for p in (head.a, head.mu, head.below, head.log_diagonal):
        assert p.grad is not None
        place = (0,) * (p.ndim - 1) + (0,) if p is not head.below else (1, 0)
        with torch.no_grad():
            ends = []
            for step in (1e-5, -2e-5):
                p[place] += step
                ends.append(float(head.log_prob(z).sum()))
            p[place] += 1e-5
        assert abs(float(p.grad[place])) > 1e-3
        assert float(p.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_the_bound_is_above_the_nats_of_a_linear_decoder():
    """With g linear and one class, x is Gaussian and log p(x) known; U must not be below it on average."""
    torch.manual_seed(1)
    net = Coupled(5, 1, 3, 8).double().requires_grad_(False)
    net.head = GaussianSoftmax.of(torch.randn(1, 3).double(), torch.eye(3).double() * 0.7, torch.ones(1).double())
    net.g = torch.nn.Linear(3, 5).double()  # type: ignore[assignment]
    net.requires_grad_(False)
    a, c = net.g.weight.numpy(), net.g.bias.numpy()
    density = multivariate_normal(a @ net.head.mu[0].numpy() + c, 0.7 * a @ a.T + np.eye(5))  # type: ignore[operator]
    x = torch.from_numpy(density.rvs(4, random_state=0))
    u = torch.stack([net.bound(x, Streams(i, 4)) for i in range(400)])
    assert bool((u.mean(0) - 4 * u.std(0) / 20 > -torch.from_numpy(density.logpdf(x.numpy()))).all())


def test_features_of_a_draw_have_the_moments_of_their_class(moments):
    """40,000 draws, read back by the identity: mean and covariance within five standard errors."""
    mu, sigma, pi, _ = moments
    net = Coupled(6, 4, 6, 8).double()
    net.head = GaussianSoftmax.of(*map(torch.from_numpy, (mu, sigma, pi)))
    net.g = torch.nn.Identity()  # type: ignore[assignment]
    z = net.draw(torch.full((40_000,), 2), Streams(0, 40_000)).numpy()
    variances = np.diag(sigma)
    assert (np.abs(z.mean(0) - mu[2]) < 5 * np.sqrt(variances / len(z))).all()
    assert (np.abs(np.cov(z.T) - sigma) < 5 * np.sqrt((np.outer(variances, variances) + sigma**2) / len(z))).all()


def test_at_weight_0_rows_without_labels_say_nothing(digits):
    x, y = digits[0][:40], digits[1][:40]
    alone, beside = (fit_coupled(x, y, 10, 0.0, more, steps=20, width=16) for more in (None, digits[0][40:100]))
    assert torch.equal(alone.log_posterior(x), beside.log_posterior(x))
    other = fit_coupled(x, y, 10, 0.1, digits[0][40:100], steps=20, width=16)
    assert not torch.equal(alone.log_posterior(x), other.log_posterior(x))


def test_the_noise_keeps_the_density_of_features_finite(digits):
    """Every row alike is the worst case: features could shrink to a point; Sigma stays above the noise's TAU^2."""
    x = digits[0][:1, 20:26].expand(64, -1).contiguous()
    net = fit_coupled(x, torch.zeros(64, dtype=torch.int64), 2, 1.0, features=3, width=8, steps=400, rate=3e-2)
    sigma = torch.cholesky_inverse(net.head.root())  # of a lower factor R: (R R')^-1
    spread = torch.linalg.eigvalsh(sigma)
    assert 0.15 < float(spread.min()) <= float(spread.max()) < 0.6  # TAU^2 = 0.25


def test_bad_input_is_refused(digits):
    x, y = digits[0][:20], digits[1][:20]
    with pytest.raises(ConfigError, match="weight -1"):
        fit_coupled(x, y, 10, -1.0)
    with pytest.raises(DataError, match="finite"):
        fit_coupled(x / 0, y, 10, 1.0)
    with pytest.raises(DataError, match="labels"):
        fit_coupled(x, y, 5, 1.0)
    with pytest.raises(ConfigError, match="positive definite"):
        GaussianSoftmax.of(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2) / 2)
    with pytest.raises(ConfigError, match="do not fit"):
        GaussianSoftmax.of(torch.zeros(2, 2), torch.eye(3), torch.ones(2) / 2)


@pytest.mark.slow
def test_rows_without_labels_beat_the_softmax_alone(digits, evidence):
    """Five labels a class, 1,200 rows without, three draws. The weight is chosen on 147 validation rows, and the figure
    is that of 400 test rows, which neither a fit nor the choice has seen. Weight 0 is the same network and softmax."""
    validation, test = slice(1250, 1397), slice(1397, 1797)
    weights = (0.0, 0.1, 1.0)
    chosen, judged, peer = torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(3)
    for draw in range(3):
        order = permutation(1250, draw, "draw")
        labels = digits[1][order]
        labelled = torch.cat([order[labels == c][:5] for c in range(10)])
        rest = order[~torch.isin(order, labelled)]
        x, y = digits[0][labelled], digits[1][labelled]
        logistic = LogisticRegression(max_iter=5000).fit(x.numpy(), y.numpy())
        peer[draw] = float(logistic.score(digits[0][test].numpy(), digits[1][test].numpy()))
        for i, weight in enumerate(weights):
            net = fit_coupled(x, y, 10, weight, digits[0][rest], steps=1000, seed=draw)
            for table, part in ((chosen, validation), (judged, test)):
                right = net.log_posterior(digits[0][part]).argmax(1) == digits[1][part]
                table[draw, i] = right.double().mean()
    best = 1 + int(chosen.mean(0)[1:].argmax())
    alone, hybrid = judged[:, 0], judged[:, best]
    evidence(
        id="TR-20", system=SYSTEM,
        claim="digits, 50 labels and 1,200 rows without: least gain in test accuracy of three draws at weight "
        f"{weights[best]:g}, chosen on validation rows (means {hybrid.mean():.3f} and {alone.mean():.3f})",
        reference="the same network at weight 0", reached=float((hybrid - alone).min()), tolerance=0.0,
        unit="accuracy", at_least=True,
    )  # fmt: skip
    evidence(
        id="TR-20", system=SYSTEM,
        claim="digits, 50 labels and 1,200 rows without: gain in test accuracy over a linear softmax of the 50, "
        f"mean of three draws ({hybrid.mean():.3f} and {peer.mean():.3f})",
        reference="sklearn.linear_model.LogisticRegression", reached=float((hybrid - peer).mean()), tolerance=0.0,
        unit="accuracy", at_least=True,
    )  # fmt: skip
