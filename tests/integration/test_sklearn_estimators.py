"""scikit-learn's own checks of what an estimator is, for the six that stand for scikit-learn's."""

from __future__ import annotations

import pytest
from sklearn import mixture, naive_bayes, neural_network
from sklearn.utils.estimator_checks import parametrize_with_checks

import protea.sklearn as ours

PEERS = {
    "GaussianNB": naive_bayes, "BernoulliNB": naive_bayes, "MultinomialNB": naive_bayes, "CategoricalNB": naive_bayes,
    "GaussianMixture": mixture, "BernoulliRBM": neural_network,
}  # fmt: skip


def shared_failures(estimator) -> dict[str, str]:
    """Checks that scikit-learn expects its own class to fail."""
    from sklearn.utils._test_common.instance_generator import _get_expected_failed_checks

    name = type(estimator).__name__
    return _get_expected_failed_checks(getattr(PEERS[name], name)())


@pytest.mark.slow
@parametrize_with_checks([getattr(ours, name)() for name in PEERS], expected_failed_checks=shared_failures)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", PEERS)
def test_parameters_and_defaults_are_the_same(name: str):
    assert getattr(ours, name)().get_params() == getattr(PEERS[name], name)().get_params()


@pytest.mark.parametrize("name", ["CategoricalHMM", "GaussianHMM", "GMMHMM", "PoissonHMM"])
def test_parameters_of_hmmlearn(name: str):
    peer = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn, the reference, is not installed")
    assert getattr(ours, name)().get_params() == getattr(peer, name)().get_params()
