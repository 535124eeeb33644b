"""The adapters give scikit-learn's and hmmlearn's numbers: same start, same iterates; same data, same probabilities."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn import mixture, naive_bayes, neural_network
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning

import protea.sklearn as ours
from protea.sklearn.base import InputError

KINDS = ("full", "tied", "diag", "spherical")
K = 3
LENGTHS = [40, 7, 1, 33, 60]
N = sum(LENGTHS)


def largest(pairs: list[tuple[Any, Any]]) -> float:
    """The largest difference, relative where values are above 1."""
    return max(float((np.abs(np.subtract(a, b)) / np.maximum(1, np.abs(b))).max()) for a, b in pairs)


def blobs(n: int = 300, d: int = 4) -> np.ndarray:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n // 3, d)) @ rng.normal(size=(d, d)) + 3 * rng.normal(size=d) for _ in range(3)]
    return np.concatenate(parts)


# ---- scikit-learn ----


@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_mixture(kind: str, init: str, evidence):
    x = blobs()
    common = {
        "covariance_type": kind,
        "reg_covar": 1e-3,
        "init_params": init,
        "random_state": 0,
        "max_iter": 20,
        "tol": 0,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # twenty steps, on purpose
        peer = mixture.GaussianMixture(K, **common).fit(x)
        mine = ours.GaussianMixture(K, **common).fit(x)
    names = (
        "weights_",
        "means_",
        "covariances_",
        "precisions_",
        "precisions_cholesky_",
        "lower_bound_",
        "lower_bounds_",
    )
    pairs = [(getattr(mine, name), getattr(peer, name)) for name in names]
    pairs += [(getattr(mine, f)(x), getattr(peer, f)(x)) for f in ("score_samples", "predict_proba", "bic", "aic")]
    assert mine.n_iter_ == peer.n_iter_ == 20
    assert (mine.predict(x) == peer.predict(x)).all()
    evidence(
        id="TR-07", system="protea.sklearn.GaussianMixture", reference="sklearn.mixture.GaussianMixture",
        claim=f"{kind}, {init}: all attributes and scores after 20 steps with reg_covar=0.001", reached=largest(pairs),
        tolerance=1e-8, unit="relative",
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_of_ones_own(kind: str):
    """precisions_init is taken as it is, and the start of n_init and warm_start goes on as scikit-learn's does."""
    x = blobs()
    peer = mixture.GaussianMixture(K, covariance_type=kind, random_state=0, n_init=3).fit(x)
    start = {"weights_init": peer.weights_, "means_init": peer.means_, "precisions_init": peer.precisions_}
    mine = ours.GaussianMixture(K, covariance_type=kind, max_iter=0, **start).fit(x)
    assert largest([(mine.precisions_cholesky_, peer.precisions_cholesky_)]) < 1e-8
    again = ours.GaussianMixture(K, covariance_type=kind, random_state=0, n_init=3, warm_start=True).fit(x)
    assert again.n_iter_ == peer.n_iter_
    assert again.converged_ == peer.converged_
    assert largest([(again.means_, peer.means_)]) < 1e-8
    before = again.lower_bound_
    assert again.fit(x).lower_bound_ >= before - 1e-9


@pytest.mark.parametrize("load", [load_iris, load_breast_cancer, load_digits], ids=lambda f: f.__name__[5:])
def test_gaussian_naive_bayes(load, evidence):
    """By fit with weights, and in three parts."""
    x, y = load(return_X_y=True)
    weight = np.random.default_rng(0).random(len(x))
    worst = 0.0
    for var_smoothing in (1e-9, 1e-3):
        pair = [cls(var_smoothing=var_smoothing) for cls in (ours.GaussianNB, naive_bayes.GaussianNB)]
        for model in pair:
            model.fit(x, y, sample_weight=weight)
        worst = max(worst, _gaussian_gap(*pair, x))
        for part in range(3):
            for model in pair:
                model.partial_fit(x[part::3], y[part::3])
        worst = max(worst, _gaussian_gap(*pair, x))
    evidence(
        id="TR-03", system="protea.sklearn.GaussianNB", reference="sklearn.naive_bayes.GaussianNB", reached=worst,
        claim=f"{load.__name__[5:]}: attributes and log-probabilities, weighted, then three partial_fit",
        tolerance=1e-8, unit="relative to the row's joint log-likelihood",
    )  # fmt: skip


def _gaussian_gap(mine, peer, x: np.ndarray) -> float:
    """Pixels that are constant in a class make joint log-likelihoods of 10^10 nats, whose differences are rounded."""
    joint = peer.predict_joint_log_proba(x)
    size = np.maximum(1, np.abs(joint).max(1, keepdims=True))
    gap = np.abs(mine.predict_log_proba(x) - peer.predict_log_proba(x)) / size
    names = ("theta_", "var_", "class_count_", "class_prior_", "epsilon_")
    assert (mine.predict(x) == peer.predict(x)).mean() > 0.999
    return max(float(gap.max()), largest([(getattr(mine, n), getattr(peer, n)) for n in names]))


@pytest.mark.parametrize("name", ["BernoulliNB", "MultinomialNB", "CategoricalNB"])
def test_discrete_naive_bayes(name: str, evidence):
    """Also of sparse rows and fractional counts, and in parts."""
    x, y = load_digits(return_X_y=True)
    weight = np.random.default_rng(0).random(len(x))
    options: dict = {"min_categories": 17} if name == "CategoricalNB" else {}
    inputs = [x] if name == "CategoricalNB" else [x, sparse.csr_array(x), x / 16]
    worst = 0.0
    for data in inputs:
        for alpha in (1.0, 0.01):
            mine, peer = (cls(alpha=alpha, **options) for cls in (getattr(ours, name), getattr(naive_bayes, name)))
            for model in (mine, peer):
                model.fit(data, y, sample_weight=weight)
                model.partial_fit(data[::2], y[::2])
            pairs = [
                (mine.predict_log_proba(data), peer.predict_log_proba(data)),
                (mine.predict_joint_log_proba(data), peer.predict_joint_log_proba(data)),
                (mine.class_log_prior_, peer.class_log_prior_), (mine.class_count_, peer.class_count_),
                *zip(mine.feature_log_prob_, peer.feature_log_prob_),
            ]  # fmt: skip
            worst = max(worst, largest(pairs))
    evidence(
        id="TR-03", system=f"protea.sklearn.{name}", reference=f"sklearn.naive_bayes.{name}", tolerance=1e-8,
        claim="digits: attributes and log-probabilities, weighted, with a partial_fit", reached=worst, unit="relative",
    )  # fmt: skip


def test_text_of_many_words_stays_sparse():
    """Ten million entries as a dense matrix of a vocabulary are never made at once."""
    rng = np.random.default_rng(0)
    x = sparse.random_array((2000, 5000), density=0.002, format="csr", rng=rng)
    y = rng.integers(0, 2, 2000)
    mine, peer = ours.MultinomialNB().fit(x, y), naive_bayes.MultinomialNB().fit(x, y)
    assert largest([(mine.predict_log_proba(x), peer.predict_log_proba(x))]) < 1e-8


@pytest.mark.slow
def test_rbm_pseudo_likelihood(evidence):
    """After the same seven passes over the digits, the mean over three seeds."""
    x = load_digits(return_X_y=True)[0] / 16
    score = {}
    for cls in (ours.BernoulliRBM, neural_network.BernoulliRBM):
        fitted = [cls(64, learning_rate=0.1, batch_size=10, n_iter=7, random_state=seed).fit(x) for seed in range(3)]
        score[cls] = np.mean([m.set_params(random_state=s).score_samples(x).mean() for m in fitted for s in range(5)])
    mine, peer = score.values()
    evidence(
        id="EB-02", system="protea.sklearn.BernoulliRBM", reference="sklearn.neural_network.BernoulliRBM",
        claim=f"digits: pseudo-likelihood {mine:.2f} after 7 epochs, less scikit-learn's {peer:.2f}",
        reached=mine - peer, tolerance=-0.1, unit="nats", at_least=True,
    )  # fmt: skip


def test_rbm_transform_is_scikit_learns():
    x = load_digits(return_X_y=True)[0][:50] / 16
    mine = ours.BernoulliRBM(8, n_iter=2, random_state=0).fit(x)
    peer = neural_network.BernoulliRBM(8, n_iter=0, random_state=0).fit(x)
    for name in ("components_", "intercept_hidden_", "intercept_visible_"):
        setattr(peer, name, getattr(mine, name))
    np.testing.assert_allclose(mine.transform(x), peer.transform(x), atol=1e-12)
    many = [peer.set_params(random_state=s).score_samples(x).mean() for s in range(200)]
    own = [mine.set_params(random_state=s).score_samples(x).mean() for s in range(200)]
    assert abs(np.mean(many) - np.mean(own)) < 4 * np.std(many) / np.sqrt(100)


# ---- hmmlearn ----


def hmm_data(name: str, rng: np.random.Generator) -> np.ndarray:
    state = np.repeat(rng.integers(0, K, N // 5 + 1), 5)[:N]
    if name == "CategoricalHMM":
        return ((state + (rng.random(N) < 0.3) * rng.integers(0, 4, N)) % 5)[:, None]
    if name == "PoissonHMM":
        return rng.poisson(np.array([[1.0, 9], [4, 3], [11, 6]])[state])
    return rng.normal(size=(N, 2)) * [1.0, 0.5] + np.array([[0, 0], [3, 1], [1, 4]])[state]


CASES = [
    ("CategoricalHMM", {}), ("CategoricalHMM", {"emissionprob_prior": 1.5, "transmat_prior": 2.0}),
    ("PoissonHMM", {}), ("PoissonHMM", {"lambdas_prior": 2.0, "lambdas_weight": 3.0}),
    *[("GaussianHMM", {"covariance_type": kind}) for kind in KINDS],
    *[("GaussianHMM", {"covariance_type": kind, "means_prior": 1.0, "means_weight": 2.0, "covars_prior": 0.3,
                       "covars_weight": 6.0, "startprob_prior": 1.5, "transmat_prior": 3.0}) for kind in KINDS],
    *[("GMMHMM", {"covariance_type": kind, "n_mix": 2}) for kind in KINDS],
    *[("GMMHMM", {"covariance_type": kind, "n_mix": 2, "means_prior": 1.0, "means_weight": 0.5,
                  "weights_prior": 1.2}) for kind in KINDS],
]  # fmt: skip
METHODS = ("score", "predict_proba", "bic", "aic")
NAMES = {"CategoricalHMM": ["emissionprob_"], "PoissonHMM": ["lambdas_"], "GaussianHMM": ["means_", "covars_"],
         "GMMHMM": ["weights_", "means_", "covars_"]}  # fmt: skip


@pytest.mark.parametrize("implementation", ["log", "scaling"])
@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else ",".join(map(str, v.values()))
)
def test_hidden_markov(name: str, options: dict, implementation: str, evidence):
    """The same random state gives the same start; then one step and twenty."""
    peers = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn, the reference, is not installed")
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    x = hmm_data(name, np.random.default_rng(0))
    for steps, tolerance in ((1, 1e-8), (20, 1e-6)):
        mine, peer = (
            getattr(module, name)(
                K, random_state=3, n_iter=steps, tol=-np.inf, implementation=implementation, **options
            )
            for module in (ours, peers)
        )
        for model in (mine, peer):
            model.fit(x, LENGTHS)
        pairs = [(mine.startprob_, peer.startprob_), (mine.transmat_, peer.transmat_)]
        for attribute in NAMES[name]:
            want = np.asarray(getattr(peer, attribute))
            if name == "GaussianHMM" and attribute == "covars_" and options["covariance_type"] == "spherical":
                want = want.reshape(K, 2, 2, 2)[:, 0]  # hmmlearn gives one matrix an entry
            pairs.append((getattr(mine, attribute), want))
        pairs += [
            *[(getattr(mine, name)(x, LENGTHS), getattr(peer, name)(x, LENGTHS)) for name in METHODS],
            (list(mine.monitor_.history), list(peer.monitor_.history)),
            (mine.get_stationary_distribution(), peer.get_stationary_distribution()),
        ]  # fmt: skip
        for algorithm in ("viterbi", "map"):
            lengths = LENGTHS if algorithm == "viterbi" else None
            (a, path), (b, want) = (model.decode(x, lengths, algorithm) for model in (mine, peer))
            pairs.append((a, b))
            assert (path == want).mean() > 0.99  # some are equally probable
        evidence(
            id="TR-12", system=f"protea.sklearn.{name}", reference=f"hmmlearn.hmm.{name} ({implementation})",
            claim=f"{', '.join(f'{k}={v}' for k, v in options.items()) or 'defaults'}: all after {steps} EM steps",
            reached=largest(pairs), tolerance=tolerance, unit="relative",
        )  # fmt: skip


def test_samples_follow_the_chain():
    """Relative frequencies of states and symbols against the stationary distribution, of 4,000 steps."""
    model = ours.CategoricalHMM(2, random_state=0)
    model.startprob_, model.transmat_ = np.array([1.0, 0.0]), np.array([[0.7, 0.3], [0.4, 0.6]])
    model.emissionprob_ = np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]])
    x, z = model.sample(4000)
    assert z[0] == 0
    assert not ((z == 0) & (x[:, 0] == 2)).any()
    np.testing.assert_allclose(np.bincount(z) / len(z), [4 / 7, 3 / 7], atol=0.04)
    np.testing.assert_allclose(np.bincount(x[:, 0]) / len(x), np.array([4, 3]) / 7 @ model.emissionprob_, atol=0.04)
    assert model.sample(5, currstate=1)[1][0] == 1


# ---- what an adapter hands over ----


def test_the_model_itself_takes_holes():
    x = load_iris().data
    model = ours.GaussianMixture(3, random_state=0).fit(x)
    inner = model.to_protea()
    np.testing.assert_allclose(inner.log_prob(torch.from_numpy(x)).numpy(), model.score_samples(x), atol=1e-10)
    holes = torch.from_numpy(x[:5].copy())
    holes[:, 2] = torch.nan
    filled = inner.given(holes, ~holes.isnan()).mean
    assert torch.allclose(filled[:, [0, 1, 3]], holes[:, [0, 1, 3]])
    assert float((filled[:, 2] - torch.from_numpy(x[:5, 2])).abs().max()) < 1


def test_mistakes_are_both_libraries_errors():
    with pytest.raises(InputError, match="nonnegative"):
        ours.CategoricalHMM(2).fit([[-1], [2]])
    with pytest.raises(ValueError, match="sum to"):
        ours.GaussianHMM(1).fit(np.zeros((4, 1)), lengths=[3])
    with pytest.raises(ValueError, match="not a count"):
        ours.PoissonHMM(1).fit([[1], [-1]])
    with pytest.raises(ValueError, match="3 levels"):
        ours.CategoricalNB().fit([[0], [2]], [0, 1]).predict([[5]])


@pytest.mark.parametrize("name", ["GaussianNB", "BernoulliNB", "CategoricalNB"])
def test_models_handed_over_learn_the_same_again(name: str):
    """One more M-step from the same rows leaves what the adapter learnt, smoothing included (to the digits that second
    moments about the mean of all rows leave a pixel that is constant in a class)."""
    x, y = load_digits(return_X_y=True)
    x = x if name == "GaussianNB" else (x > 7).astype(float)
    mine = getattr(ours, name)().fit(x, y)
    model = mine.to_protea()
    data, labels = torch.from_numpy(x if name != "CategoricalNB" else x.astype(int)), torch.from_numpy(y)
    before = model.log_posterior(data)
    np.testing.assert_allclose(before.numpy(), mine.predict_log_proba(x), atol=1e-5)
    model.maximise(model.expect(data, labels))
    size = model.log_joint(data).abs().amax(1, keepdim=True).clamp(min=1)
    assert float(((model.log_posterior(data) - before) / size).abs().max()) < 1e-5


def test_a_component_that_loses_its_rows_is_split_from_a_heavy_one():
    x = np.concatenate([np.random.default_rng(0).normal(size=(200, 1)), [[1e6]]])
    model = ours.GaussianMixture(3, random_state=0, means_init=[[0.0], [-1e9], [1e6]], max_iter=50).fit(x)
    assert (model.weights_ > 0).all()
    assert np.isfinite(model.score_samples(x)).all()
