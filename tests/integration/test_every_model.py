"""Every registered model survives kill -9 to the byte, and learns on two processes what it learns on one."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from protea.models import MODELS
from protea.models.autoregressive.architectures import ARCHITECTURES
from protea.training import run as runs
from protea.training.budget import Budget
from protea.training.files import read_json
from protea.training.fit import fit
from protea.training.progress import Quiet

STEPS, BATCH = 40, 8
# Architectures of language models learn alike, but for the losses that balance the experts of a batch (and so of a
# rank): of them, the one whose balance is a state of training.
TRIED = [name for name in MODELS if name not in ARCHITECTURES or name == "deepseek-v3"]
SPLIT_STEPS = 10  # rounding differs between one sum and two, and Adam amplifies it with every step


def load_cases():
    spec = importlib.util.spec_from_file_location("every_cases", Path(__file__).parents[1] / "laws" / "cases.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["every_cases"] = module
    spec.loader.exec_module(module)
    return {case.model: case for case in reversed(module.CASES)}  # the first case of each model


class Slow(Quiet):
    """Makes a step last long enough for a kill to fall within the run."""

    def update(self, step, share, seconds, figures):
        time.sleep(0.03)


def learn(name: str, folder: Path, *, steps: int, slow: bool = False, resume: bool = False) -> None:
    case = load_cases()[name]
    space, rows = case.data()
    torch.manual_seed(0)
    model = runs.build(name, space, MODELS[name].config(**case.config))
    model.initialise(rows)
    fit(model, rows, None, budget=Budget(steps=steps), run=folder, resume=resume, judge=None, batch_size=BATCH,
        checkpoint_steps=2, progress=Slow() if slow else None)  # fmt: skip


def start(*words: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, __file__, *words], env=environment, stderr=subprocess.PIPE)


def wait_for_step(metrics: Path, step: int, child: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < end:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= step:
            return
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_killed_twice_ends_with_the_same_bytes(name: str, tmp_path: Path, evidence) -> None:
    learn(name, tmp_path / "whole", steps=STEPS)
    luck, kills = random.Random(name), 0
    steps = read_json(tmp_path / "whole" / "result.json")["steps"]  # counting ends early
    for moment in (luck.randint(1, steps // 2 - 2), luck.randint(steps // 2 + 1, steps - 4)):
        child = start("learn", name, str(tmp_path / "killed"))
        wait_for_step(tmp_path / "killed" / "metrics.jsonl", moment, child)
        time.sleep(luck.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    assert kills == 2, "the run ended before it was killed"
    child = start("learn", name, str(tmp_path / "killed"))
    assert child.wait(timeout=120) == 0, child.stderr.read().decode()  # type: ignore[union-attr]
    whole, killed = ((tmp_path / k / "model.safetensors").read_bytes() for k in ("whole", "killed"))
    evidence(
        id="TS-07", system=f"{name}: resume", claim="bytes that differ after kill -9 twice and resume",
        reference="the uninterrupted run", reached=float(whole != killed), tolerance=0, unit="files",
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path, evidence) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               __file__, "every", str(tmp_path / "two")]  # fmt: skip
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    for name in TRIED:
        learn(name, tmp_path / "one" / name, steps=SPLIT_STEPS)
        one, two = (load_file(tmp_path / k / name / "model.safetensors") for k in ("one", "two"))
        assert one.keys() == two.keys()
        gap = max(float((one[k].double() - two[k].double()).abs().max()) for k in one if one[k].numel())
        evidence(
            id="TS-07", system=f"{name}: two gloo processes", claim=f"weights after {SPLIT_STEPS} steps",
            reference="one process", reached=gap, tolerance=1e-6, unit="max abs",
        )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "learn":
        learn(sys.argv[2], Path(sys.argv[3]), steps=STEPS, slow=True, resume=True)
    else:
        for model in TRIED:
            learn(model, Path(sys.argv[2]) / model, steps=SPLIT_STEPS)
