"""The gradient learner agrees with a plain loop over torch's own optimizer and clipping; phases keep apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protea.core import Batch, Loss, Model, Phase
from protea.errors import ConfigError
from protea.rng import Streams
from protea.training import Gradient
from protea.training.optim import adamw, decay_groups, sgd
from protea.training.schedule import constant


class Regression(Model):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 4))

    def draw(self, rng, cond=None):
        return self.net(rng.normal(4))

    def loss(self, batch: Batch) -> Loss:
        return Loss((self.net(batch.x) - batch.x.flip(-1)).square().sum(), len(batch.x))


def batch(seed: int) -> Batch:
    return Batch(torch.randn(32, 4, generator=torch.Generator().manual_seed(seed)) * 3, None, Streams(seed, 32))


def test_fifty_steps_agree_with_torch_adamw(evidence) -> None:
    torch.manual_seed(0)
    ours = Regression()
    theirs = Regression()
    theirs.load_state_dict(ours.state_dict())
    learner = Gradient(
        ours, [Phase("fit", list(ours.parameters()), ours.loss)], optimizer=adamw(1e-2), schedule=constant(), clip=1.0
    )
    reference = torch.optim.AdamW(decay_groups(theirs, list(theirs.parameters()), 0.01), lr=1e-2)
    for step in range(50):
        learner.step(batch(step))
        reference.zero_grad()
        loss = theirs.loss(batch(step))
        (loss.total / loss.count).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
    gap = max(float((a - b).abs().max().detach()) for a, b in zip(ours.parameters(), theirs.parameters()))
    evidence(id="TS-02", system="AdamW", claim="50 clipped steps", reference="torch.optim.AdamW, clip_grad_norm_",
             reached=gap, tolerance=1e-6, unit="max abs")  # fmt: skip


def test_no_decay_for_biases_norms_and_embeddings() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "out": nn.Linear(4, 3)})
    decayed, kept = decay_groups(model, list(model.parameters()), 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 4)]
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0.0 and len(kept["params"]) == 4


class Adversaries(Model):
    """x is pulled to c by one phase; c is pushed to 2x by another, every third step."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.x = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))
        self.seen: list[tuple[str, float]] = []

    def draw(self, rng, cond=None):
        return self.x.expand(len(rng), 1)

    def follow(self, batch: Batch) -> Loss:
        self.seen.append(("follow", float(batch.rng.uniform(1)[0])))
        return Loss((self.x - self.c) ** 2, 1)

    def lead(self, batch: Batch) -> Loss:
        self.seen.append(("lead", float(batch.rng.uniform(1)[0])))
        return Loss((self.c - 2 * self.x) ** 2, 1)


def test_phases_keep_to_their_parameters_and_pace() -> None:
    model = Adversaries()
    learner = Gradient(
        model, [Phase("follow", [model.x], model.follow), Phase("lead", [model.c], model.lead, every=3)],
        optimizer=sgd(0.1), schedule=constant(), clip=None, ema=None,
    )  # fmt: skip
    x, c = 0.0, 1.0
    for step in range(7):
        figures = learner.step(Batch(torch.zeros(1, 1), None, Streams(step, 1)))
        x -= 0.1 * 2 * (x - c)
        if step % 3 == 0:
            c -= 0.1 * 2 * (c - 2 * x)
        assert ("lead_loss" in figures) == (step % 3 == 0)
        assert float(model.x.detach()) == pytest.approx(x, rel=1e-5)
        assert float(model.c.detach()) == pytest.approx(c, rel=1e-5)
    assert all(p.requires_grad for p in model.parameters())
    first = dict(model.seen[:2])
    assert first["follow"] != first["lead"], "phases of one step draw independent noise"


def test_foreign_parameters_are_refused() -> None:
    model = Regression()
    with pytest.raises(ConfigError, match="foreign"):
        Gradient(model, [Phase("fit", [nn.Parameter(torch.zeros(1))], model.loss)])


def test_bf16_is_used_only_where_native(monkeypatch: pytest.MonkeyPatch) -> None:
    from protea.training import precision

    cpu = torch.device("cpu")
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    assert precision.resolve("auto", cpu)[0] == torch.float32
    assert "no native bfloat16" in precision.describe(cpu, *precision.resolve("bf16", cpu))
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    model = Regression()
    seen = []
    model.net[0].register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    Gradient(model, [Phase("fit", list(model.parameters()), model.loss)], precision="auto").step(batch(0))
    assert seen == [torch.bfloat16] and model.net[0].weight.dtype == torch.float32


def test_a_required_gpu_that_is_absent_is_an_error() -> None:
    from protea.training.precision import pick_device

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="GPU"):
        pick_device("auto", require_gpu=True)
    assert pick_device("auto")[1] == "no CUDA device is visible"


@pytest.mark.slow
def test_compiled_networks_learn_the_same() -> None:
    from protea.training.precision import compiled

    weights = []
    for prepare in ((), compiled):
        torch.manual_seed(0)
        model = Regression()
        learner = Gradient(model, [Phase("fit", list(model.parameters()), model.loss)], prepare=prepare)
        for step in range(3):
            learner.step(batch(step))
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert weights[0].keys() == weights[1].keys(), "names do not change, so that runs open either way"
    assert max(float((weights[0][n] - weights[1][n]).abs().max()) for n in weights[0]) < 1e-6


def test_dropout_belongs_to_the_row() -> None:
    """Microbatches of a model with dropout give the gradient of the whole batch."""
    from protea.nn.mlp import ResidualMLP

    class Net(Model):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.net = ResidualMLP(3, 1, width=8, depth=2, dropout=0.5).double()

        def draw(self, rng: Streams, cond: torch.Tensor | None = None) -> torch.Tensor:
            return self.net(rng.normal(3, dtype=torch.float64))

    x = Streams(0, 12).normal(3, dtype=torch.float64)
    ends = []
    for microbatch in (None, 5):
        model = Net()
        loss = lambda batch, m=model: Loss((m.net(batch.x) ** 2).sum(), len(batch.x))  # noqa: E731
        learner = Gradient(model, [Phase("fit", list(model.parameters()), loss)], ema=None, microbatch=microbatch)
        for step in range(3):
            learner.step(Batch(x, None, Streams(step, 12)))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*ends, rtol=0, atol=1e-12)
    assert not torch.allclose(ends[0], torch.cat([p.detach().flatten() for p in Net().parameters()]))
