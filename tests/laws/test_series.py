"""The Series space, how series are opened, and mixtures of chains over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from protea.cli.sample_files import write
from protea.data.open import open_data
from protea.distributions.categorical import Categorical
from protea.errors import DataError
from protea.evaluation.report_series import plots
from protea.models.classical.mixture import Mixture
from protea.models.markov.chain import Chain
from protea.models.markov.family import MarkovFamily
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.topology import ergodic
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Series, space_from_json

SPACE = Series(("a", "b"), 4, ("x", "y"))
RAGGED = [np.array([[1.0, 2.0], [np.nan, 3.0], [4.0, np.nan]]), np.zeros((0, 2)), np.ones((4, 2))]


def test_series_go_there_and_back():
    x = SPACE.encode(RAGGED)
    assert x.shape == (3, 4, 2) and SPACE.lengths(x).tolist() == [3, 0, 4]
    for before, after in zip(RAGGED, SPACE.decode(x)):
        np.testing.assert_array_equal(before, after)
    assert space_from_json(SPACE.to_json()) == SPACE


def test_features_are_of_the_series():
    x = SPACE.encode([[[1, 0], [3, 0], [5, 0]], [], [[2, 7]]])
    f = SPACE.features(x)
    assert f.shape == (3, 1 + 8 * 2) and f.isfinite().all()
    assert f[:, 0].tolist() == [3, 0, 1] and f[0, 1] == 3 and float(f[0, 3]) == pytest.approx(np.std([1, 3, 5]))
    assert f[0, 11] == 2  # mean absolute step of the first channel


@pytest.mark.parametrize("bad", [np.zeros((2, 5, 2)), np.zeros((2, 4, 3)), [[[np.inf, 0]]]])
def test_series_that_do_not_fit(bad):
    with pytest.raises(DataError):
        SPACE.encode(bad)


def test_arrays_and_long_tables_open_alike(tmp_path: Path):
    """An .npz with lengths; a table with a row a step; and what `protea sample` writes."""
    rng = np.random.default_rng(0)
    length = rng.integers(1, 7, 30)
    x = np.round(8 * rng.normal(size=(30, 6, 2))) / 8  # the same numbers in every format: rows split by content
    np.savez(tmp_path / "s.npz", x=x, length=length, y=length % 2)
    opened = open_data(tmp_path / "s.npz")
    assert opened.space.kind == "series" and opened.space.event == (6, 2) and len(opened.space.classes) == 2
    u, v = np.concatenate([row[:n] for row, n in zip(x, length)]).T
    each = np.repeat(np.arange(30), length)
    frame = pd.DataFrame({"id": each, "u": u, "v": v, "side": length[each] % 2})
    frame.to_csv(tmp_path / "s.csv", index=False)
    long = open_data(tmp_path / "s.csv", sequence="id", target="side")
    assert long.space.names == ("u", "v")  # type: ignore[attr-defined]
    assert torch.allclose(long.train.x, opened.train.x, atol=1e-6, equal_nan=True)
    assert torch.equal(long.train.y, opened.train.y)  # type: ignore[arg-type]
    path = write(opened.space.decode(opened.train.x), "series", tmp_path / "out.csv")[0]
    again = open_data(path, sequence="sequence")
    assert len(again.train) + len(again.validation) + len(again.holdout) == len(opened.train)
    with pytest.raises(DataError, match="no column"):
        open_data(tmp_path / "s.csv", sequence="nobody")
    with pytest.raises(DataError, match="values of 'u'"):
        open_data(tmp_path / "s.csv", sequence="id", target="u")


def test_series_are_drawn():
    pictures = plots(SPACE.decode(SPACE.encode(RAGGED)))
    assert [p.size for p in pictures] == [(120, 60)] * 3
    assert len(np.unique(np.asarray(pictures[2]))) > 1 and (np.asarray(pictures[1]) == 255).all()


def test_mixtures_of_chains_cluster_by_dynamics(evidence):
    """Two chains with the same symbols in the same shares: one repeats them, the other alternates."""
    z = torch.arange(200) % 2
    u = Streams(3, 200).uniform(20)
    x = [(u[:, 0] < 0.5).long()]
    for t in range(1, 20):
        keep = (u[:, t] < 0.85) == (z == 0)
        x.append(torch.where(keep, x[-1], 1 - x[-1]))
    rows = Rows(torch.stack(x, 1), None, torch.arange(200))
    chains = [HiddenMarkov(Categorical(2, 2), Chain(ergodic(2)), 20) for _ in range(2)]
    model, previous = Mixture(MarkovFamily(chains), k=2), -float("inf")
    model.initialise(rows)
    for _ in range(60):
        stats = model.expect(rows.x)
        assert float(stats["log_prob"]) >= previous - 1e-9 * abs(previous)
        previous = float(stats["log_prob"])
        model.maximise(stats)
    found = model.responsibilities(rows.x)[:, 0].argmax(1)
    right = float((found == z).double().mean())
    evidence(
        id="TR-07", system="Mixture of hidden Markov models", claim="sequences told apart by their dynamics alone",
        reference="the chains that drew them", reached=max(right, 1 - right), tolerance=0.95, unit="accuracy",
        at_least=True,
    )  # fmt: skip
