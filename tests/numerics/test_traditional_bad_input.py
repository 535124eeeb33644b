"""What the traditional models do with input that is empty, impossible or degenerate: an error that says so, or a
finite, documented answer; never NaN."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from protea.data import open_data
from protea.distributions.categorical import Categorical
from protea.distributions.gaussian import Gaussian
from protea.errors import DataError, ProteaError
from protea.inference.labelling import labelling
from protea.models.classical.gmm import GaussianMixture
from protea.models.classical.mixture import Mixture
from protea.models.classical.naive_bayes import NaiveBayes
from protea.models.markov.chain import Chain
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.lengths import Lengths
from protea.models.markov.topology import ergodic
from protea.space import Rows
from protea.training import Budget, fit
from protea.training.run import build

NAN = torch.nan


def rows(x: torch.Tensor, y: torch.Tensor | None = None) -> Rows:
    return Rows(x, y, torch.arange(len(x)))


def learnt(model, data: Rows, steps: int = 10):
    model.initialise(data)
    for _ in range(steps):
        model.maximise(model.expect(data.x, data.y))
    return model


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape))


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_rows_and_columns_of_which_nothing_is_known(covariance: str) -> None:
    """An unknown row has log p = 0; an unknown column keeps its start; draws and completions are finite."""
    x = normal(60, 3)
    x[7] = NAN
    x[:, 2] = NAN
    model = learnt(Mixture(Gaussian(2, (3,), covariance), 2), rows(x))
    log_p = model.log_prob(x)
    assert bool(torch.isfinite(log_p).all()) and float(log_p[7]) == pytest.approx(0.0, abs=1e-9)
    assert bool(torch.isfinite(model.sample(20)).all())
    filled = model.given(x, ~x.isnan()).mean
    assert bool(torch.isfinite(filled).all())


def test_a_column_of_a_table_without_values_is_refused(tmp_path) -> None:
    frame = pd.DataFrame({"a": np.arange(40.0) / 3, "gone": np.nan, "y": ["u", "v"] * 20})
    with pytest.raises(DataError, match=r"\['gone'\] of .* have no values at all") as caught:
        open_data(frame, target="y")
    assert "drop" in caught.value.remedy


@pytest.mark.parametrize("name", ["naive-bayes", "mixture"])
def test_a_row_of_a_table_without_values_has_a_probability(name: str) -> None:
    """Where cells may be missing, a row of missing cells is an observation: finite, and completed."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=80), "b": rng.choice(["u", "v"], 80), "y": rng.choice(["p", "q"], 80)})
    frame.loc[3, ["a", "b"]] = None
    data = open_data(frame, target="y")
    model = build(name, data.space, {})
    model.initialise(data.train)
    fit(model, data.train, budget=Budget(epochs=5), judge=None, progress=None)
    found = model.log_prob(data.space.encode(frame))  # type: ignore[operator]
    assert bool(torch.isfinite(found).all())


def test_labels_of_one_class_are_refused(tmp_path) -> None:
    frame = pd.DataFrame({"a": np.arange(40.0) / 3, "y": "only"})
    with pytest.raises(DataError, match="one class only"):
        labelling(open_data(frame, target="y").space)


def test_a_class_that_no_row_has_keeps_every_posterior_finite() -> None:
    x, y = normal(40, 2), torch.zeros(40, dtype=torch.int64)
    model = NaiveBayes(Gaussian(2, (2,), "diag"), 2)
    model.initialise(rows(x, y))
    model.maximise(model.expect(x, y))
    posterior = model.log_posterior(x).exp()
    assert bool((posterior[:, 0] == 1).all()) and bool(torch.isfinite(model.log_prob(x)).all())


@pytest.mark.parametrize("alpha, finite", [(1.0, True), (0.0, False)])
def test_symbols_that_were_never_seen(alpha: float, finite: bool) -> None:
    """With smoothing a finite score, without it minus infinity; never NaN, and draws stay possible."""
    x = torch.tensor([[0], [1], [0], [1]])
    model = learnt(Mixture(Categorical(1, 3, (1,), prior=alpha), 1), rows(x), 1)
    log_p = model.log_prob(torch.tensor([[0], [2]]))
    assert not bool(log_p.isnan().any()) and math.isfinite(float(log_p[1])) == finite
    assert float(log_p[1]) == pytest.approx(math.log(1 / 7) if finite else -math.inf)


def test_a_chain_meets_a_symbol_it_was_never_taught() -> None:
    """Smoothed emissions: forward, posterior and Viterbi stay finite."""
    x = torch.randint(0, 3, (20, 6), generator=torch.Generator().manual_seed(0))
    model = learnt(HiddenMarkov(Categorical(2, 4, prior=0.5), Chain(ergodic(2)), steps=6), rows(x))
    unseen = torch.full((1, 6), 3)
    assert bool(torch.isfinite(model.log_prob(unseen)).all())
    assert bool(torch.isfinite(model.posterior(unseen)).all()) and bool(torch.isfinite(model.decode(unseen)[1]).all())


def test_series_of_length_0_and_1() -> None:
    """A series of length 0 has the smoothed share p(L = 0) = (1 + 1/5) / (6 + 1) of its length; nothing is NaN."""
    x = torch.full((6, 4, 1), NAN, dtype=torch.float64)
    for i, n in enumerate((0, 1, 1, 2, 3, 4)):
        x[i, :n, 0] = normal(n)
    model = learnt(HiddenMarkov(Gaussian(2, (1,), "diag"), Chain(ergodic(2)), 4, Lengths(4)), rows(x))
    log_p = model.log_prob(x)
    assert bool(torch.isfinite(log_p).all()) and float(log_p[0].detach()) == pytest.approx(math.log(1.2 / 7), abs=1e-9)
    posterior, (path, score) = model.posterior(x[:2]), model.decode(x[:2])
    assert posterior.shape[:2] == (2, 4) and path.shape == (2, 4) and bool(torch.isfinite(score).all())


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_singular_data_and_more_members_than_rows(covariance: str) -> None:
    """Three copies of one point, a constant and a dependent column, eight members: finite, and never falling."""
    x = torch.cat((torch.ones(3, 3), torch.arange(4.0)[:, None] * torch.tensor([1.0, 0.0, 2.0]))).double()
    model = GaussianMixture((3,), 8, covariance)
    model.initialise(rows(x))
    before = -math.inf
    for _ in range(8):
        stats = model.expect(x)
        now = float(stats["log_prob"]) + float(model.log_prior())
        assert math.isfinite(now) and now >= before - 1e-9 * abs(now)
        before = now
        model.maximise(stats)
    assert bool(torch.isfinite(model.log_prob(x)).all()) and bool(torch.isfinite(model.sample(16)).all())


MAKERS = {"gmm": lambda: GaussianMixture((2,), 1, classes=2),
          "naive-bayes": lambda: NaiveBayes(Gaussian(2, (2,), "diag"), 2)}  # fmt: skip


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_labels_that_are_floats(make) -> None:
    """Whole numbers are taken as they are, fractions and labels out of range are named."""
    x = normal(20, 2)
    y = torch.arange(20) % 2
    whole = learnt(make(), rows(x, y.double()), 1)
    assert torch.allclose(whole.log_prob(x), learnt(make(), rows(x, y), 1).log_prob(x))
    for bad in (torch.full((20,), 0.5), torch.full((20,), 7)):
        with pytest.raises(ProteaError):
            learnt(make(), rows(x, bad), 1)


def test_float_labels_of_a_file(tmp_path) -> None:
    """0.0 and 1.0 are classes; 0.5 is refused with the file's name."""
    x = normal(40, 2).numpy()
    np.savez(tmp_path / "whole.npz", x=x, y=np.arange(40) % 2 * 1.0)
    assert open_data(tmp_path / "whole.npz").space.classes == ("0", "1")
    np.savez(tmp_path / "half.npz", x=x, y=np.full(40, 0.5))
    with pytest.raises(DataError, match="have type float64"):
        open_data(tmp_path / "half.npz")
