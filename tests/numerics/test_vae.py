"""The VAE's bound against linear-Gaussian models, whose likelihood and posterior are known in closed form."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from protea.core import Batch
from protea.errors import ConfigError, NotSupported
from protea.models.latent.vae import LOWEST, VAE, VAEConfig, vae
from protea.objectives.variational import kl_to_standard_normal, negative_elbo
from protea.rng import Streams
from protea.space import Rows


class Affine(nn.Module):
    """weight x + bias, and constants beside it."""

    def __init__(self, weight, bias, beside=None):
        super().__init__()
        self.weight, self.bias, self.beside = weight, bias, beside

    def forward(self, x, y=None):
        out = x.flatten(1) @ self.weight.T + self.bias
        return out if self.beside is None else torch.cat((out, self.beside.expand(len(x), -1)), 1)


@pytest.fixture(scope="module")
def ppca():
    """Probabilistic PCA (Tipping and Bishop 1999) of random data: a VAE with the exact posterior, data, log p.

    W^T W is diagonal in scikit-learn's solution, so the exact posterior is a diagonal Gaussian.
    """
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 6)) @ generator.normal(size=(6, 6)) + 2
    pca = PCA(n_components=3).fit(x)
    noise = pca.noise_variance_
    w = torch.from_numpy(pca.components_.T * np.sqrt(pca.explained_variance_ - noise))
    mean = torch.from_numpy(pca.mean_)
    precision = (w.T @ w + noise * torch.eye(3, dtype=w.dtype)).inverse()
    assert torch.allclose(precision, precision.diagonal().diag(), atol=1e-10)
    log_sigma = 0.5 * (noise * precision.diagonal()).log()

    def model(spread=0.0):
        """With the posterior's log sigma wrong by `spread`."""
        back = precision @ w.T
        net = VAE((6,), 3, Affine(back, -back @ mean, log_sigma + spread), Affine(w, mean)).double()
        with torch.no_grad():  # softplus^-1, since log s = LOWEST + softplus(log_scale - LOWEST)
            wanted = 0.5 * math.log(noise) - LOWEST
            net.log_scale.fill_(LOWEST + math.log(math.expm1(wanted)))
        return net

    return model, torch.from_numpy(x), torch.from_numpy(pca.score_samples(x))


def test_the_bound_with_the_exact_posterior_is_the_likelihood(ppca, evidence):
    model, x, log_p = ppca
    bound = model().log_prob_bound(x, rng=Streams(0, len(x)))
    loss = negative_elbo(model())(Batch(x, None, Streams(0, len(x))))
    evidence(id="VA-01", system="VAE", claim="bound with the exact posterior = log p(x)",
             reference="sklearn.decomposition.PCA.score_samples", reached=(bound - log_p).abs().max().item(),
             tolerance=1e-6, unit="nats")  # fmt: skip
    # The analytic-KL estimate is right in expectation only: the likelihood term is sampled.
    assert abs(float(loss.total) / loss.count + float(log_p.mean())) < 0.2 and loss.count == len(x)


def test_the_elbo_plus_its_gap_is_the_likelihood(ppca, evidence):
    """log p = ELBO + KL(q || posterior), with a q that is wrong by a known amount."""
    model, x, log_p = ppca
    gap = kl_divergence(model(0.3).encode(x), model().encode(x))
    elbo = torch.stack([model(0.3).log_prob_bound(x, rng=Streams(s, len(x))) for s in range(40)]).mean(0)
    reached = (elbo + gap - log_p).mean().abs().item()
    evidence(id="VA-01", system="VAE", claim="ELBO + KL(q || posterior) = log p(x), 300 rows x 40 draws",
             reference="torch.distributions.kl_divergence", reached=reached, tolerance=0.05, unit="nats")  # fmt: skip


def test_the_importance_weighted_bound_tightens(ppca, evidence):
    model, x, log_p = ppca
    wrong = model(0.6)
    means = [
        torch.stack([wrong.log_prob_bound(x, rng=Streams(s, len(x)), k=k).mean() for s in range(2)]).mean().item()
        for k in (1, 4, 16, 64)
    ]
    assert means == sorted(means)
    gap = float(log_p.mean()) - means[-1]
    assert gap > -0.05
    evidence(id="VA-01", system="VAE", claim="importance-weighted bound is monotone in k; gap at k = 64",
             reference="sklearn.decomposition.PCA.score", reached=abs(gap), tolerance=0.05, unit="nats")  # fmt: skip


def test_the_kl_agrees_with_torch_distributions(evidence):
    mu, log_sigma = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    standard = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    theirs = kl_divergence(Independent(Normal(mu, log_sigma.exp()), 1), standard)
    gap = (kl_to_standard_normal(mu, log_sigma) - theirs).abs().max().item()
    evidence(id="VA-02", system="VAE", claim="KL to the standard normal", reference="torch.distributions",
             reached=gap, tolerance=1e-6, unit="nats")  # fmt: skip


@pytest.mark.slow  # importing diffusers takes seconds
def test_the_kl_agrees_with_diffusers(evidence):
    module = pytest.importorskip("diffusers.models.autoencoders.vae")
    mu, log_sigma = torch.randn(5, 4, 1, 1, dtype=torch.float64), torch.randn(5, 4, 1, 1, dtype=torch.float64)
    theirs = module.DiagonalGaussianDistribution(torch.cat((mu, 2 * log_sigma), 1)).kl()
    gap = (kl_to_standard_normal(mu.flatten(1), log_sigma.flatten(1)) - theirs).abs().max().item()
    evidence(id="VA-02", system="VAE", claim="KL to the standard normal", reference="diffusers DiagonalGaussian",
             reached=gap, tolerance=1e-6, unit="nats")  # fmt: skip


@pytest.mark.parametrize("event", [(3,), (1, 8, 8), (3, 12, 20), (1, 5, 5)])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("scale", ["predicted", "shared"])
def test_every_shape(event, classes, scale):
    model = vae(event, classes, VAEConfig(latent=2, width=16, depth=1, channels=4, scale=scale)).eval()
    x = torch.randn(10, *event)
    y = torch.arange(10) % 3 if classes else None
    model.initialise(Rows(x, y, torch.arange(10)))
    assert model.encode(x, y).mean.shape == (10, 2)
    assert model.decode(torch.zeros(10, 2), y).mean.shape == (10, *event)
    assert model.draw(Streams(0, 10)).shape == (10, *event)
    # The bound is what encode and decode say it is.
    z = torch.zeros(10, 2)
    assert torch.allclose(model.decode(z, y).log_prob(x), model.log_likelihood(x, z, y), atol=1e-3)
    negative_elbo(model)(Batch(x, y, Streams(0, 10))).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_without_labels_a_conditional_model_bounds_the_marginal():
    model = vae((2,), 3, VAEConfig(latent=2, width=16, depth=1)).eval().double()
    x = torch.randn(40, 2, dtype=torch.float64)
    model.initialise(Rows(x, torch.arange(40) % 3, torch.arange(40)))
    noise = Streams(2, 40).child("marginal")  # the same draws for every label
    given = [
        model.log_prob_bound(x, torch.full((40,), y), rng=noise.take(slice(None)), k=4) + model.class_prior[y].log()
        for y in range(3)
    ]
    marginal = model.log_prob_bound(x, rng=Streams(2, 40), k=4)
    assert torch.allclose(marginal, torch.logsumexp(torch.stack(given), 0))
    mixture = model.decode(torch.zeros(40, 2, dtype=torch.float64)).log_prob(x)
    parts = [
        model.decode(torch.zeros(40, 2, dtype=torch.float64), torch.full((40,), y)).log_prob(x)
        + model.class_prior[y].log()
        for y in range(3)
    ]
    assert torch.allclose(mixture, torch.logsumexp(torch.stack(parts), 0))


def test_bad_input():
    with pytest.raises(ConfigError, match="shared"):
        vae((2,), 0, VAEConfig(scale="none"))
    with pytest.raises(NotSupported, match="classes"):
        vae((2,), 0, VAEConfig(width=8)).log_prob_bound(torch.zeros(2, 2), torch.zeros(2).long(), rng=Streams(0, 2))
