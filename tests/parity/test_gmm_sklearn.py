"""The Gaussian mixture follows scikit-learn's iterates, scipy's densities and the closed form of conditioning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import mixture

from protea.models.classical.gmm import GaussianMixture
from protea.space import Rows

KINDS = ("full", "tied", "diag", "spherical")


def blobs(seed: int = 0, d: int = 4, k: int = 3, n: int = 240) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=(n // k, d)) @ rng.normal(size=(d, d)) + 3 * rng.normal(size=d)
                           for _ in range(k)])  # fmt: skip


def rows(x: np.ndarray, y: torch.Tensor | None = None) -> Rows:
    return Rows(torch.from_numpy(x), y, torch.arange(len(x)))


def covariances(model: GaussianMixture) -> np.ndarray:
    scale = model.scale.numpy()
    return scale @ np.swapaxes(scale, -1, -2) if model.kind.name in ("full", "tied") else scale**2


@pytest.mark.parametrize("kind", KINDS)
def test_same_start_same_iterates(kind: str, evidence):
    x = blobs()
    model = GaussianMixture((4,), 3, kind)
    model.initialise(rows(x))
    cov = covariances(model)
    start = mixture.GaussianMixture(
        3, covariance_type=kind, tol=0, max_iter=10, reg_covar=0.0, weights_init=model.log_weights[0].exp().numpy(),
        means_init=model.means[0].numpy().copy(),
        precisions_init=np.linalg.inv(cov) if kind in ("full", "tied") else 1 / cov,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten steps do not converge, on purpose
        sk = start.fit(x)
    assert sk.n_iter_ == 10
    data = torch.from_numpy(x)
    for _ in range(10):
        model.maximise(model.expect(data))
    errors = {
        "means": np.abs(model.means[0].numpy() - sk.means_).max(),
        "weights": np.abs(model.log_weights[0].exp().numpy() - sk.weights_).max(),
        "covariances": np.abs(covariances(model) - sk.covariances_).max() / np.abs(sk.covariances_).max(),
        "log_prob": np.abs(model.log_prob(data).numpy() - sk.score_samples(x)).max(),
        "responsibilities": np.abs(model.responsibilities(data)[:, 0].numpy() - sk.predict_proba(x)).max(),
        "bic": abs(model.bic(data) - sk.bic(x)) / abs(sk.bic(x)),
        "aic": abs(model.aic(data) - sk.aic(x)) / abs(sk.aic(x)),
    }
    evidence(
        id="TR-07", system="Gaussian mixture", claim=f"{kind}: parameters and scores after ten EM steps",
        reference="sklearn.mixture.GaussianMixture", reached=max(errors.values()), tolerance=1e-8, unit="max abs",
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_is_scipys(kind: str):
    x = blobs(1)
    y = torch.arange(len(x)) % 2
    model = GaussianMixture((2, 2), 2, kind, classes=2)
    model.initialise(Rows(torch.from_numpy(x).reshape(-1, 2, 2), y, torch.arange(len(x))))
    sigma = model.kind.dense(model.scale, 4, 4).numpy().reshape(2, 2, 4, 4)
    by_class = np.stack([
        np.logaddexp.reduce([
            float(model.log_weights[c, k]) + stats.multivariate_normal(model.means[c, k].numpy(), sigma[c, k]).logpdf(x)
            for k in range(2)
        ])
        for c in range(2)
    ])  # fmt: skip
    data = torch.from_numpy(x).reshape(-1, 2, 2)
    np.testing.assert_allclose(model.log_prob(data, y).numpy(), by_class[y.numpy(), np.arange(len(x))], atol=1e-9)
    marginal = np.logaddexp.reduce(by_class + np.log([[0.5], [0.5]]))
    np.testing.assert_allclose(model.log_prob(data).numpy(), marginal, atol=1e-9)
    unknown = torch.where(torch.arange(len(x)) % 3 == 0, -1, y)
    want = np.where(unknown.numpy() < 0, marginal, by_class[y.numpy(), np.arange(len(x))])
    np.testing.assert_allclose(model.log_prob(data, unknown).numpy(), want, atol=1e-9)


def test_classes_learn_as_separate_mixtures():
    x = blobs(2)
    y = torch.from_numpy((x[:, 0] > np.median(x[:, 0])).astype(np.int64))
    model = GaussianMixture((4,), 2, "full", classes=2)
    model.initialise(rows(x, y))
    alone = []
    for c in range(2):
        one = GaussianMixture((4,), 2, "full")
        one.means[0], one.log_weights[0], one.scale[:] = (
            model.means[c],
            model.log_weights[c],
            model.scale[2 * c : 2 * c + 2],
        )
        alone.append(one)
    for _ in range(5):
        model.maximise(model.expect(torch.from_numpy(x), y))
        for c, one in enumerate(alone):
            one.maximise(one.expect(torch.from_numpy(x[(y == c).numpy()])))
    for c, one in enumerate(alone):
        assert torch.allclose(model.means[c], one.means[0], atol=1e-9)
        assert torch.allclose(model.scale[2 * c : 2 * c + 2], one.scale, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_given_is_the_ratio_of_joint_and_marginal(kind: str, evidence):
    """p(x_u | x_o) = p(x) / p(x_o), with p(x_o) a mixture of marginal Gaussians from scipy."""
    x = blobs(3)
    model = GaussianMixture((4,), 3, kind)
    model.initialise(rows(x))
    data = torch.from_numpy(x[:50])
    observed = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    got = model.given(data, observed).log_prob(data)
    sigma = model.kind.dense(model.scale, 3, 4).numpy()
    weights = model.log_weights[0].numpy()
    want = []
    for row, mask, joint in zip(x[:50], observed.numpy(), model.log_prob(data).numpy()):
        terms = [
            w + (stats.multivariate_normal(m[mask], s[np.ix_(mask, mask)]).logpdf(row[mask]) if mask.any() else 0.0)
            for w, m, s in zip(weights, model.means[0].numpy(), sigma)
        ]
        want.append(joint - np.logaddexp.reduce(terms))
    evidence(
        id="TR-16", system="Gaussian mixture", claim=f"{kind}: conditional density p(x_u | x_o)",
        reference="scipy.stats.multivariate_normal, joint / marginal",
        reached=np.abs(got.numpy() - np.array(want)).max(), tolerance=1e-8, unit="nats",
    )  # fmt: skip


def test_given_draws_follow_the_closed_form():
    """One Gaussian: the mean and covariance of x_u given x_o."""
    rng = np.random.default_rng(4)
    a = rng.normal(size=(3, 3))
    sigma, mu = a @ a.T + 0.1 * np.eye(3), rng.normal(size=3)
    model = GaussianMixture((3,), 1, "full")
    model.means[0, 0], model.scale[0] = torch.from_numpy(mu), torch.linalg.cholesky(torch.from_numpy(sigma))
    x = torch.tensor([1.5, float("nan"), float("nan")], dtype=torch.float64)
    drawn = model.given(x, torch.tensor([True, False, False])).sample(20_000).numpy()
    assert (drawn[:, 0] == 1.5).all()
    gain = sigma[1:, :1] / sigma[0, 0]
    np.testing.assert_allclose(drawn[:, 1:].mean(0), mu[1:] + gain[:, 0] * (1.5 - mu[0]), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn[:, 1:].T), sigma[1:, 1:] - gain @ sigma[:1, 1:], atol=0.1)


def test_bayes_classifier_is_that_of_the_densities():
    x = blobs(5)
    y = torch.arange(len(x)) * 3 // len(x)
    model = GaussianMixture((4,), 2, "tied", classes=3)
    model.initialise(rows(x, y))
    joint = torch.stack([model.log_prob(torch.from_numpy(x), torch.full((len(x),), c)) for c in range(3)], 1)
    want = torch.softmax(joint + model.class_prior.log(), 1)
    assert torch.allclose(model.responsibilities(torch.from_numpy(x)).sum(2), want, atol=1e-12)
