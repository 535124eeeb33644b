"""Exact EM from disk is exact EM; stepwise EM reaches the neighbourhood of its optimum."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from protea.core import Batch
from protea.distributions.gaussian import Gaussian
from protea.distributions.student_t import StudentT
from protea.errors import ConfigError, DataError
from protea.models.classical.gmm import GaussianMixture
from protea.models.classical.mixture import Mixture
from protea.rng import Streams
from protea.space import Rows
from protea.training.em import EM
from protea.training.online_em import OnlineEM
from protea.training.stream import NpyStream, fit_stream


def data(n: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, 3)) + 5 * rng.normal(size=(4, 3))[rng.integers(4, size=n)]).astype(np.float32)


def start(x: np.ndarray) -> GaussianMixture:
    model = GaussianMixture((3,), 4)
    model.initialise(Rows(torch.from_numpy(x), None, torch.arange(len(x))))
    return model


def test_streamed_em_is_em_in_memory(tmp_path: Path, evidence):
    x = data()
    np.save(tmp_path / "x.npy", x)
    stream = NpyStream(tmp_path / "x.npy", block=333)
    assert torch.equal(torch.cat([b.x for b in stream.epoch()]), torch.from_numpy(x))
    ours, want = start(x), start(x)
    history = fit_stream(EM(ours, tolerance=0.0), stream, 6)
    for _ in range(6):
        want.maximise(want.expect(torch.from_numpy(x)))
    assert len(history) == 6 and all(b["log_prob"] >= a["log_prob"] for a, b in itertools.pairwise(history))
    error = max(float((a - b).abs().max()) for a, b in zip(ours.state_dict().values(), want.state_dict().values()))
    evidence(
        id="TR-08", system="EM out of core", claim="six iterations from a file in blocks of 333 rows",
        reference="the same in memory", reached=error, tolerance=1e-10, unit="max abs of parameters",
    )  # fmt: skip


def test_a_sample_for_the_start(tmp_path: Path):
    x = np.arange(5000.0).reshape(-1, 1)
    np.save(tmp_path / "x.npy", x)
    some = NpyStream(tmp_path / "x.npy").sample(640, seed=1)
    assert torch.equal(some.x[:, 0].long(), some.ids) and 300 <= len(some) <= 640
    assert len(some.ids.unique()) == len(some) and float(some.x.max()) > 4000 > 1000 > float(some.x.min())
    assert len(NpyStream(tmp_path / "x.npy").sample(10**6)) <= 5000


@pytest.mark.parametrize("family", [Gaussian, StudentT])
def test_stepwise_em_nears_the_optimum_in_two_passes(family, evidence):
    x = torch.from_numpy(data(20_000))
    batch, exact = (Mixture(family(4, (3,)), 4) for _ in range(2))
    batch.initialise(Rows(x[:500], None, torch.arange(500)))
    exact.load_state_dict(batch.state_dict())
    learner = OnlineEM(batch)
    for _ in range(2):
        for part in x.split(500):
            learner.step(Batch(part, None, Streams(0, len(part))))
        learner.end_epoch()
    for _ in range(100):
        exact.maximise(exact.expect(x))
    gap = float((exact.log_prob(x) - batch.log_prob(x)).mean())
    evidence(
        id="TR-08", system="stepwise EM", claim=f"{family.__name__}: two passes in batches of 500 of 20,000 rows",
        reference="100 iterations of exact EM", reached=gap, tolerance=0.01, unit="nats a row",
    )  # fmt: skip


def test_without_forgetting_counts_are_the_mean():
    """kappa = 1 weighs batch t by 1 / (t + 2): of one Gaussian the mean is a weighted mean of batch means."""
    model = Mixture(Gaussian(1, (1,)), 1)
    learner = OnlineEM(model, kappa=1.0)
    for value in (0.0, 3.0, 6.0):
        learner.step(Batch(torch.tensor([[value], [value + 1]]), None, Streams(0, 2)))
    mean = 0.5
    for t, value in ((1, 3.5), (2, 6.5)):
        mean += (value - mean) / (t + 2)
    assert float(model.family.means[0, 0]) == pytest.approx(mean)  # type: ignore[union-attr]
    other = OnlineEM(model, kappa=1.0)
    other.load_state(*learner.state())
    assert other.steps == 3 and torch.equal(other.stats["member.s1"], learner.stats["member.s1"])


def test_mistakes_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="kappa"):
        OnlineEM(Mixture(Gaussian(1, (1,)), 1), kappa=0.5)
    with pytest.raises(DataError, match="no array"):
        NpyStream(tmp_path / "none.npy")
    np.save(tmp_path / "f.npy", np.asfortranarray(np.ones((3, 2))))
    with pytest.raises(DataError, match="C-ordered"):
        NpyStream(tmp_path / "f.npy")
