"""The judge on whole data sets: null rows land where they must, and every number carries its protocol."""

import json

import pytest
import torch

from protea.core import Model
from protea.data import open_data
from protea.errors import DataError
from protea.evaluation.figure import comparable
from protea.evaluation.judge import Judge, judge_model
from protea.evaluation.metrics import METRICS, ranking
from protea.evaluation.nulls import CEILING, COPIER, FLOOR, null_samples
from protea.evaluation.rank import gap
from protea.evaluation.verdict import verdict
from protea.rng import Streams


@pytest.fixture(scope="module", params=["breast_cancer", pytest.param("digits", marks=pytest.mark.slow),
                                        pytest.param("eight-gaussians", marks=pytest.mark.slow)])  # fmt: skip
def judged(request):
    dataset = open_data(request.param)
    judge = Judge(dataset, replicates=100)
    rows = null_samples(dataset, judge.samples_wanted)
    return judge, {name: judge.evaluate(x, y) for name, (x, y) in rows.items()}


def test_ceiling_floor_and_copier(judged):
    judge, found = judged
    metrics = {name: row.metrics for name, row in found.items()}
    gaps = {name: gap(row, metrics[CEILING], metrics[FLOOR], judge.kind) for name, row in metrics.items()}
    assert gaps[CEILING].value == pytest.approx(0) and gaps[FLOOR].value == pytest.approx(1, abs=1e-9)
    assert gaps[COPIER].value < 0.4
    assert found[CEILING].audit["passed"] and found[FLOOR].audit["passed"] and not found[COPIER].audit["passed"]
    assert found[COPIER].audit["exact_copies"] == len(found[COPIER].samples)
    assert verdict(metrics[COPIER], found[COPIER].audit).startswith("memorises: 100 %")
    assert metrics[CEILING]["c2st_accuracy"].value < 0.62 < metrics[FLOOR]["c2st_accuracy"].value


def test_every_number_has_a_protocol_and_null_rows_share_it(judged):
    judge, found = judged
    for row in found.values():
        json.dumps({k: f.to_json() for k, f in row.metrics.items()} | row.audit, allow_nan=False)
        assert set(row.metrics) <= set(METRICS)
        for name, figure in row.metrics.items():
            assert figure.protocol["split"] == judge.dataset.split_hash and figure.low <= figure.high, name
            assert "n_real" in figure.protocol and "replicates" in figure.protocol
    for name in ranking(judge.kind):
        comparable(found[CEILING].metrics[name], found[FLOOR].metrics[name])


def test_judging_twice_gives_the_same_figures():
    dataset = open_data("iris")
    x = dataset.train.x
    a, b = (Judge(dataset, replicates=20).evaluate(x) for _ in range(2))
    assert a.metrics == b.metrics and a.audit == b.audit


def test_a_model_is_sampled_timed_and_judged_over_seeds():
    dataset = open_data("iris")

    class Copier(Model):
        block = 16

        def __init__(self, dataset):
            super().__init__()
            self.space = dataset.space
            self.register_buffer("rows", dataset.train.x)

        def draw(self, rng: Streams, cond=None):
            return self.rows[(rng.uniform(1)[:, 0] * len(self.rows)).long()]

    found = judge_model(Copier(dataset), Judge(dataset, replicates=20), seeds=(0, 1))
    assert found.metrics["c2st_accuracy"].protocol["seeds"] == 2
    assert found.samples_per_s > 0 and found.likelihood is None
    assert found.audit["passed"] is False


def test_bad_samples_are_refused():
    judge = Judge(open_data("iris"))
    with pytest.raises(DataError, match="shape"):
        judge.evaluate(torch.zeros(100, 2))
    bad = judge.train.x.clone()
    bad[0, 0] = torch.inf
    with pytest.raises(DataError, match="infinity"):
        judge.evaluate(bad)
