"""Kill -9 at any moment, twice in a row: the resumed run ends with the bytes of one that was never interrupted."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from protea.core import Batch, Countable, Loss, Model, Normalised, Phase
from protea.errors import CheckpointError
from protea.rng import Streams
from protea.space import Rows
from protea.training import EM, Budget, Gradient, Saving, fit
from protea.training.checkpoint import Keeper
from protea.training.run import read_metrics


class Net(Normalised):
    """x given noise of its own row, so that a resume must restore noise and order too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))

    def draw(self, rng, cond=None):
        return rng.normal(3)

    def log_prob(self, x, cond=None):
        return -0.5 * ((x - self.net(x.roll(1, 1))) ** 2).sum(1) - 1.5 * math.log(2 * math.pi)

    def loss(self, batch: Batch) -> Loss:
        return Loss(-self.log_prob(batch.x + 0.3 * batch.rng.normal(3)).sum(), len(batch.x))


class Duel(Model):
    """Two networks with opposed losses."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.tell = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def draw(self, rng, cond=None):
        return self.make(rng.normal(2))

    def telling(self, batch: Batch) -> Loss:
        fake = self.make(batch.rng.normal(2)).detach()
        return Loss((self.tell(fake) - self.tell(batch.x)).sum() + self.tell(batch.x).square().sum(), len(batch.x))

    def making(self, batch: Batch) -> Loss:
        return Loss(-self.tell(self.make(batch.rng.normal(2))).sum(), len(batch.x))


class Clusters(Normalised, Countable):
    """Mixture of unit Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.register_buffer("mean", torch.randn(4, 3, generator=g, dtype=torch.float64))

    def draw(self, rng, cond=None):
        return rng.normal(3)

    def joint(self, x: Tensor) -> Tensor:
        return -0.5 * (x.double()[:, None] - self.mean).square().sum(-1) - 1.5 * math.log(2 * math.pi) - math.log(4)

    def log_prob(self, x, cond=None):
        return self.joint(x).logsumexp(1)

    def expect(self, x, cond=None):
        r = self.joint(x).softmax(1)
        return {"n": r.sum(0), "x": r.T @ x.double(), "count": torch.tensor(float(len(x))),
                "log_prob": self.log_prob(x).sum()}  # fmt: skip

    def maximise(self, stats) -> None:
        self.mean.copy_(stats["x"] / stats["n"][:, None])


KINDS = ("gradient", "phases", "em")


def rows(n: int = 200) -> Rows:
    return Rows(Streams(0, n).normal(3) + 2 * (torch.arange(n) % 4 == 0)[:, None], None, torch.arange(n))


def train(
    kind: str, folder: Path, *, resume: bool, pause: float = 0.0, die_at: int | None = None, steps: int = 40
) -> None:
    torch.manual_seed(0)
    if kind == "em":
        model: Model = Clusters()
        learner = EM(model, tolerance=0.0, batch_size=20)
    elif kind == "phases":
        model = Duel()
        phases = [Phase("tell", list(model.tell.parameters()), model.telling),
                  Phase("make", list(model.make.parameters()), model.making, every=3)]  # fmt: skip
        learner = Gradient(model, phases)
    else:
        model = Net()
        learner = Gradient(model, [Phase("nll", list(model.parameters()), model.loss)], microbatch=7)
    step = learner.step
    done = 0

    def slowly(batch: Batch):
        nonlocal done
        if done == die_at:
            raise InterruptedError
        done += 1
        time.sleep(pause)
        return step(batch)

    learner.step = slowly
    data = rows()
    fit(model, data[:160], data[160:], learner=learner, budget=Budget(steps=steps), batch_size=20,
        run=Saving(folder, resume, steps=7), progress=None, patience=None)  # fmt: skip


def same(a: Path, b: Path) -> None:
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    curves = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(run)] for run in (a, b)]
    assert curves[0] == curves[1]
    steps = [line["step"] for line in curves[0]]
    assert steps == sorted(set(steps)), "no step is written twice"
    (ours, state), (theirs, other) = (Keeper(run).newest() for run in (a, b))  # the last step's weights and moments
    assert state["step"] == other["step"] and state["learner"] == other["learner"]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_anywhere_twice(kind: str, tmp_path: Path, evidence) -> None:
    """Within one process: the loop is left by an exception before some step, as a kill would leave the folder."""
    train(kind, tmp_path / "whole", resume=False)
    for first, second in [(0, 3), (13, 20)]:
        folder = tmp_path / f"{first}-{second}"
        for die_at in (first, second):
            with pytest.raises(InterruptedError):
                train(kind, folder, resume=True, die_at=die_at)
        train(kind, folder, resume=True)
        same(folder, tmp_path / "whole")
    evidence(id="TS-07", system="Resume", claim=f"interrupted twice, {kind}: bytes that differ",
             reference="uninterrupted run", reached=0, tolerance=0, unit="bytes")  # fmt: skip


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    train("gradient", tmp_path, resume=False)
    before = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()  # killed between the last checkpoint and the weights
    train("gradient", tmp_path, resume=True, die_at=0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_damaged_newest_checkpoint_costs_nothing_but_time(tmp_path: Path) -> None:
    train("gradient", tmp_path / "whole", resume=False)
    with pytest.raises(InterruptedError):
        train("gradient", tmp_path / "cut", resume=False, die_at=30)
    newest = sorted((tmp_path / "cut" / "checkpoint").glob("step-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="Falling back"):
        train("gradient", tmp_path / "cut", resume=True)
    same(tmp_path / "cut", tmp_path / "whole")


def test_another_fit_is_refused(tmp_path: Path) -> None:
    train("gradient", tmp_path, resume=False)
    model = Net()
    learner = Gradient(model, [Phase("nll", list(model.parameters()), model.loss)])
    with pytest.raises(CheckpointError, match=r"another fit.*seed 0 there, 1 here"):
        fit(model, rows()[:160], learner=learner, budget=Budget(steps=40), batch_size=20,
            run=Saving(tmp_path, resume=True), seed=1, progress=None)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sigkill_at_random_moments(kind: str, tmp_path: Path, evidence) -> None:
    """Separate processes, killed with SIGKILL at random moments until three kills met a running fit."""
    train(kind, tmp_path / "whole", resume=False, steps=120)
    cut, moments, kills = tmp_path / "cut", random.Random(KINDS.index(kind)), 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, kind, str(cut)]
    for _ in range(20):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        if kills < 3:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0.02, 0.6))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        elif process.wait() == 0:
            break
    assert kills >= 3 and process.returncode == 0
    same(cut, tmp_path / "whole")
    assert json.loads((cut / "result.json").read_text())["steps"] > 0
    evidence(id="TS-07", system="Resume", claim=f"SIGKILL {kills} times, {kind}: bytes that differ",
             reference="uninterrupted run", reached=0, tolerance=0, unit="bytes")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("ready", flush=True)
    train(sys.argv[1], Path(sys.argv[2]), resume=True, pause=0.015, steps=120)
