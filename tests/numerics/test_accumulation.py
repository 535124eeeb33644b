"""The gradient of microbatches with ragged counts is the gradient of the one large batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protea.core import Batch, Loss, Model, Phase
from protea.rng import Streams
from protea.training import Gradient


class Tagger(Model):
    """Predicts tokens of rows of unequal length (0 pads), with noise that belongs to the row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 16)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))

    def draw(self, rng, cond=None):
        return torch.zeros(len(rng), 6, dtype=torch.int64)

    def loss(self, batch: Batch) -> Loss:
        noise = 0.1 * batch.rng.normal(6, 16)
        logits = self.head(self.embed(batch.x) + noise)
        keep = batch.x > 0
        each = nn.functional.cross_entropy(logits.transpose(1, 2), batch.x, reduction="none")
        return Loss((each * keep).sum(), keep.sum())


def ragged(n: int = 23) -> Batch:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(1, 8, (n, 6), generator=g)
    length = torch.randint(1, 7, (n, 1), generator=g)
    return Batch(x * (torch.arange(6) < length), None, Streams(3, n))


def gradients(microbatch: int | None) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = Tagger()
    learner = Gradient(model, [Phase("nll", list(model.parameters()), model.loss)], clip=None, microbatch=microbatch)
    figures = learner.step(ragged())
    return figures["loss"], [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("microbatch", [1, 4, 5, 22])
def test_accumulated_equals_large_batch(microbatch: int, evidence) -> None:
    torch.manual_seed(0)
    model, batch = Tagger(), ragged()
    loss = model.loss(batch._replace(rng=batch.rng.child("nll")))
    reference = torch.autograd.grad(loss.total / loss.count, list(model.parameters()))
    mean, ours = gradients(microbatch)
    assert mean == pytest.approx(float((loss.total / loss.count).detach()), rel=1e-6)
    evidence(id="TS-02", system="Gradient accumulation", claim=f"microbatches of {microbatch}, ragged token counts",
             reference="torch.autograd on the whole batch", tolerance=1e-6, unit="max abs",
             reached=max(float((a - b).abs().max()) for a, b in zip(ours, reference)))  # fmt: skip


def test_mean_of_means_would_differ() -> None:
    """The test above can fail: averaging microbatch means is another gradient on these rows."""
    torch.manual_seed(0)
    model, batch = Tagger(), ragged()
    means = []
    for part in torch.arange(23).split(4):
        loss = model.loss(Batch(batch.x[part], None, batch.rng.child("nll").take(part)))
        means.append(loss.total / loss.count)
    wrong = torch.autograd.grad(torch.stack(means).mean(), list(model.parameters()))
    _, right = gradients(None)
    assert max(float((a - b).abs().max()) for a, b in zip(wrong, right)) > 1e-4
