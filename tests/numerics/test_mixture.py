"""Mixtures: choice of k, restarts, priors against collapse, partial labels, conditionals, and users' mistakes."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import mixture as peer

from protea.distributions.bernoulli import Bernoulli
from protea.distributions.categorical import Categorical
from protea.distributions.gaussian import Gaussian
from protea.distributions.priors import NormalInverseWishart, conjugate
from protea.distributions.student_t import StudentT
from protea.errors import ConfigError, DataError
from protea.models.classical.gmm import ENTRY, GaussianMixture, GMMConfig
from protea.models.classical.mixture import Mixture
from protea.models.classical.selection import choose, climb
from protea.models.lifted import LiftedDensity
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Vector
from protea.training.budget import Budget
from protea.training.fit import fit


def rows(x: np.ndarray | torch.Tensor, y: torch.Tensor | None = None) -> Rows:
    x = torch.as_tensor(x, dtype=torch.float64)
    return Rows(x, y, torch.arange(len(x)))


def blobs(centres: list[tuple[float, ...]], n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([c + rng.normal(size=(n, len(c))) for c in np.array(centres)])


def test_criteria_choose_the_number_of_clusters(evidence):
    """BIC finds the Gaussians; ICL, where two of them overlap, the clusters. Values as of scikit-learn's posteriors."""
    x = blobs([(0, 0), (9, 0), (0, 9)], 150)
    made = choose(lambda k: GaussianMixture((2,), k, "spherical"), rows(x), range(1, 6))
    assert made.model.k == 3 and min(made.scores, key=lambda k: made.scores[k]) == 3
    assert choose(lambda k: GaussianMixture((2,), k, "spherical"), rows(x), range(1, 6), "icl").model.k == 3
    # Two overlapping Gaussians are one cluster.
    two = blobs([(20, 0), (0, 0), (2.3, 0)], 400)
    make = lambda k: GaussianMixture((2,), k, "spherical", restarts=4)  # noqa: E731
    assert choose(make, rows(two), range(1, 5)).model.k == 3
    assert choose(make, rows(two), range(1, 5), "icl").model.k == 2
    model = made.model
    assert isinstance(model, GaussianMixture)
    sk = peer.GaussianMixture(3, covariance_type="spherical")
    sk.means_, sk.weights_ = model.means[0].numpy(), model.log_weights[0].exp().numpy()
    sk.precisions_cholesky_ = 1 / model.scale.numpy()
    p = sk.predict_proba(x)
    want = sk.bic(x) - 2 * np.sum(p * np.log(np.maximum(p, 1e-300)))
    evidence(
        id="TR-07", system="mixtures", claim="ICL of a spherical mixture",
        reference="sklearn.mixture.GaussianMixture: bic and the entropy of predict_proba",
        reached=abs(model.icl(torch.from_numpy(x)) - want), tolerance=1e-6, unit="2 nats",
    )  # fmt: skip


def test_restarts_find_a_better_optimum():
    x = blobs([(4.0 * i, 4.0 * j) for i in range(4) for j in range(4)], 30, seed=3) * 0.5
    reached = []
    for restarts in (1, 12):
        model = GaussianMixture((2,), 16, "spherical", restarts=restarts)
        model.initialise(rows(x), seed=1)
        reached.append(climb(model, rows(x), 60))
    assert reached[1] >= reached[0]
    again = GaussianMixture((2,), 16, "spherical", restarts=12)
    again.initialise(rows(x), seed=1)
    assert climb(again, rows(x), 60) == reached[1]  # a function of the seed


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_members_collapse_without_a_prior_and_not_with_one(kind: str, evidence):
    """Forty copies of one point: unregularised likelihood has no maximum; a conjugate prior gives it one."""
    x = np.concatenate((np.random.default_rng(0).normal(size=(60, 2)), np.full((40, 2), 3.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with np.errstate(all="ignore"), pytest.raises(ValueError):  # scikit-learn without its floor
            peer.GaussianMixture(2, covariance_type=kind, reg_covar=0.0, random_state=0, max_iter=200).fit(x)
    prior, alpha = conjugate("conjugate", 2)
    model = GaussianMixture((2,), 2, kind, reg_covar=1e-12, prior=prior, weight_prior=alpha)
    model.initialise(rows(x))
    climb(model, rows(x), 300)
    least = float(torch.linalg.eigvalsh(model.kind.dense(model.scale, 2, 2)).min())
    assert model.log_prob(torch.from_numpy(x)).isfinite().all()
    evidence(
        id="TR-09", system="Gaussian mixture", claim=f"{kind}: least variance, 40 copies of a point, conjugate prior",
        reference="unregularised EM, which raises in scikit-learn", reached=least, tolerance=1e-3, unit="squared units",
        at_least=True,
    )  # fmt: skip


def test_the_weights_prior_is_its_closed_form():
    model = Mixture(Gaussian(2, (1,)), 2, weight_prior=3.0)
    model.maximise(model.expect(torch.zeros(10, 1)))
    n = torch.tensor([5.0, 5.0], dtype=torch.float64)
    assert torch.allclose(model.log_weights.exp(), (n + 2) / 14)
    want = torch.distributions.Dirichlet(torch.tensor([3.0, 3.0])).log_prob(torch.tensor([0.5, 0.5]))
    assert float(model.log_prior()) == pytest.approx(float(want), rel=1e-6)


def test_every_pattern_of_a_categorical_mixture_by_enumeration():
    """Sums over all completions give the likelihood of what is known, and the conditional's probabilities."""
    torch.manual_seed(0)
    family = Categorical(3, (2, 3, 2), (3,), 0.5)
    r = torch.rand(50, 3, dtype=torch.float64)
    x = torch.stack([torch.randint(0, level, (50,)) for level in (2, 3, 2)], 1)
    family.maximise(family.expect(x, r))
    model = Mixture(family, 3)
    model.log_weights.copy_(torch.tensor([[0.5, 0.3, 0.2]]).log())
    cells = torch.tensor(list(itertools.product(range(2), range(3), range(2))))
    joint = model.log_prob(cells).exp()
    assert float(joint.sum()) == pytest.approx(1)
    known = torch.tensor([True, False, False])
    given = model.given(torch.tensor([1, 0, 0]), known)
    mine = cells[:, 0] == 1
    assert float(given.evidence.exp()) == pytest.approx(float(joint[mine].sum()))
    assert torch.allclose(given.log_prob(cells[mine]).exp(), joint[mine] / joint[mine].sum())
    drawn = given.sample(6000)
    assert (drawn[:, 0] == 1).all()
    share = torch.stack([(drawn == cell).all(1).double().mean() for cell in cells[mine]])
    assert torch.allclose(share, joint[mine] / joint[mine].sum(), atol=0.03)


def test_the_mean_of_a_conditional_is_that_of_its_draws():
    x = blobs([(0, 0, 0), (4, 1, -3)], 100)
    for family in (Gaussian(2, (3,)), StudentT(2, (3,), dof=8.0)):
        model = Mixture(family, 2)
        model.initialise(rows(x))
        row = torch.tensor([2.0, float("nan"), float("nan")], dtype=torch.float64)
        given = model.given(row, ~row.isnan())
        drawn = given.sample(20_000)
        assert torch.allclose(given.mean[0], drawn.mean(0), atol=0.1)
        assert float(given.evidence) == pytest.approx(float(model.log_prob(row[None])), abs=1e-12)


def test_partial_labels_of_any_family():
    """Two classes of coin rows, six labels: unknown labels enter by their posterior and sharpen the classes."""
    theta = torch.tensor([[0.9] * 8 + [0.2] * 8, [0.2] * 8 + [0.9] * 8])
    y = torch.arange(300) % 2
    x = (Streams(0, 300).uniform(16) < theta[y]).double()
    known = torch.where(torch.arange(300) < 6, y, -1)
    model = Mixture(Bernoulli(2, (16,)), 1, classes=2)
    model.initialise(rows(x, known))
    climb(model, rows(x, known), 30)
    assert float((model.responsibilities(x).sum(2).argmax(1) == y).double().mean()) > 0.97
    as_floats = model.log_prob(x, known.double())
    assert torch.equal(as_floats, model.log_prob(x, known))


def test_rows_and_columns_of_which_nothing_is_known():
    """A row of NaN has log p = 0 and changes no parameter; a column of NaN keeps its start, N(0, 1)."""
    x = blobs([(0, 0), (6, 6)], 40)
    empty = np.full((5, 2), np.nan)
    one, two = GaussianMixture((2,), 2), GaussianMixture((2,), 2)
    one.initialise(rows(x))
    two.load_state_dict(one.state_dict())
    for _ in range(5):
        one.maximise(one.expect(torch.from_numpy(x)))
        two.maximise(two.expect(torch.from_numpy(np.concatenate((x, empty)))))
    assert float(two.log_prob(torch.from_numpy(empty)).abs().max()) < 1e-12
    assert torch.allclose(one.means, two.means, atol=0.05)
    wide = torch.from_numpy(np.concatenate((x, np.full((80, 1), np.nan)), 1))
    model = GaussianMixture((3,), 2)
    model.initialise(rows(wide))
    climb(model, rows(wide), 10)
    assert torch.allclose(model.means[0, :, 2], torch.zeros(2).double()) and model.scale.isfinite().all()
    assert float(model.kind.dense(model.scale, 2, 3)[:, 2, 2].sub(1).abs().max()) < 0.2


def test_unknown_entries_through_a_space():
    """One Gaussian fitted in standardised units: log p(x_o) of rows is scipy's, in the user's units."""
    x = Streams(0, 300).normal(2, dtype=torch.float64) * torch.tensor([1.0, 5.0]) + torch.tensor([3.0, 100.0])
    x[:, 1] += 4 * x[:, 0]
    x[::5, 1] = float("nan")
    x[3] = float("nan")
    data = Rows(x, None, torch.arange(300))
    lifted = ENTRY.build(Vector(("a", "b")), GMMConfig(k=1))
    lifted.initialise(data)
    fit(lifted, data, None, budget=Budget(epochs=40), judge=None, progress=None)
    assert isinstance(lifted, LiftedDensity) and isinstance(lifted.inner, GaussianMixture)
    std, mean = lifted.relaxation.std.numpy(), lifted.relaxation.mean.numpy()  # type: ignore[union-attr]
    mu = lifted.inner.means[0, 0].numpy() * std + mean
    sigma = lifted.inner.family.covariances[0].numpy() * np.outer(std, std)
    got = lifted.log_prob(x).numpy()
    want = []
    for row in x.numpy():
        o = ~np.isnan(row)
        want.append(stats.multivariate_normal(mu[o], sigma[np.ix_(o, o)]).logpdf(row[o]) if o.any() else 0.0)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert sigma[0, 1] > 2 and lifted.sample(3).isfinite().all()


def test_more_members_than_rows():
    for family in (Gaussian(9, (2,)), StudentT(9, (2,)), Gaussian(9, (2,), prior=NormalInverseWishart(2))):
        model = Mixture(family, 9)
        x = blobs([(0, 0)], 3)
        model.initialise(rows(x))
        assert math.isfinite(climb(model, rows(x), 20))
        assert model.sample(20).isfinite().all()


def test_mistakes_are_named():
    model = GaussianMixture((2,), 2, classes=2)
    x = torch.zeros(4, 2)
    with pytest.raises(DataError, match="not whole numbers"):
        model.log_prob(x, torch.tensor([0.0, 0.5, 1.0, 1.0]))
    with pytest.raises(DataError, match="Label 2"):
        model.expect(x, torch.tensor([0, 1, 2, 0]))
    with pytest.raises(DataError, match="no rows"):
        model.initialise(rows(torch.zeros(0, 2)))
    with pytest.raises(ConfigError, match="family's 4"):
        Mixture(Gaussian(4, (2,)), 3)
    with pytest.raises(ConfigError, match="weight prior"):
        GaussianMixture((2,), 2, weight_prior=0.5)
    with pytest.raises(ConfigError, match="criterion"):
        choose(lambda k: GaussianMixture((2,), k), rows(torch.zeros(4, 2)), (1,), "bik")
    with pytest.raises(ConfigError, match="prior"):
        conjugate("conjugated", 2)
    with pytest.raises(DataError, match="observed entry"):
        model.given(torch.tensor([float("nan"), 0.0]), torch.tensor([True, False]))
