"""Naive Bayes in spaces: tables with a target, conditionals by enumeration, and bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from protea.data import open_data
from protea.distributions.bernoulli import Bernoulli
from protea.distributions.categorical import Categorical
from protea.distributions.gaussian import Gaussian
from protea.errors import ConfigError, DataError
from protea.models import MODELS
from protea.models.classical.naive_bayes import ENTRY, NaiveBayes, NaiveBayesConfig
from protea.models.classical.table_mixture import MixtureConfig
from protea.space import Rows
from protea.spaces import Image, Table, Vector


def shop(n: int = 200, missing: bool = False) -> tuple[Table, Rows]:
    """A table of a category, a whole number with missing values and a label that depends on both."""
    rng = np.random.default_rng(0)
    city, age = rng.integers(0, 3, n), np.round(rng.normal(40, 10, n))
    paid = (rng.random(n) < 1 / (1 + np.exp(-(age - 40) / 5 - city + 1))).astype(int)
    frame = pd.DataFrame(
        {"city": np.array(["Bonn", "Kiel", "Ulm"])[city], "age": age, "paid": np.array(["no", "yes"])[paid]}
    )
    frame.loc[::9, "age"] = np.nan
    if missing:
        frame.loc[::4, "paid"] = None
    space = Table.infer(frame, target="paid")
    return space, Rows(space.encode(frame), None, torch.arange(n))


def learnt(space, rows: Rows, **settings) -> NaiveBayes:
    model = ENTRY.build(space, NaiveBayesConfig(**settings))
    assert isinstance(model, NaiveBayes)
    model.initialise(rows)
    return model


def test_a_tables_label_is_a_column():
    """log p of a row is log p(label) + log p(rest | label); the label alone has the counted frequency."""
    space, rows = shop()
    model = learnt(space, rows)
    target = space.target_index
    assert target == 2 and model.target == 2
    y = rows.x[:, 2].long()
    joint = model.log_joint(rows.x)
    torch.testing.assert_close(model.log_prob(rows.x), joint.gather(1, y[:, None])[:, 0], atol=1e-12, rtol=0)
    pi = (torch.bincount(y, minlength=2).double() + 1) / (len(y) + 2)  # weight_prior 2 is Laplace's
    torch.testing.assert_close(model.class_log_prior.exp(), pi, atol=1e-12, rtol=0)
    only = torch.tensor([False, False, True])
    evidence = model.given(rows.x[:1], only[None]).evidence
    assert float(evidence) == pytest.approx(float(pi[y[0]].log()), abs=1e-12)
    assert float((model.log_posterior(rows.x).argmax(1) == y).double().mean()) > 0.65
    hidden = rows.x.clone()
    hidden[:, 2] = math.nan
    given = model.given(hidden, ~hidden.isnan() | (torch.arange(3) == 1))  # a missing age is a value, not unknown
    assert torch.equal(given.mean[:, 2].long(), model.log_posterior(rows.x).argmax(1))


def test_labels_that_are_missing_are_learnt_from():
    """They have their share of the rows, and count by p(y | x): EM raises the likelihood of all rows."""
    space, rows = shop(missing=True)
    model = learnt(space, rows)
    gone = rows.x[:, 2].isnan()
    rate = float(gone.double().mean())
    want = model.log_joint(rows.x).logsumexp(1) + math.log(rate)
    torch.testing.assert_close(model.log_prob(rows.x)[gone], want[gone], atol=1e-9, rtol=0)
    assert float(model.sample(4000)[:, 2].isnan().double().mean()) == pytest.approx(rate, abs=0.03)
    before = float(model.log_prob(rows.x).sum() + model.log_prior())
    for _ in range(5):
        model.maximise(model.expect(rows.x))
    assert float(model.log_prob(rows.x).sum() + model.log_prior()) > before


def test_conditionals_are_enumeration():
    """`given` of a discrete naive Bayes against sums over its whole joint."""
    model = NaiveBayes(Categorical(2, (3, 2), (2,), prior=0.7), 2, target=1)
    rng = np.random.default_rng(1)
    x = torch.from_numpy(np.stack([rng.integers(0, m, 60) for m in (3, 2, 2)], 1).astype(np.float64))
    model.initialise(Rows(x, None, torch.arange(60)))
    every = torch.tensor(list(itertools.product(range(3), range(2), range(2))), dtype=torch.float64)
    p = model.log_prob(every).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    for mask in itertools.product([False, True], repeat=3):
        observed = torch.tensor(mask)
        given = model.given(every[7:8], observed[None])
        same = (every[:, observed] == every[7, observed]).all(1)
        assert float(given.evidence.exp()) == pytest.approx(float(p[same].sum()), abs=1e-12)
        want = float(p[7] / p[same].sum())
        assert float(given.log_prob(every[7:8]).exp()) == pytest.approx(want, abs=1e-12)


def test_symbols_never_seen():
    """Smoothed: finite. Without smoothing: impossible rows score -inf, and their posterior is the prior, never NaN."""
    x, y = torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([0, 0, 1])
    rows = Rows(x, y, torch.arange(3))
    smooth = NaiveBayes(Categorical(2, 3, (1,), 1.0), 2)
    smooth.initialise(rows)
    assert smooth.log_prob(torch.tensor([[2.0]])).isfinite().all()
    bare = NaiveBayes(Categorical(2, 3, (1,), 0.0), 2)
    bare.initialise(rows)
    bare.family.probabilities = torch.tensor([[[1.0, 0, 0]], [[0, 1.0, 0]]])
    unseen = torch.tensor([[2.0]])
    assert bare.log_prob(unseen).item() == -math.inf
    np.testing.assert_allclose(bare.log_posterior(unseen).exp()[0], [2 / 3, 1 / 3], atol=1e-12)
    assert bare.log_posterior(torch.tensor([[1.0]])).exp().tolist() == [[0.0, 1.0]]


def test_one_class_only():
    """A class without rows is impossible by counting, possible by the prior of a target column; nothing is NaN."""
    x, y = torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([1, 1, 1])
    model = NaiveBayes(Bernoulli(2, (1,)), 2)
    model.initialise(Rows(x, y, torch.arange(3)))
    assert model.log_posterior(x).exp()[:, 1].tolist() == [1.0, 1.0, 1.0]
    assert model.log_prob(x).isfinite().all() and set(model.sample(20).unique().tolist()) <= {0.0, 1.0}
    column = torch.cat((y[:, None].double(), x), 1)
    inside = NaiveBayes(Bernoulli(2, (1,)), 2, target=0, weight_prior=2.0)
    inside.initialise(Rows(column, None, torch.arange(3)))
    assert inside.log_posterior(column).exp()[0, 1] == pytest.approx(4 * 0.4 / (4 * 0.4 + 0.5))
    single = NaiveBayes(Gaussian(1, (1,), "diag"), 1)
    single.initialise(Rows(x, torch.zeros(3, dtype=torch.int64), torch.arange(3)))
    assert single.log_posterior(x).exp().tolist() == [[1.0]] * 3


def test_labels_that_are_no_labels():
    x = torch.tensor([[0.0], [1.0]])
    model = NaiveBayes(Bernoulli(2, (1,)), 2)
    with pytest.raises(DataError, match="not whole numbers"):
        model.initialise(Rows(x, torch.tensor([0.0, 0.5]), torch.arange(2)))
    with pytest.raises(DataError, match="Label 2"):
        model.initialise(Rows(x, torch.tensor([0, 2]), torch.arange(2)))
    with pytest.raises(DataError, match="without labels"):
        model.initialise(Rows(x, None, torch.arange(2)))
    model.initialise(Rows(x, torch.tensor([0.0, 1.0]), torch.arange(2)))  # whole numbers of any dtype are labels
    space, rows = shop()
    broken = rows.x.clone()
    broken[3, 2] = 0.5
    with pytest.raises(DataError, match=r"Row 3 has the label 0\.5"):
        learnt(space, rows).expect(broken)


def test_spaces_without_labels_are_refused():
    space, _ = shop()
    plain = Table(space.columns)
    for where, why in ((plain, "names no target"), (Vector(("a",)), "no labels"), (Image(1, 2, 2), "no labels"),
                       (Table(space.columns, target="age"), "'age' is a number")):  # fmt: skip
        assert why in ENTRY.refuses(where)
        with pytest.raises(ConfigError, match="target"):
            ENTRY.build(where, NaiveBayesConfig())
    assert ENTRY.refuses(space) == "" and ENTRY.refuses(Vector(("a",), ("x", "y"))) == ""


def test_columns_without_values():
    """A column that is missing in every row of a class, and in all rows: its rate says so, and nothing is NaN."""
    space, rows = shop()
    x = rows.x.clone()
    x[x[:, 2] == 1, 1] = math.nan
    for kinds in (("categorical", "gaussian"), ("categorical", "histogram")):
        model = learnt(space, Rows(x, None, rows.ids), kinds=kinds)
        assert model.log_prob(x).isfinite().all() and not model.log_posterior(x).isnan().any()
        assert float(model.log_posterior(torch.tensor([[0.0, 40.0, math.nan]])).exp()[0, 1]) < 0.1
        everywhere = rows.x.clone()
        everywhere[:, 1] = math.nan
        model = learnt(space, Rows(everywhere, None, rows.ids), kinds=kinds)
        assert model.log_prob(rows.x).isfinite().all() and model.sample(50).shape == (50, 3)


@pytest.mark.parametrize(("kinds", "why"), [
    ("poisson", "no kind of column 'poisson'"), (("categorical",), "1 kinds were given for 2"),
    (("gaussian", "gaussian"), "'city' holds names"), (("categorical", "categorical"), "'age' has no fixed levels"),
    (("categorical", "multinomial"), "'age' have missing values"),
])  # fmt: skip
def test_kinds_that_do_not_fit(kinds, why: str):
    space, _ = shop()
    with pytest.raises(ConfigError, match=why):
        ENTRY.build(space, NaiveBayesConfig(kinds=kinds))


def test_a_mixture_of_few_rows():
    """More members than rows, repeated rows, an empty search: still a model."""
    space, rows = shop(5)
    for k in (1, 9):
        model = MODELS["mixture"].build(space, MixtureConfig(k=k, bins=4, restarts=2))
        model.initialise(rows)
        model.maximise(model.expect(rows.x))  # type: ignore[attr-defined]
        assert model.log_prob(rows.x).isfinite().all()  # type: ignore[attr-defined]
        assert len(space.decode(model.sample(7))) == 7
    assert MODELS["mixture"].suggest(space, rows, 5.0).k >= 1
    assert MODELS["mixture"].suggest(space, rows[:1], 5.0).k == 1


def test_suggestions_suit_their_data():
    """Numbers that are normal given the class are described as such where that scores better, spikes by histograms."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    frame = pd.DataFrame({
        "normal": np.round(rng.normal(50 * y, 12)),
        "spike": np.where(rng.random(400) < 0.8, 0, rng.integers(1, 10**5, 400)),
        "y": np.array(["a", "b"])[y],
    })  # fmt: skip
    space = Table.infer(frame, target="y")
    config = ENTRY.suggest(space, Rows(space.encode(frame), None, torch.arange(400)), 10.0)
    assert config.kinds == ("gaussian", "histogram")
    iris = open_data("iris")
    model = learnt(iris.space, iris.train)
    x = torch.cat((iris.holdout.x, iris.validation.x))
    assert float((model.log_posterior(x).argmax(1) == x[:, 4]).double().mean()) >= 0.85
