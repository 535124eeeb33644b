"""Evaluation figures agree with independent implementations."""

import numpy as np
import pytest
import torch

from protea.evaluation.coverage import prdc
from protea.evaluation.diversity import vendi_of_kernel, vendi_score
from protea.evaluation.figure import bca_interval, mean_figure, resample
from protea.evaluation.frechet import frechet, gaussian_frechet, kernel_distance
from protea.evaluation.two_sample import c2st_p_value, mmd, sliced_wasserstein


def _sets(n=200, m=150, f=12, seed=0):
    g = np.random.default_rng(seed)
    mix = g.normal(size=(f, f))
    return torch.from_numpy(g.normal(size=(n, f)) @ mix), torch.from_numpy(g.normal(0.3, 1.2, size=(m, f)) @ mix)


def test_frechet_agrees_with_scipy_sqrtm(evidence):
    from scipy.linalg import sqrtm

    x, y = _sets()
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    d = (x.mean(0) - y.mean(0)).numpy()
    expected = d @ d + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    reached = abs(frechet(x, y, replicates=2).value / expected - 1)
    evidence(
        id="EV-05", system="Fréchet distance", claim="agrees with the matrix square root",
        reference="scipy.linalg.sqrtm", reached=reached, tolerance=1e-6, unit="relative",
    )  # fmt: skip


@pytest.mark.slow  # torchmetrics takes seconds to import
def test_frechet_agrees_with_torchmetrics(evidence):
    from torchmetrics.image.fid import _compute_fid

    x, y = _sets(seed=1)
    expected = float(_compute_fid(x.mean(0), torch.cov(x.mT), y.mean(0), torch.cov(y.mT)))
    reached = abs(frechet(x, y, replicates=2).value / expected - 1)
    evidence(
        id="EV-05", system="Fréchet distance", claim="agrees with torchmetrics",
        reference="torchmetrics.image.fid", reached=reached, tolerance=1e-3, unit="relative",
    )  # fmt: skip


def test_frechet_of_known_gaussians(evidence):
    s = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)  # commuting: |mu|^2 + sum (sqrt a - sqrt b)^2
    found = gaussian_frechet(torch.zeros(3).double(), s.diag(), torch.ones(3).double(), torch.eye(3).double())
    singular = gaussian_frechet(
        torch.zeros(2).double(), torch.ones(2, 2).double(), torch.zeros(2).double(), torch.zeros(2, 2).double()
    )
    error = max(abs(float(found) - (3 + 0 + 1 + 4)), abs(float(singular) - 2))
    evidence(
        id="EV-05", system="Fréchet distance", claim="closed form of Gaussians, also singular",
        reference="closed form", reached=error, tolerance=1e-6, unit="abs",
    )  # fmt: skip
    x, _ = _sets()
    assert frechet(x, x, replicates=2).value < 1e-9


def test_frechet_survives_more_features_than_rows():
    x, y = _sets(n=20, m=20, f=40)
    figure = frechet(x, y, replicates=10)
    assert np.isfinite(figure.value) and figure.low <= figure.value <= figure.high


def test_prdc_is_exactly_prdc(evidence):
    from prdc import compute_prdc

    x, y = _sets(f=4)
    for real, fake in ((x, y), (x, x[:100]), (x, torch.cat((y[:50], y[:50])))):
        expected = compute_prdc(real.numpy(), fake.numpy(), 5)
        found = prdc(real, fake, k=5, replicates=2)
        reached = max(abs(found[name].value - expected[name]) for name in expected)
        evidence(
        id="EV-06", system="Precision, recall, density, coverage", claim="equal to prdc",
        reference="prdc 0.2", reached=reached, tolerance=1e-12, unit="max abs",
    )  # fmt: skip


def test_vendi_agrees_with_vendi_score(evidence):
    from vendi_score import vendi

    x, y = _sets(n=60, m=30, f=40)
    k = torch.exp(-torch.cdist(x, x).square() / 300)
    pairs = [
        (vendi_score(x), vendi.score_dual(x.numpy())), (vendi_score(y), vendi.score_X(y.numpy())),
        (vendi_of_kernel(k), vendi.score_K(k.numpy())),
    ]  # fmt: skip
    reached = max(abs(float(a) / b - 1) for a, b in pairs)
    evidence(
        id="EV-09", system="Vendi score", claim="dual and direct forms agree",
        reference="vendi_score 0.0.3", reached=reached, tolerance=1e-8, unit="relative",
    )  # fmt: skip
    assert float(vendi_score(torch.eye(5))) == pytest.approx(5) and float(
        vendi_score(torch.ones(9, 2))
    ) == pytest.approx(1)


@pytest.mark.slow
def test_kernel_distance_agrees_with_torchmetrics(evidence):
    from torchmetrics.image.kid import poly_mmd

    x, y = _sets(n=150, m=150)
    expected = float(poly_mmd(x, y))
    reached = abs(kernel_distance(x, y, replicates=2).value / expected - 1)
    evidence(
        id="EV-05", system="Kernel distance", claim="agrees with torchmetrics",
        reference="torchmetrics.image.kid.poly_mmd", reached=reached, tolerance=1e-8, unit="relative",
    )  # fmt: skip


def test_mmd_agrees_with_its_definition(evidence):
    from sklearn.metrics.pairwise import rbf_kernel

    x, y = (a.numpy() for a in _sets(n=40, m=50))
    h = 3.0
    xx, yy, xy = (rbf_kernel(a, b, gamma=1 / (2 * h * h)) for a, b in ((x, x), (y, y), (x, y)))
    n, m = xy.shape
    expected = (xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean()
    reached = abs(mmd(torch.from_numpy(x), torch.from_numpy(y), bandwidth=h, replicates=2).value - expected)
    evidence(
        id="EV-08", system="MMD", claim="the unbiased estimate",
        reference="sklearn rbf_kernel", reached=reached,
             tolerance=1e-10, unit="abs",
    )  # fmt: skip


@pytest.mark.parametrize("sizes", [(100, 100), (90, 60)])
def test_sliced_wasserstein_agrees_with_pot(evidence, sizes):
    import ot

    from protea.rng import Streams, fold

    x, y = _sets(*sizes, f=5)
    z = Streams(fold(0, "directions"), 64).normal(5, dtype=torch.float64)
    theta = (z / z.norm(dim=1, keepdim=True)).mT.numpy()
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=theta)
    reached = abs(sliced_wasserstein(x, y, replicates=2).value / expected - 1)
    evidence(
        id="EV-20", system="Sliced Wasserstein distance", claim="agrees with POT for the same directions",
        reference="ot.sliced_wasserstein_distance", reached=reached, tolerance=1e-5, unit="relative",
    )  # fmt: skip


def test_intervals_agree_with_scipy_bootstrap(evidence):
    from scipy.stats import bootstrap

    x = torch.from_numpy(np.random.default_rng(0).exponential(size=120))
    n = len(x)
    means = x[resample(n, 20_000, 0)].mean(1)
    ours = [*bca_interval(float(x.mean()), means, (x.sum() - x) / (n - 1))]
    figure = mean_figure(x, replicates=20_000)
    theirs = []
    for method in ("BCa", "percentile"):
        ci = bootstrap((x.numpy(),), np.mean, n_resamples=20_000, method=method, random_state=1).confidence_interval
        theirs += [ci.low, ci.high]
    reached = max(abs(a - b) for a, b in zip((*ours, figure.low, figure.high), theirs)) / float(x.std() / n**0.5)
    evidence(
        id="EV-17", system="Bootstrap intervals", claim="BCa and percentile ends",
        reference="scipy.stats.bootstrap", reached=reached, tolerance=0.08,
        unit="standard errors, Monte Carlo noise 0.03",
    )  # fmt: skip


def test_c2st_p_value_is_fishers():
    """With a useless first half the decisions are all one label, and the exact p-value is 1."""
    x = torch.zeros(40, 2, dtype=torch.float64)
    assert c2st_p_value(x, x) == pytest.approx(1.0)
    assert c2st_p_value(x, x + 1) < 1e-9
