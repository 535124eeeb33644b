"""Learning curves, unlabelled rows, and what each kind of classifier can do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import BernoulliNB

from protea.core import Batch
from protea.data import Dataset, open_data
from protea.errors import ConfigError, NotSupported
from protea.inference import semi_supervised
from protea.inference.capability_table import QUESTIONS, ask, capability_table
from protea.inference.classify import judge_probabilities
from protea.inference.contenders import Discriminative, Generative
from protea.inference.labelling import labelling
from protea.inference.learning_curve import Draws, Estimate, compare_curves, estimate, in_words, learning_curves
from protea.inference.posterior import posterior
from protea.inference.semi_supervised import learn_semi
from protea.models.classical.gmm import GaussianMixture
from protea.objectives.semi_supervised import semi_supervised_nll
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Table, Vector
from protea.spaces.columns import Column
from protea.training import Budget
from protea.training.run import build


@pytest.fixture(scope="module")
def binary_digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The digits as ink or no ink (x > 7 of 16)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    path = tmp_path_factory.mktemp("data") / "binary-digits.npz"
    np.savez(path, x=(bunch.images > 7).astype(np.uint8), y=bunch.target)
    return open_data(path, levels=2)


def test_draws_are_nested_stratified_and_paired(binary_digits: Dataset):
    draws = Draws(binary_digits, seed=3)
    few, many = draws.labelled(1, 20), draws.labelled(1, 200)
    assert torch.equal(many.ids[:20], few.ids)
    counts = torch.bincount(draws.where.of(many), minlength=10)
    assert (
        set(draws.where.of(draws.labelled(1, 10)).tolist()) == set(range(10))
        and 15 <= counts.min() <= counts.max() <= 25
    )
    hidden = draws.unlabelled(1, 20)
    assert not set(hidden.ids.tolist()) & set(few.ids.tolist()) and bool((hidden.y == -1).all())
    assert not set(draws.pool.ids.tolist()) & set(draws.test.ids.tolist())
    assert not torch.equal(draws.labelled(2, 20).ids, few.ids)


def test_intervals_cover_at_their_level():
    """A mean over random draws and random rows: the interval holds the truth at least 95 % of the time."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(400):
        effect = rng.normal(size=(8, 1)) * 0.3 + rng.normal(size=(1, 40)) + rng.normal(size=(8, 40)) * 0.5
        found = estimate(torch.from_numpy(effect))
        hits.append(found.low <= 0 <= found.high)
    assert 0.94 <= np.mean(hits) <= 1.0


def test_words_name_the_winner_in_both_directions():
    up, level, down = Estimate(0.1, 0.05, 0.15), Estimate(0.0, -0.1, 0.1), Estimate(-0.2, -0.3, -0.1)
    assert in_words("a", "b", [5, 50], [up, down]) == (
        "a is ahead at 5 labels (by 0.100); b is ahead at 50 labels (by 0.200)."
    )
    assert in_words("a", "b", [5, 50], [down, down]) == "b is ahead from 5 to 50 labels (by up to 0.200)."
    assert in_words("a", "b", [5], [level]) == "no difference can be told at 5 labels."


def test_each_side_wins_where_theory_says(evidence):
    """Naive Bayes wins with few labels where its assumption holds, logistic regression with many where it fails."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 4000)
    x = rng.normal(size=(4000, 60)) + np.where(y[:, None] == 1, 0.2, -0.2)
    shared = rng.normal(size=4000) * 3
    z = np.stack((shared + 0.4 * (2 * y - 1), shared, *rng.normal(size=(2, 4000))), 1)  # only a difference tells

    def study(x: np.ndarray, sizes: list[int]) -> list[Estimate]:
        space = Vector(tuple(f"x{i}" for i in range(x.shape[1])), ("no", "yes"))
        parts = [Rows(torch.from_numpy(x[a:b]), torch.from_numpy(y[a:b]), torch.arange(a, b))
                 for a, b in ((0, 2500), (2500, 3000), (3000, 4000))]  # fmt: skip
        base = open_data("two-moons", n=100)
        data = Dataset("made", "made", space, *parts, base.fingerprint, base.split_hash, None, base.preflight)
        bayes = Generative("naive-bayes", {"kinds": "gaussian"})
        curves = learning_curves(Draws(data), [bayes, Discriminative(1e-6)], sizes, 5)
        return compare_curves(*curves, sizes).points

    few, many = study(x, [240])[0], study(z, [1000])[0]
    evidence(id="TR-06", system="Learning curves", claim="60 independent features, 240 labels: accuracy of naive Bayes "
             "minus logistic regression, lower end", reference="Ng & Jordan 2002", reached=few.low, tolerance=0.01,
             at_least=True)  # fmt: skip
    evidence(id="TR-06", system="Learning curves", claim="correlated features, 1,000 labels: accuracy of logistic "
             "regression minus naive Bayes, lower end", reference="Ng & Jordan 2002", reached=-many.high,
             tolerance=0.05, at_least=True)  # fmt: skip


def test_curves_are_those_of_scikit_learn(binary_digits: Dataset, evidence):
    """The same rows to scikit-learn's BernoulliNB and LogisticRegression: the same answers."""
    draws, sizes = Draws(binary_digits), [20, 100]
    ours = learning_curves(draws, [Generative("naive-bayes", {"kinds": "bernoulli", "smoothing": 1.0}),
                                   Discriminative(1.0)], sizes, 2)  # fmt: skip
    gaps = []
    for i, n in enumerate(sizes):
        for r in range(2):
            rows = draws.labelled(r, n)
            x, y, test = rows.x.flatten(1).numpy(), draws.where.of(rows).numpy(), draws.test.x.flatten(1).numpy()
            peers = (BernoulliNB(alpha=1.0).fit(x, y), LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(x, y))
            for curve, peer in zip(ours, peers):
                gaps.append(abs(float(curve.correct[i, r].mean()) - (peer.predict(test) == draws.truth.numpy()).mean()))
    evidence(id="TR-06", system="Learning curves", claim="accuracy with 20 and 100 labels, naive Bayes and logistic",
             reference="sklearn BernoulliNB, LogisticRegression", reached=max(gaps), tolerance=0.013,
             unit="of 169 rows (ties)")  # fmt: skip


def test_unlabelled_rows_find_the_classes(evidence):
    """Two blobs, two labels each: with rows without labels the classifier is nearly the best there is."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 2
    x = torch.randn(600, 2, generator=g).double() * torch.tensor([1.0, 3.0]) + 3.0 * y[:, None] * torch.tensor(
        [1.0, 0.0]
    )
    labelled = Rows(x[:4], y[:4], torch.arange(4))
    unlabelled = Rows(x[4:400], torch.full((396,), -1), torch.arange(4, 400))
    accuracy = []
    for weight in (0.0, 1.0):
        model = GaussianMixture((2,), 1, "diag", classes=2, reg_covar=1e-2)
        model.space = Vector(("a", "b"), ("0", "1"))
        learn_semi(model, labelled, unlabelled, weight=weight)
        said = model.responsibilities(x[400:]).sum(2).argmax(1)
        accuracy.append(float((said == y[400:]).double().mean()))
    bayes = 0.9332  # Phi(1.5)
    evidence(id="TR-17", system="Unlabelled rows", claim="two Gaussians, 4 labels and 396 rows without: accuracy "
             "short of the best possible", reference="closed form, Phi(1.5)", reached=bayes - accuracy[1],
             tolerance=0.04)  # fmt: skip
    assert accuracy[1] > accuracy[0] + 0.05


def test_a_weight_of_zero_ignores_unlabelled_rows():
    space = Vector(("a",), ("0", "1"))
    labelled = Rows(torch.tensor([[0.0], [1.0], [5.0], [6.0]]).double(), torch.tensor([0, 0, 1, 1]), torch.arange(4))
    noise = Rows(torch.full((50, 1), 3.0).double(), torch.full((50,), -1), torch.arange(50))
    models = []
    for more in (noise, noise[:1]):
        model = build("naive-bayes", space, {"kinds": "gaussian"})
        models.append(learn_semi(model, labelled, more, weight=0.0))
    probe = torch.linspace(-1, 7, 9)[:, None].double()
    assert torch.allclose(models[0].log_prob(probe), models[1].log_prob(probe), atol=1e-12)  # type: ignore[operator]


@pytest.mark.slow
def test_a_flow_learns_from_unlabelled_rows(evidence):
    """By gradients: labelled log p(x, y) plus unlabelled log p(x)."""
    moons = open_data("two-moons", n=2000)
    x = moons.train.x
    y = (x[:, 1] > 0.25 + 0.0 * x[:, 0]).long() if moons.train.y is None else moons.train.y
    space = Vector(("a", "b"), ("0", "1"))
    first = torch.cat([(y == c).nonzero()[:5, 0] for c in (0, 1)])
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[first] = False
    labelled = Rows(x[first], y[first], torch.arange(10))
    unlabelled = Rows(x[rest][:600], torch.full((600,), -1), torch.arange(10, 610))
    model = build("flow", space, {"transforms": 2, "width": 32, "depth": 1, "bins": 8})
    learn_semi(model, labelled, unlabelled, budget=Budget(steps=150))
    assert isinstance(model.inner, torch.nn.Module)
    nats = float(model.log_prob(x[-200:]).detach().mean())  # type: ignore[operator]
    alone = build("flow", space, {"transforms": 2, "width": 32, "depth": 1, "bins": 8})
    learn_semi(alone, labelled, unlabelled, weight=0.0, budget=Budget(steps=150))
    gain = nats - float(alone.log_prob(x[-200:]).detach().mean())  # type: ignore[operator]
    evidence(id="TR-17", system="Unlabelled rows", claim="flow on two moons, 10 labels: held-out nats gained from "
             "600 rows without labels", reference="labels alone", reached=gain, tolerance=0.3, unit="nats",
             at_least=True)  # fmt: skip


@pytest.mark.slow
def test_rows_of_a_table_without_labels_enter_by_the_marginal(evidence):
    """Two blobs, their label a column: gradients of log sum_y p(x, y), eight labels and 500 rows without."""
    g = torch.Generator().manual_seed(1)
    y = torch.arange(1100) % 2
    x = torch.randn(1100, 2, generator=g).double() * torch.tensor([0.7, 3.0]) + 3.0 * y[:, None] * torch.tensor([1, 0])
    space = Table((Column("a", "real", "float64"), Column("b", "real", "float64"),
                   Column("y", "category", "str", ("no", "yes"))), target="y")  # fmt: skip
    full = torch.cat((x, y[:, None].double()), 1)
    where, test = labelling(space), Rows(full[512:], None, torch.arange(512, 1100))
    labelled, unlabelled = (
        Rows(full[:8], None, torch.arange(8)),
        where.hide(Rows(full[12:512], None, torch.arange(500))),
    )
    nats, accuracy = [], []
    for weight in (0.0, 0.05):
        model = build("flow", space, {"transforms": 2, "width": 32, "depth": 1})
        learn_semi(model, labelled, unlabelled, weight=weight, budget=Budget(steps=250))
        found = posterior(model, test.x)
        accuracy.append(float((found.label == y[512:]).double().mean()))
        nats.append(float(torch.logsumexp(found.log_joint, 1).mean()))  # a bound of log p(x)
    words = f"accuracy {accuracy[0]:.3f} by the labels alone, {accuracy[1]:.3f} with them"
    evidence(id="TR-17", system="Unlabelled rows", claim="flow on a table, 8 labels: held-out nats of p(x) gained "
             f"from 500 rows without labels ({words})", reference="labels alone", reached=nats[1] - nats[0],
             tolerance=0.3, unit="nats", at_least=True)  # fmt: skip
    assert accuracy[1] > 0.8


def test_the_objective_of_a_table_is_the_sum_over_its_labels():
    """Weight 1: labelled rows by log p(x, y), others by log sum_y p(x, y), each with its own noise, at any batch."""
    space = Table((Column("a", "real", "float64"), Column("y", "category", "str", ("no", "yes", "so"))), target="y")
    model = build("flow", space, {"transforms": 1, "width": 8, "depth": 1, "dropout": 0.5})
    x = torch.tensor([[0.3, 1.0], [1.0, torch.nan], [-2.0, 0.0], [0.1, torch.nan]]).double()
    model.initialise(Rows(x.nan_to_num(2.0), None, torch.arange(4)))
    where = labelling(space)
    joint = semi_supervised._log_joint(model, where)
    loss = semi_supervised_nll(joint, 3, lambda b: where.of(Rows(b.x, b.y, b.rng.ids)))
    rng = Streams(0, 4)
    whole = loss(Batch(x, None, rng))
    parts = [loss(Batch(x[i : i + 1], None, rng.take(torch.tensor([i])))) for i in range(4)]
    assert float(whole.total.detach()) == pytest.approx(sum(float(p.total.detach()) for p in parts), rel=1e-5)
    model.eval()
    rows = x[1:2].repeat(3, 1)
    rows[:, 1] = torch.arange(3.0)
    streams = Streams(0, [1, 1, 1]).child("noise")
    bound = model.log_prob_bound(rows, rng=streams, k=1)  # type: ignore[operator]
    want = -float(torch.logsumexp(bound.double(), 0).detach())
    assert float(loss(Batch(x[1:2], None, rng.take(torch.tensor([1])))).total.detach()) == pytest.approx(want, rel=1e-5)


def test_a_discriminative_classifier_has_no_other_answers(binary_digits: Dataset, evidence):
    draws = Draws(binary_digits)
    bayes, linear = Generative("naive-bayes", {"kinds": "categorical"}), Discriminative(1.0)
    trained = linear.learn(draws.space, draws.labelled(0, 200))
    assert ask("accuracy", draws, linear, trained, 20, draws.space) > 0.8
    for question in QUESTIONS[1:]:
        with pytest.raises(NotSupported, match=r"models p\(y \| x\) only"):
            ask(question, draws, linear, trained, 20, draws.space)
    table = capability_table(draws, [bayes, linear], labels=20)
    answered = sum(isinstance(a, float) for a in table["naive-bayes"].values())
    refused = sum(str(a).startswith("no:") for a in table["logistic"].values())
    evidence(id="TR-02", system="Generative and discriminative", claim=f"binary digits, naive-bayes: {_told(table)}",
             reference="five questions; logistic regression answers one", reached=answered, tolerance=5,
             at_least=True)  # fmt: skip
    assert refused == 4


def _told(table: dict) -> str:
    return ", ".join(f"{q} {a:.3f}" for q, a in table["naive-bayes"].items() if isinstance(a, float))


def test_bad_requests_are_refused(binary_digits: Dataset):
    draws = Draws(binary_digits)
    with pytest.raises(ConfigError, match="1 repeats give no interval"):
        learning_curves(draws, [Discriminative()], [20], 1)
    with pytest.raises(ConfigError, match="do not fit"):
        learning_curves(draws, [Discriminative()], [5], 3)
    with pytest.raises(NotSupported, match="No contender is generative"):
        learning_curves(draws, [Discriminative()], [20], 3, unlabelled=50)
    with pytest.raises(NotSupported, match="rows without labels tell it nothing"):
        Discriminative().learn(draws.space, draws.labelled(0, 20), draws.unlabelled(0, 20))
    with pytest.raises(NotSupported, match="no marginal over labels"):
        learn_semi(build("gmm", open_data("iris").space, {}), draws.pool, draws.pool)


@pytest.mark.slow
def test_digits_with_few_labels(binary_digits: Dataset, evidence):
    """TR-06 and TR-17 on the digits: both curves, and the gain from 1,400 rows without labels, or its absence."""
    draws, sizes = Draws(binary_digits), [10, 20, 50, 100]
    bayes = Generative("naive-bayes", {"kinds": "bernoulli", "smoothing": 1.0})
    curves = learning_curves(draws, [bayes, Discriminative(1e-6)], sizes, 6, unlabelled=1500)
    gains = compare_curves(curves[2], curves[0], sizes).points
    told = [", ".join(f"{float(a.mean()):.3f}" for a in c.correct) for c in curves]
    evidence(id="TR-17", system="Unlabelled rows", claim=f"digits, 10 20 50 100 labels: naive Bayes {told[0]}; "
             f"with unlabelled {told[2]}; gain at 10, lower end", reference="labels alone", reached=gains[0].low,
             tolerance=0.0, at_least=True)  # fmt: skip
    evidence(id="TR-06", system="Learning curves", claim=f"digits, 10 20 50 100 labels: logistic {told[1]}; "
             "naive Bayes at 100 minus it", reference="either may win", reached=float(curves[0].correct[3].mean()
             - curves[1].correct[3].mean()), tolerance=-0.05, at_least=True)  # fmt: skip


@pytest.mark.slow
@pytest.mark.shared
def test_adult_logistic_regression_is_a_calibrated_detector(shared_data: Path, evidence):
    """TR-27: the official training rows, and the official test rows."""
    import pandas as pd

    from protea.data.tables import read_frame
    from protea.inference.inputs import Inputs
    from protea.inference.logistic import SoftmaxRegression
    from protea.spaces import Table

    train, test = (read_frame(shared_data / "tabular" / f"{name}.csv")[0] for name in ("adult", "adult_test"))
    space = Table.infer(pd.concat((train, test), ignore_index=True), target="income")
    where, x = labelling(space), space.encode(train)
    inputs = Inputs(space, where).fit(x)
    model = SoftmaxRegression(2, l2=1.0).fit(inputs(x), x[:, where.column].long())
    t = space.encode(test)
    found = judge_probabilities(model.log_posterior(inputs(t)), t[:, where.column].long(), replicates=20)
    told = f"Brier {found['brier'].value:.4f}, AUC {found['auc'].value:.4f}, ECE {found['calibration_error'].value:.4f}"
    evidence(id="TR-27", system="Logistic regression", claim=f"Adult, official test rows: accuracy ({told})",
             reference="labels", reached=found["accuracy"].value, tolerance=0.84, at_least=True)  # fmt: skip
    assert found["calibration_error"].value < 0.03
