"""The loop end to end: it learns what is known, keeps the best weights, and leaves a whole run folder."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import protea.models
from protea.core import Normalised
from protea.errors import CheckpointError, ConfigError, DataError
from protea.models.entry import Entry
from protea.models.lifted import lift
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Vector
from protea.training import Budget, default_learner, fit, fit_run, load_model, resume_run
from protea.training.batches import Batches
from protea.training.config import from_json
from protea.training.early import Judgements
from protea.training.gradient import Gradient
from protea.training.lifting import Lifting
from protea.training.run import read_metrics
from protea.transforms.relaxations import relaxation_for


class Normal(Normalised):
    def __init__(self, d: int = 3) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))

    def draw(self, rng, cond=None):
        return self.mean + self.log_scale.exp() * rng.normal(len(self.mean))

    def log_prob(self, x, cond=None):
        z = (x - self.mean) * (-self.log_scale).exp()
        return (-0.5 * z * z - self.log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def rows(n: int = 600, d: int = 3, scale: float = 0.5) -> Rows:
    x = 0.3 + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    return Rows(x, None, torch.arange(n))


def test_reaches_the_maximum_of_likelihood(evidence) -> None:
    from protea.core import Phase
    from protea.objectives.likelihood import nll
    from protea.training.optim import adamw

    data, model = rows(), Normal()
    learner = Gradient(
        model, [Phase("nll", list(model.parameters()), nll(model))], optimizer=adamw(0.03, weight_decay=0.0)
    )
    fit(model, data, learner=learner, budget=Budget(steps=600), batch_size=600, progress=None)
    mean, std = data.x.mean(0), data.x.std(0, correction=0)
    gap = max(
        float((model.mean - mean).abs().max().detach()), float((model.log_scale.exp() / std - 1).abs().max().detach())
    )
    evidence(id="TS-02", system="Training loop", claim="maximum likelihood of a Gaussian", reached=gap, tolerance=1e-4,
             reference="sample mean and standard deviation", unit="max abs")  # fmt: skip


def test_every_row_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    batches = Batches(rows(103), 10, seed=5)
    epochs = [[int(i) for step in range(11) for i in batches(e * 11 + step).rng.ids] for e in (0, 1)]
    assert all(sorted(order) == list(range(103)) for order in epochs)
    assert epochs[0] != epochs[1]
    again = Batches(rows(103), 10, seed=5)
    assert torch.equal(again(17).x, batches(17).x)
    assert torch.equal(again(17).rng.normal(2), batches(17).rng.normal(2))


def test_the_best_judged_weights_are_kept_and_it_stops_early(tmp_path: Path) -> None:
    seen: list[float] = []

    def judge(model) -> dict[str, float]:
        seen.append(float(model.mean.detach().sum()))
        return {"distance": abs(seen[-1] - 0.5)}  # best somewhere on the way from 0 to 0.9

    model = Normal()
    result = fit(model, rows(), rows(), budget=Budget(steps=4000), judge=judge, patience=3, run=tmp_path, progress=None)
    assert result.stopped_because == "early stop" and result.steps < 4000
    best = min(seen, key=lambda s: abs(s - 0.5))
    assert float(model.mean.detach().sum()) == best and result.figure == pytest.approx(abs(best - 0.5))
    assert abs(seen[-1] - 0.5) > result.figure and result.figure_name == "distance"


def test_still_improving_is_told_from_settled() -> None:
    falling, settled = Judgements(), Judgements()
    for step in range(1, 21):
        falling.add(step, 10.0 - 0.2 * step)
        settled.add(step, 5.0 + math.exp(-step))
    assert falling.still_improving() and not settled.still_improving()


def test_a_judge_that_returns_nan_is_never_best() -> None:
    j = Judgements(patience=2)
    assert [j.add(i, v) for i, v in enumerate([math.nan, 2.0, math.nan, math.nan])] == [False, True, False, False]
    assert j.exhausted and j.best == 2.0
    again = Judgements(patience=2)
    again.load(json.loads(json.dumps(j.to_json())))
    assert again.best_step == j.best_step and again.exhausted


def test_a_lifted_model_learns_through_its_relaxation() -> None:
    space = Vector(("a", "b", "c"))
    data = Rows(rows(scale=40.0).x.double(), None, torch.arange(600))
    model = lift(space, relaxation_for(space), Normal())
    model.initialise(data)
    learner = default_learner(model)
    assert isinstance(learner, Lifting) and isinstance(learner.inner, Gradient)
    nn.init.constant_(model.inner.log_scale, 0.2)
    result = fit(model, data, data, learner=learner, budget=Budget(steps=400), progress=None)
    exact = 3 * 0.5 * math.log(2 * math.pi * math.e) + float(data.x.std(0, correction=0).log().sum())
    assert result.figure_name == "validation_nll"
    assert exact - 1e-5 < result.figure < exact + 0.03


class Data:
    """What a run needs of a data set."""

    def __init__(self, seed: int = 0) -> None:
        self.name, self.source, self.target = "toy", "toy.csv", None
        self.space = Vector(("a", "b", "c"))
        x = torch.randn(400, 3, generator=torch.Generator().manual_seed(seed)).double()
        rows = Rows(x, None, torch.arange(400))
        self.train, self.validation = rows[:300], rows[300:]
        self.fingerprint, self.split_hash = f"{seed:064x}", "s" * 64


@dataclass(frozen=True)
class Config:
    scale: float = 1.0
    sizes: tuple[int, ...] = (4, 4)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(space, config: Config):
        model = lift(space, relaxation_for(space), Normal(*space.event))
        nn.init.normal_(model.inner.mean, std=config.scale)
        return model

    entry = Entry("toy-normal", "classical", "Normal", "none", frozenset({"vector"}), Config, build,
                  lambda space, rows, seconds: Config(sizes=(8,)))  # fmt: skip
    monkeypatch.setitem(protea.models.MODELS, "toy-normal", entry)


def test_a_run_folder_holds_everything(tmp_path: Path, registered: None) -> None:
    run = tmp_path / "run"
    model, result = fit_run(run, "toy-normal", {"scale": 2}, Data(), "30 steps", seed=3, progress=None)
    assert {p.name for p in run.iterdir()} == {
        "config.json", "space.json", "environment.json", "model.safetensors", "metrics.jsonl", "result.json",
        "checkpoint",
    }  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert (
        config["config"] == {"scale": 2.0, "sizes": [8]} and config["seed"] == 3 and config["budget"] == {"steps": 30}
    )
    assert config["data"]["fingerprint"] == Data().fingerprint
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__ and "git" in environment
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 31)) and "validation_nll" in lines[-1]
    assert json.loads((run / "result.json").read_text())["stopped_because"] == "budget"
    opened = load_model(run)
    assert torch.equal(opened.sample(20), model.sample(20))
    x = Data().validation.x
    assert torch.equal(opened.log_prob(x), model.log_prob(x)) and result.parameters == 6


def test_the_seed_decides(tmp_path: Path, registered: None) -> None:
    torch.manual_seed(1)
    one = fit_run(tmp_path / "1", "toy-normal", {}, Data(), "5 steps", seed=3, progress=None)[0]
    torch.manual_seed(2)
    two = fit_run(tmp_path / "2", "toy-normal", {}, Data(), "5 steps", seed=3, progress=None)[0]
    other = fit_run(tmp_path / "3", "toy-normal", {}, Data(), "5 steps", seed=4, progress=None)[0]
    assert torch.equal(one.sample(4), two.sample(4)) and not torch.equal(one.sample(4), other.sample(4))
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("1", "2")]
    assert same[0] == same[1]


def test_more_budget_goes_on_from_where_it_ended(tmp_path: Path, registered: None) -> None:
    fit_run(tmp_path / "r", "toy-normal", {}, Data(), "20 steps", progress=None)
    _, result = resume_run(tmp_path / "r", Data(), more="15 steps", progress=None)
    assert result.steps == 35
    assert [line["step"] for line in read_metrics(tmp_path / "r")] == list(range(1, 36))


def test_mistakes_are_named(tmp_path: Path, registered: None) -> None:
    def run(model="toy-normal", settings=None, budget="5 steps", name="x", data=None, **options):
        return fit_run(tmp_path / name, model, settings or {}, data or Data(), budget, progress=None, **options)

    with pytest.raises(ConfigError, match="Did you mean toy-normal"):
        run("toy-normla")
    with pytest.raises(ConfigError, match="Did you mean scale"):
        run(settings={"scael": 1})
    with pytest.raises(ConfigError, match="must be float, not 'big'"):
        run(settings={"scale": "big"})
    with pytest.raises(ConfigError, match="positive"):
        run(budget="0s")
    assert not (tmp_path / "x").exists(), "nothing is written for a request that is refused"
    run(name="y")
    with pytest.raises(ConfigError, match="already holds a run"):
        run(name="y")
    with pytest.raises(ConfigError, match="other settings"):
        run(name="y", settings={"scale": 3.0}, resume=True)
    with pytest.raises(CheckpointError, match="other data"):
        resume_run(tmp_path / "y", Data(seed=1), progress=None)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(tmp_path / "z")
    weights = tmp_path / "y" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3] + b"abc")
    with pytest.raises(CheckpointError, match="hash mismatch"):
        load_model(tmp_path / "y")
    empty = Rows(torch.zeros(0, 3), None, torch.arange(0))
    with pytest.raises(DataError, match="no training rows"):
        fit(Normal(), empty, budget=Budget(steps=1), progress=None)


def test_settings_are_checked_by_type() -> None:
    assert from_json(Config, {"sizes": [1, 2]}, Config(scale=3.0)) == Config(3.0, (1, 2))
    for bad in ({"sizes": [1.5]}, {"sizes": 4}, {"scale": True}, {"scale": None}):
        with pytest.raises(ConfigError):
            from_json(Config, bad)


def test_noise_belongs_to_the_row_and_the_step() -> None:
    batches = Batches(rows(50), 50, seed=1)
    a, b = batches(0), batches(1)
    again = Streams(batches(0).rng.seed, a.rng.ids[7:8]).normal(3)
    assert torch.equal(a.rng.normal(3)[7], again[0])
    row = int(a.rng.ids[7])
    assert not torch.equal(b.rng.normal(3)[(b.rng.ids == row).nonzero()[0, 0]], again[0])
