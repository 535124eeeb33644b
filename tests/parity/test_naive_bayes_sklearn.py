"""Naive Bayes agrees with scikit-learn's, with brute force, and with what is published of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import naive_bayes as sk
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from protea.distributions.bernoulli import Bernoulli
from protea.distributions.categorical import Categorical
from protea.distributions.family import Family
from protea.distributions.gaussian import Gaussian
from protea.distributions.histogram import Histogram
from protea.distributions.multinomial import Multinomial
from protea.models.classical.naive_bayes import NaiveBayes
from protea.space import Field, Rows


def learnt(family: Family, x: Any, y: Any, **options) -> tuple[NaiveBayes, torch.Tensor]:
    data = torch.from_numpy(x)
    model = NaiveBayes(family, family.members, **options)
    model.initialise(Rows(data, torch.from_numpy(y), torch.arange(len(x))))
    return model, data


def gaps(model: NaiveBayes, data: torch.Tensor, peer) -> tuple[float, float]:
    """Largest differences of the joint log-likelihoods and of log p(y | x), relative to the size of the row's largest
    joint log-likelihood where above 1: pixels that are constant in a class make it 10^10 nats, in scikit-learn too."""
    joint = peer.predict_joint_log_proba(data.numpy())
    size = np.maximum(1, np.abs(joint).max(1, keepdims=True))
    posterior = np.abs(model.log_posterior(data).numpy() - peer.predict_log_proba(data.numpy()))
    return float((np.abs(model.log_joint(data).numpy() - joint) / size).max()), float((posterior / size).max())


@pytest.mark.parametrize("var_smoothing", [1e-9, 1e-2])
@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer, load_digits], ids=lambda f: f.__name__[5:])
def test_gaussian(load, var_smoothing: float, evidence):
    x, y = load(return_X_y=True)
    family = Gaussian(int(y.max()) + 1, (x.shape[1],), "diag", floor=1e-30)
    model, data = learnt(family, x, y, var_smoothing=var_smoothing)
    peer = sk.GaussianNB(var_smoothing=var_smoothing).fit(x, y)
    evidence(
        id="TR-03", system="Naive Bayes (Gaussian)", reference="sklearn.naive_bayes.GaussianNB", unit="relative",
        claim=f"{load.__name__[5:]}, var_smoothing {var_smoothing:g}: joint and posterior log-probabilities",
        reached=max(gaps(model, data, peer)), tolerance=1e-8,
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_bernoulli(alpha: float, evidence):
    x, y = load_digits(return_X_y=True)
    x = (x > 7).astype(np.float64)
    model, data = learnt(Bernoulli(10, (64,), alpha), x, y)
    evidence(
        id="TR-03", system="Naive Bayes (Bernoulli)", reference="sklearn.naive_bayes.BernoulliNB", unit="relative",
        claim=f"digits, alpha {alpha}: joint and posterior log-probabilities",
        reached=max(gaps(model, data, sk.BernoulliNB(alpha=alpha).fit(x, y))), tolerance=1e-8,
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_categorical(alpha: float, evidence):
    """Both families of codes: tables of probabilities, and histograms of categories."""
    x, y = load_digits(return_X_y=True)
    peer = sk.CategoricalNB(alpha=alpha, min_categories=17).fit(x, y)
    fields = [Field(str(i), "category", levels=17) for i in range(64)]
    families = (Categorical(10, 17, (64,), alpha), Histogram(10, fields, smoothing=alpha))
    worst = max(gap for family in families for gap in gaps(*learnt(family, x, y), peer))
    evidence(
        id="TR-03", system="Naive Bayes (categorical)", reference="sklearn.naive_bayes.CategoricalNB",
        claim=f"digits, alpha {alpha}: joint and posterior log-probabilities", reached=worst, tolerance=1e-8,
        unit="relative",
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [1.0, 0.1])
def test_multinomial(alpha: float, evidence):
    """scikit-learn leaves out the coefficient and the total; with them the joint is scipy's."""
    x, y = load_digits(return_X_y=True)
    x = np.round(x / 2)
    model, data = learnt(Multinomial(10, (64,), alpha), x, y)
    peer = sk.MultinomialNB(alpha=alpha).fit(x, y)
    posterior = gaps(model, data, peer)[1]
    total = model.features.totals.log_prob(data.sum(1, keepdim=True))[:, 0].numpy()  # type: ignore[union-attr]
    theta = np.exp(peer.feature_log_prob_)
    want = np.stack([stats.multinomial.logpmf(x, x.sum(1).astype(int), t / t.sum()) for t in theta], 1)
    want += total[:, None] + peer.class_log_prior_
    joint = np.abs(model.log_joint(data).numpy() - want).max() / np.abs(want).max()
    evidence(
        id="TR-03", system="Naive Bayes (multinomial)", reference="sklearn MultinomialNB, scipy multinomial",
        claim=f"digits, alpha {alpha}: posterior and joint log-probabilities", reached=max(joint, posterior),
        tolerance=1e-8, unit="relative",
    )  # fmt: skip


def test_accuracy_and_draws_on_digits(evidence):
    """0.887 measured with scikit-learn for 1,000 training rows of x > 7; draws have the means that were learnt."""
    x, y = load_digits(return_X_y=True)
    x = (x > 7).astype(np.float64)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1000], order[1000:]
    model, _ = learnt(Bernoulli(10, (64,), 1.0), x[train], y[train])
    said = model.log_posterior(torch.from_numpy(x[test])).argmax(1).numpy()
    accuracy = float((said == y[test]).mean())
    assert accuracy == sk.BernoulliNB().fit(x[train], y[train]).score(x[test], y[test])
    evidence(
        id="TR-03", system="Naive Bayes (Bernoulli)", claim="accuracy on digits (x > 7), 1,000 training rows",
        reference="0.887, the same in scikit-learn on this split", reached=abs(accuracy - 0.887), tolerance=0.025,
        unit=f"from 0.887; measured {accuracy:.3f}",
    )  # fmt: skip
    drawn = model.sample(20_000)
    means = model.class_prior @ model.features.theta  # type: ignore[union-attr]
    evidence(
        id="TR-03", system="Naive Bayes (Bernoulli)", claim="feature means of 20,000 draws",
        reference="sum_y pi_y theta_yj", reached=float((drawn.mean(0) - means).abs().max()), tolerance=0.0125,
        unit="max abs over 64 pixels",
    )  # fmt: skip


@pytest.mark.parametrize("target", [None, 1])
def test_posterior_is_brute_force(target: int | None, evidence):
    """Bayes' rule over a whole discrete joint, from tables of numbers alone; labels beside the rows or in a column."""
    rng = np.random.default_rng(3)
    levels, classes = (3, 2, 4), 3
    prior = rng.dirichlet(np.ones(classes))
    tables = [rng.dirichlet(np.ones(m), size=classes) for m in levels]
    joint = np.zeros((classes, *levels))
    for y, *x in itertools.product(range(classes), *map(range, levels)):
        joint[y, *x] = prior[y] * np.prod([tables[j][y, v] for j, v in enumerate(x)])
    assert joint.sum() == pytest.approx(1)
    family = Categorical(classes, levels, (3,))
    model = NaiveBayes(family, classes, target)
    table = torch.full((classes, 3, 4), 0.0, dtype=torch.float64)
    for j, t in enumerate(tables):
        table[:, j, : levels[j]] = torch.from_numpy(t)
    family.probabilities = table
    (model.class_prior if target is None else model.log_weights[0]).copy_(
        torch.from_numpy(prior if target is None else np.log(prior))
    )
    x = np.array(list(itertools.product(*map(range, levels))), dtype=np.float64)
    want = joint.reshape(classes, -1).T
    data = torch.from_numpy(x)
    if target is not None:
        data = torch.cat((data[:, :target], torch.full((len(x), 1), torch.nan), data[:, target:]), 1)
    worst = np.abs(model.log_posterior(data).exp().numpy() - want / want.sum(1, keepdims=True)).max()
    for y in range(classes):  # the label observed: the joint itself
        if target is None:
            got = model.log_prob(data, torch.full((len(x),), y)).numpy() + np.log(prior[y])
        else:
            data[:, target] = y
            got = model.log_prob(data).detach().numpy()
        worst = max(worst, np.abs(np.exp(got) - want[:, y]).max())
    evidence(
        id="TR-04", system="Naive Bayes", reference="enumeration of the joint", reached=worst, tolerance=1e-12,
        claim=f"p(y | x) and p(y, x), labels {'beside rows' if target is None else 'in a column'}", unit="max abs",
    )  # fmt: skip
