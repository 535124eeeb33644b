"""Two gloo processes under torchrun learn what one process learns; their checkpoints open in either world."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from protea.core import Batch, Countable, Loss, Model, Normalised, Phase
from protea.distributions.gaussian import Gaussian
from protea.models.classical.gmm import GaussianMixture
from protea.models.markov.chain import Chain
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.topology import ergodic
from protea.rng import Streams
from protea.space import Rows
from protea.training import EM, Budget, Gradient, Saving, fit, parallel
from protea.training.checkpoint import Keeper
from protea.training.parallel import fsdp

pytestmark = pytest.mark.slow
WORLDS = {
    "replicate": 1e-6,
    "shard": 1e-6,
    "penalty": 1e-6,
    "em": 1e-10,
    "mixture": 1e-10,
    "markov": 1e-10,
}  # kind to tolerance


class Net(Normalised):
    """Rows of unequal counts, noise of their own, a scalar parameter, and methods that are not `forward`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 17), nn.Tanh(), nn.Linear(17, 3)).to(dtype)
        self.scale = nn.Parameter(torch.zeros((), dtype=dtype))

    def draw(self, rng, cond=None):
        return rng.normal(3)

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        mean = self.net(x.roll(1, 1))
        return -0.5 * ((x - mean) * self.scale.exp()).square().sum(1) + 3 * self.scale

    def loss(self, batch: Batch) -> Loss:
        x = batch.x + 0.3 * batch.rng.normal(3, dtype=batch.x.dtype)
        weight = 1.0 + (batch.rng.ids % 3).to(x)  # a true count that differs between ranks
        return Loss(-(weight * self.log_prob(x)).sum(), weight.sum())

    def penalised(self, batch: Batch) -> Loss:
        """Differentiates twice, as a gradient penalty does."""
        x = batch.x.clone().requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return Loss((g.square().sum(1) - 1).square().sum() - self.log_prob(batch.x).sum(), len(x))


class Clusters(Normalised, Countable):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.register_buffer("mean", torch.randn(4, 3, generator=g, dtype=torch.float64))

    def draw(self, rng, cond=None):
        return rng.normal(3)

    def log_prob(self, x, cond=None):
        return (-0.5 * (x.double()[:, None] - self.mean).square().sum(-1)).logsumexp(1)

    def expect(self, x, cond=None):
        r = (-0.5 * (x.double()[:, None] - self.mean).square().sum(-1)).softmax(1)
        return {"n": r.sum(0), "x": r.T @ x.double(), "count": torch.tensor(float(len(x))),
                "log_prob": self.log_prob(x).sum()}  # fmt: skip

    def maximise(self, stats) -> None:
        self.mean.copy_(stats["x"] / stats["n"][:, None])


def rows(dtype: torch.dtype) -> Rows:
    n = 103
    x = Streams(0, n).normal(3, dtype=torch.float64) + 2 * (torch.arange(n) % 4 == 0)[:, None]
    return Rows(x.to(dtype), None, torch.arange(n))


def train(kind: str, folder: Path, steps: int, resume: bool, dtype: torch.dtype = torch.float64) -> None:
    torch.manual_seed(0)
    model: Model
    data = rows(dtype)
    if kind == "markov":  # series of three steps and one channel
        data = Rows(data.x[:, :, None], None, data.ids)
    if kind == "mixture":
        model = GaussianMixture((3,), 3, classes=0)
        model.initialise(rows(dtype))
        model.means.add_(0.5)  # away from the start that clustering finds
        learner = EM(model, tolerance=0.0, batch_size=15)
    elif kind == "markov":
        model = HiddenMarkov(Gaussian(2, (1,), "diag"), Chain(ergodic(2)), steps=3)
        model.initialise(data)
        model.emission.means.add_(0.5)
        learner = EM(model, tolerance=0.0, batch_size=15)
    elif kind == "em":
        model = Clusters()
        learner = EM(model, tolerance=0.0, batch_size=15)
    else:
        model = Net(dtype)
        loss = model.penalised if kind == "penalty" else model.loss
        # Batches of 15 rows: shards of 8 and 7, and with microbatches of 3 an uneven last one.
        learner = Gradient(model, [Phase("nll", list(model.parameters()), loss)], microbatch=3,
                           prepare=fsdp() if kind == "shard" else ())  # fmt: skip
        if kind == "shard" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            assert parallel.sharded(model.net[0].weight) and parallel.local(model.net[0].weight).shape[0] < 17
    fit(model, data, data[:20], learner=learner, budget=Budget(steps=steps), batch_size=15, run=Saving(folder, resume),
        progress=None, patience=None)  # fmt: skip


def launch(kind: str, folder: Path, processes: int, steps: int, resume: bool = False) -> dict[str, Tensor]:
    """Train in so many processes; everything that was saved."""
    tail = [__file__, kind, str(folder), str(steps), str(int(resume))]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run([sys.executable, *(torchrun if processes > 1 else []), *tail], env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return saved(folder)


def saved(folder: Path) -> dict[str, Tensor]:
    """The weights kept, and the last step's weights, averages and moments."""
    tensors, _ = Keeper(folder).newest()
    return tensors | {f"kept/{name}": t for name, t in load_file(folder / "model.safetensors").items()}


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert set(a) == set(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("kind", WORLDS)
def test_two_processes_equal_one_and_checkpoints_reshard(kind: str, tmp_path: Path, evidence) -> None:
    steps = 28  # two epochs of seven batches, twice
    train(kind, tmp_path / "one", steps, resume=False)
    one = saved(tmp_path / "one")
    train(kind, tmp_path / "start", 1, resume=False)
    moved = max(float((one[n] - t).abs().max()) for n, t in saved(tmp_path / "start").items() if n.startswith("model/"))
    assert moved > 1e-3, "weights that hardly moved would prove nothing"
    two = launch(kind, tmp_path / "two", 2, steps)
    names = {
        "replicate": "data parallel",
        "shard": "FSDP2",
        "penalty": "data parallel, double backward",
        "em": "EM",
        "mixture": "EM of a Gaussian mixture",
        "markov": "Baum-Welch",
    }
    evidence(id="TS-07", system="Distributed training", claim=f"{names[kind]}: 2 processes equal 1",
             reference="1-process run", reached=gap(one, two), tolerance=WORLDS[kind],
             unit="max abs of weights, averages, moments")  # fmt: skip
    if kind == "penalty":
        return
    launch(kind, tmp_path / "mixed", 2, 14)  # saved by two processes,
    train(kind, tmp_path / "mixed", 21, resume=True)  # continued by one,
    mixed = launch(kind, tmp_path / "mixed", 2, steps, resume=True)  # and by two again
    train(kind, tmp_path / "plain", 14, resume=False)
    train(kind, tmp_path / "plain", 21, resume=True)
    train(kind, tmp_path / "plain", steps, resume=True)
    plain = saved(tmp_path / "plain")
    evidence(id="TS-07", system="Distributed training", claim=f"{names[kind]}: checkpoints of 2, 1, 2 processes",
             reference="1-process run", reached=gap(plain, mixed), tolerance=WORLDS[kind],
             unit="max abs of weights, averages, moments")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
