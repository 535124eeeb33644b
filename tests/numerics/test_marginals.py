"""Independent marginals: exact masses and densities, Lidstone smoothing, tails, missing values, labels."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.naive_bayes import CategoricalNB

from protea.errors import ConfigError, DataError
from protea.models.classical.marginals import ENTRY, Marginals
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Image, Table, Tokens, Vector


def learn(model: Marginals, x: torch.Tensor, y: torch.Tensor | None = None) -> Marginals:
    model.initialise(Rows(x, y, torch.arange(len(x))))
    model.maximise(model.expect(x, y))
    return model


def one_column(values, bins: int = 16, smoothing: float = 0.5) -> tuple[Marginals, torch.Tensor]:
    frame = pd.DataFrame({"a": values})
    space = Table.infer(frame)
    x = space.encode(frame)
    return learn(Marginals(space, bins, smoothing), x), x


def test_pixels_follow_scikit_learn(evidence):
    """Per-class smoothed categoricals are a categorical naive Bayes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, size=120)
    x = rng.binomial(4, np.linspace(0.1, 0.9, 6)[None, :] ** (1 + y[:, None])).astype(np.int64)
    model = learn(Marginals(Image(1, 2, 3, levels=5, classes=("a", "b", "c")), smoothing=0.7),
                  torch.from_numpy(x.astype(np.uint8)).reshape(-1, 1, 2, 3), torch.from_numpy(y))  # fmt: skip
    sk = CategoricalNB(alpha=0.7, min_categories=5).fit(x, y)
    data = torch.from_numpy(x.astype(np.uint8)).reshape(-1, 1, 2, 3)
    joint = torch.stack([model.log_prob(data, torch.full((120,), c)) for c in range(3)], 1) + model.class_prior.log()
    error = np.abs(joint.numpy() - sk.predict_joint_log_proba(x)).max()
    assert torch.allclose(model.log_prob(data), torch.logsumexp(joint, 1), atol=1e-12)
    evidence(
        id="TR-03", system="Independent marginals", claim="joint log-probability with Lidstone smoothing",
        reference="sklearn.naive_bayes.CategoricalNB", reached=error, tolerance=1e-10, unit="nats",
    )  # fmt: skip


def test_a_real_field_is_a_density():
    """It integrates to one over bins and both tails, and its masses are the smoothed shares of the bins."""
    z = Streams(0, 500).normal(1, dtype=torch.float64) ** 3
    model = learn(Marginals(Vector(("a",)), bins=20, smoothing=0.5), z)
    edges = model.histogram.edges[0]
    grid = torch.cat([torch.linspace(0, 1, 401, dtype=torch.float64)[:-1] * (b - a) + a + (b - a) / 800
                      for a, b in pairwise(edges)])  # fmt: skip
    inside = float((model.log_prob(grid[:, None]).exp().reshape(20, 400).mean(1) * edges.diff()).sum())
    tail = 0.5 / (500 + 0.5 * 22)
    assert inside == pytest.approx(1 - 2 * tail, rel=1e-9)
    far = torch.tensor([[edges[-1] + d] for d in (1.0, 2.0)], dtype=torch.float64)
    s = float(edges[-1] - edges[-2])
    want = math.log(tail) + stats.expon(scale=s).logpdf([1.0, 2.0])
    np.testing.assert_allclose(model.log_prob(far).numpy(), want, rtol=1e-9)
    counts, _ = np.histogram(z.numpy(), bins=edges.numpy())
    mass = model.histogram.log_mass[0, 1:21].exp().numpy()
    np.testing.assert_allclose(mass, (counts + 0.5) / (500 + 0.5 * 22), rtol=1e-9)
    assert counts.max() <= 26  # equal mass: 25 a bin


@pytest.mark.parametrize("values", [
    [1, 2, 2, 3, 7, 7, 7, 40],
    [0] * 500 + list(range(0, 90000, 450)),
    [0.25, 0.5, 0.5, 1.75, 2.0] * 3,
])  # fmt: skip
def test_grid_masses_sum_to_one(values):
    model, x = one_column(values)
    step, low, high = float(model.histogram.step[0]), float(x.min()), float(x.max())
    width = 60 * float(model.histogram.tails.max()) * step
    cells = torch.arange(round((low - width) / step), round((high + width) / step) + 1) * step
    assert float(model.log_prob(cells[:, None]).exp().sum()) == pytest.approx(1, abs=1e-9)
    drawn = model.sample(200)
    assert torch.allclose(drawn / step, (drawn / step).round(), atol=1e-9)


def test_few_distinct_values_keep_their_own_mass():
    model, _ = one_column([1, 2, 2, 3, 7, 7, 7, 40], smoothing=1e-6)
    p = model.log_prob(torch.tensor([[1.0], [2], [3], [7], [40], [20]], dtype=torch.float64)).exp()
    np.testing.assert_allclose(p[:5], [1 / 8, 2 / 8, 1 / 8, 3 / 8, 1 / 8], rtol=1e-4)
    assert 0 < p[5] < 1e-6


def test_a_heavy_value_among_many_keeps_its_mass():
    values = [0] * 900 + list(np.random.default_rng(0).integers(1, 10**6, size=100))
    model, _ = one_column(values, bins=16)
    assert float(model.log_prob(torch.zeros(1, 1)).exp()) == pytest.approx(0.9, abs=0.02)


def test_missing_values_are_a_bernoulli():
    frame = pd.DataFrame({"a": [1.5, None, 2.25, 3.125] * 25, "c": ["x", "y", None, "x"] * 25})
    space = Table.infer(frame)
    x = space.encode(frame)
    model = learn(Marginals(space, bins=4, smoothing=1e-9), x)
    nothing = torch.full((1, 2), math.nan, dtype=torch.float64)
    assert float(model.log_prob(nothing)) == pytest.approx(2 * math.log(0.25), abs=1e-6)
    drawn = model.sample(4000)
    np.testing.assert_allclose(drawn.isnan().double().mean(0), [0.25, 0.25], atol=0.03)


@pytest.mark.parametrize("seed", [0, 1])
def test_draws_follow_the_distribution(seed: int, evidence):
    """Chi-squared over codes; Kolmogorov-Smirnov for reals, through the model's own distribution function."""
    x = Streams(5, 400).normal(1, dtype=torch.float64).exp()
    model = learn(Marginals(Vector(("a",)), bins=12, smoothing=0.5), x)
    drawn = model.sample(4000, rng=seed)[:, 0]
    edges, mass = model.histogram.edges[0], model.histogram.log_mass[0].exp()
    inside = drawn[(drawn >= edges[0]) & (drawn < edges[-1])]
    cdf = np.interp(inside.numpy(), edges.numpy(), np.concatenate([[0], (mass[1:-1] / mass[1:-1].sum()).cumsum(0)]))
    picture = torch.tensor([[[[0, 3]]], [[[1, 3]]], [[[2, 1]]], [[[0, 3]]]], dtype=torch.uint8)
    codes = learn(Marginals(Image(1, 1, 2, levels=4), smoothing=0.5), picture)
    pixels = codes.sample(4000, rng=seed)
    expected = codes.histogram.log_mass[0].exp().reshape(2, 4).numpy() * 4000
    p = [stats.kstest(cdf, "uniform").pvalue]
    for f in range(2):
        seen = np.bincount(pixels[:, 0, 0, f].numpy(), minlength=4)
        p.append(stats.chisquare(seen, expected[f]).pvalue)
    evidence(
        id="TR-13", system="Independent marginals", claim="draws follow the distribution",
        reference="scipy.stats.kstest, chisquare", reached=min(p), tolerance=1e-3, unit="p-value", at_least=True,
    )  # fmt: skip


def test_bounds_of_the_schema_end_the_tails():
    space = Table.infer(pd.DataFrame({"a": [0.1, 0.7, 1.3, 2.9, 0.4]}))
    column = replace(space.columns[0], kind="real", low=0.0, high=3.0)
    model = learn(
        Marginals(Table((column,)), bins=4, smoothing=1.0),
        torch.tensor([[0.1], [0.7], [1.3], [2.9], [0.4]], dtype=torch.float64),
    )
    grid = (torch.arange(300_000, dtype=torch.float64)[:, None] + 0.5) * 1e-5
    assert float(model.log_prob(grid).exp().sum() * 1e-5) == pytest.approx(1, abs=1e-4)
    assert model.log_prob(torch.tensor([[-0.1], [3.1]], dtype=torch.float64)).tolist() == [-math.inf, -math.inf]
    drawn = model.sample(2000)
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 3
    ends = learn(
        Marginals(Table((replace(column, low=0.1, high=2.9),)), bins=4),
        torch.tensor([[0.1], [0.7], [2.9]], dtype=torch.float64),
    )
    assert ends.log_prob(torch.tensor([[0.1], [2.9]], dtype=torch.float64)).isfinite().all()


def test_a_declared_range_of_integers_is_a_smoothed_categorical():
    space = Table.infer(pd.DataFrame({"a": [18, 20, 20, 19]}))
    column = replace(space.columns[0], low=18.0, high=21.0)
    x = torch.tensor([[18.0], [20], [20], [19]], dtype=torch.float64)
    model = learn(Marginals(Table((column,)), smoothing=1.0), x)
    p = model.log_prob(torch.tensor([[18.0], [19], [20], [21], [22], [17]], dtype=torch.float64)).exp()
    np.testing.assert_allclose(p, [2 / 8, 2 / 8, 3 / 8, 1 / 8, 0, 0], atol=1e-12)
    assert set(model.sample(400)[:, 0].tolist()) == {18.0, 19.0, 20.0, 21.0}


def test_unlabelled_rows_help():
    """Rows of unknown label count by their posterior, and the likelihood with its prior never falls."""
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, 2, size=200))
    x = torch.from_numpy(rng.binomial(1, np.where(y[:, None] == 1, 0.9, 0.1), size=(200, 12)).astype(np.uint8)).reshape(
        -1, 1, 3, 4
    )
    known = torch.where(torch.arange(200) < 6, y, -1)
    model = Marginals(Image(1, 3, 4, levels=2, classes=("a", "b")))
    model.initialise(Rows(x, known, torch.arange(200)))
    model.maximise(model.expect(x[:6], y[:6]))
    previous = -math.inf
    for _ in range(15):
        stats_ = model.expect(x, known)
        now = float(stats_["log_prob"] + model.log_prior())
        assert now >= previous - 1e-9
        previous = now
        model.maximise(stats_)
    whole = model.log_prob(x[6:], y[6:]).mean()
    few = learn(Marginals(Image(1, 3, 4, levels=2, classes=("a", "b"))), x[:6], y[:6]).log_prob(x[6:], y[6:]).mean()
    assert float(whole) > float(few) + 0.5


def test_given_updates_the_label_by_bayes_rule():
    y = torch.tensor([0, 1]).repeat(50)
    x = y.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 1, 2).contiguous()
    model = learn(Marginals(Image(1, 1, 2, levels=2, classes=("a", "b")), smoothing=1e-3), x, y)
    conditional = model.given(x[1], torch.tensor([[[True, False]]]))
    assert float(conditional.sample(500).double().mean()) > 0.99
    both = model.log_prob(x[1:2]) - model.log_prob(torch.tensor([[[[1, 0]]], [[[1, 1]]]], dtype=torch.uint8)).logsumexp(
        0
    )
    assert torch.allclose(conditional.log_prob(x[1:2]), both, atol=1e-9)


def test_the_pseudo_count_is_the_best_left_out():
    """`suggest` agrees with leaving out each row in turn."""
    x = torch.from_numpy(np.random.default_rng(0).poisson(0.7, size=(40, 1, 1, 3)).clip(0, 15).astype(np.uint8))
    space = Image(1, 1, 3, levels=16)

    def left_out(alpha: float) -> float:
        total = 0.0
        for i in range(40):
            rest = torch.cat((x[:i], x[i + 1 :]))
            total += float(learn(Marginals(space, smoothing=alpha), rest).log_prob(x[i : i + 1]))
        return total

    config = ENTRY.suggest(space, Rows(x, None, torch.arange(40)), 1.0)
    assert config.smoothing == max((1.0, 0.3, 0.1, 0.03, 0.01, 0.003), key=left_out)


def test_refusals():
    with pytest.raises(ConfigError, match="ngram"):
        Marginals(Tokens(4))
    with pytest.raises(ConfigError, match="smoothing"):
        Marginals(Vector(("a",)), smoothing=0.0)
    model = Marginals(Image(1, 1, 1, levels=4))
    with pytest.raises(DataError, match="holds 7"):
        model.expect(torch.tensor([[[[7]]]], dtype=torch.uint8))
    assert model.log_prob(torch.tensor([[[[7]]]], dtype=torch.uint8)).item() == -math.inf
