"""Every registered model survives kill -9 to the byte, and learns on two processes what it learns on one."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from protea.core import Model
from protea.models import MODELS
from protea.models.autoregressive.architectures import ARCHITECTURES
from protea.training import Saving
from protea.training import run as runs
from protea.training.budget import Budget
from protea.training.checkpoint import load_weights
from protea.training.defaults import default_learner
from protea.training.files import read_json
from protea.training.fit import fit
from protea.training.progress import Quiet

STEPS, BATCH = 40, 8
SPLIT_STEPS = 10  # rounding differs between one sum and two, and Adam amplifies it with every step
# A direction in which the loss is flat (a key's bias, a gate before a norm) has a gradient of rounding alone, which
# Adam makes a step of: of language models, weights are held to the promise in double precision, and what they say in
# single precision.
LANGUAGE = [name for name in MODELS if name in ARCHITECTURES]
OTHERS = [name for name in MODELS if name not in ARCHITECTURES]


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


def learn(
    name: str, folder: Path, *, steps: int, slow: bool = False, resume: bool = False, double: bool = False,
    microbatch: int | None = None,
) -> Model:  # fmt: skip
    case = load_cases()[name]
    space, rows = case.data()
    torch.manual_seed(0)
    model = runs.build(name, space, MODELS[name].config(**case.config))
    model.initialise(rows)
    model = model.double() if double else model
    learner = default_learner(model, microbatch=microbatch) if microbatch else None
    fit(model, rows, None, budget=Budget(steps=steps), run=Saving(folder, resume, steps=2), judge=None,
        batch_size=BATCH, progress=Slow() if slow else None, learner=learner)  # fmt: skip
    return model


def gap(one: Path, two: Path) -> float:
    """The largest difference of the weights of two runs."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a if a[k].numel())


def serve() -> None:
    """Learn what every line of the input names, each in a process forked for it, so that all share the imports."""
    torch.set_num_threads(1)
    load_cases()
    for line in sys.stdin:
        name, steps, folder = line.split(maxsplit=2)
        if (pid := os.fork()) == 0:
            try:
                learn(name, Path(folder.strip()), steps=int(steps), slow=True, resume=True)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        print(pid, flush=True)
        sys.stdin.readline()  # until then the number is the child's, even if it has ended
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, __file__, "serve"], env=environment, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        yield process
        process.stdin.close()  # type: ignore[union-attr]


class Child:
    """A model that learns in a process of its own."""

    def __init__(self, server: subprocess.Popen[str], name: str, steps: int, folder: Path) -> None:
        assert server.stdin is not None and server.stdout is not None
        self.questions, self.answers, self.metrics = server.stdin, server.stdout, folder / "metrics.jsonl"
        self.questions.write(f"{name} {steps} {folder}\n")
        self.questions.flush()
        self.pid = int(self.answers.readline())

    def end(self) -> int:
        """Wait until it has ended; its exit code."""
        self.questions.write("end\n")
        self.questions.flush()
        return int(self.answers.readline())

    def kill_after(self, step: int) -> None:
        """Once it has logged so many steps, or a minute has passed."""
        end = time.monotonic() + 60
        while time.monotonic() < end and (not self.metrics.exists() or self.metrics.read_bytes().count(b"\n") < step):
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_killed_twice_ends_with_the_same_bytes(name: str, tmp_path: Path, server, evidence) -> None:
    planned = STEPS // 2 if name in LANGUAGE else STEPS
    learn(name, tmp_path / "whole", steps=planned)
    luck, kills = random.Random(name), 0
    steps = read_json(tmp_path / "whole" / "result.json")["steps"]  # counting ends early
    for moment in (luck.randint(1, steps // 2 - 2), luck.randint(steps // 2 + 1, steps - 4)):
        child = Child(server, name, planned, tmp_path / "killed")
        child.kill_after(moment)
        kills += child.end() == -signal.SIGKILL
    assert kills == 2, "the run ended before it was killed"
    assert Child(server, name, planned, tmp_path / "killed").end() == 0
    whole, killed = ((tmp_path / k / "model.safetensors").read_bytes() for k in ("whole", "killed"))
    evidence(
        id="TS-07", system=f"{name}: resume", claim="bytes that differ after kill -9 twice and resume",
        reference="the uninterrupted run", reached=float(whole != killed), tolerance=0, unit="files",
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have learnt every model."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               __file__, "every", str(folder)]  # fmt: skip
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_learn_what_one_does(name: str, tmp_path: Path, two: Path, evidence) -> None:
    kind = "double" if name in LANGUAGE else "single"
    learn(name, tmp_path, steps=SPLIT_STEPS, double=name in LANGUAGE)
    evidence(
        id="TS-07", system=f"{name}: two gloo processes", claim=f"weights after {SPLIT_STEPS} steps, {kind} precision",
        reference="one process", reached=gap(tmp_path, two / kind / name), tolerance=1e-9 if kind == "double" else 1e-6,
        unit="max abs",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE)
def test_two_processes_say_what_one_does(name: str, tmp_path: Path, two: Path, evidence) -> None:
    rows = load_cases()[name].data()[1]
    one = learn(name, tmp_path, steps=SPLIT_STEPS).eval()
    with torch.no_grad():
        says = one.log_prob(rows.x)  # type: ignore[attr-defined]
        load_weights(one, load_file(two / "single" / name / "model.safetensors"))
        apart = (one.log_prob(rows.x) - says).abs().max()  # type: ignore[attr-defined]
    evidence(
        id="TS-07", system=f"{name}: two gloo processes", claim=f"log p after {SPLIT_STEPS} steps, single precision",
        reference="one process", reached=float(apart), tolerance=2e-5, unit="nats a text of 6",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE)
def test_microbatches_learn_what_the_batch_does(name: str, tmp_path: Path, evidence) -> None:
    for part, size in (("whole", None), ("parts", 3)):
        learn(name, tmp_path / part, steps=SPLIT_STEPS, double=True, microbatch=size)
    evidence(
        id="TS-02", system=f"{name}: microbatches of 3 of 8 rows", claim=f"weights after {SPLIT_STEPS} steps",
        reference="the whole batch", reached=gap(tmp_path / "whole", tmp_path / "parts"), tolerance=1e-9,
        unit="max abs, double precision",
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        for model in MODELS:
            learn(model, Path(sys.argv[2]) / "single" / model, steps=SPLIT_STEPS)
        for model in LANGUAGE:
            learn(model, Path(sys.argv[2]) / "double" / model, steps=SPLIT_STEPS, double=True)
