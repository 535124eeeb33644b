"""Muon's update against its closed form (the odd polynomial of the singular values) and against torch.optim.Muon."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from protea.core import Batch, Loss, Model, Phase
from protea.errors import ConfigError
from protea.rng import Streams
from protea.training import Gradient
from protea.training.muon import COEFFICIENTS, Muon, hidden_matrices, muon, newton_schulz
from protea.training.optim import AdamW, adamw
from protea.training.schedule import constant


def closed_form(g: np.ndarray, steps: int = 5) -> np.ndarray:
    """u p(p(... s ...)) v^T with p(s) = a s + b s^3 + c s^5, in double precision."""
    a, b, c = COEFFICIENTS
    u, s, v = np.linalg.svd(g.astype(np.float64), full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ np.diag(s) @ v


@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (16, 16), (64, 24)])
def test_newton_schulz_is_its_polynomial_of_singular_values(shape, evidence) -> None:
    g = torch.randn(shape)
    got = newton_schulz(g)
    evidence(id="TS-09", system="Muon", claim=f"orthogonalised {shape[0]} x {shape[1]}, float32", unit="max abs",
             reference="polynomial of numpy's singular values, float64", tolerance=2e-5,
             reached=np.abs(got.numpy() - closed_form(g.numpy())).max())  # fmt: skip
    values = torch.linalg.svdvals(got)
    assert values.min() > 0.3 and values.max() < 1.3


def test_batched_equals_one_by_one() -> None:
    g = torch.randn(2, 3, 8, 12)
    each = torch.stack([torch.stack([newton_schulz(m) for m in row]) for row in g])
    assert torch.allclose(newton_schulz(g), each, atol=1e-5)


@pytest.mark.parametrize(("scale", "theirs"), [("spectral", "original"), ("adamw", "match_rms_adamw")])
@pytest.mark.parametrize(("products", "tolerance"), [(torch.bfloat16, 1e-6), (None, 2.5e-2)])
def test_update_equals_torch(scale, theirs, products, tolerance, evidence) -> None:
    shapes, lr = [(8, 4), (4, 8), (16, 16)], 0.1
    ours = [nn.Parameter(torch.randn(s)) for s in shapes]
    peers = [nn.Parameter(p.detach().clone()) for p in ours]
    mine = Muon([{"params": ours, "lr": lr, "weight_decay": 0.1, "cut": {}}], AdamW([], 1.0, (0.9, 0.9), 1e-8),
                scale=scale, products=products)  # fmt: skip
    peer = torch.optim.Muon(peers, lr=lr, weight_decay=0.1, adjust_lr_fn=theirs)
    worst = 0.0
    for _ in range(5):
        for p, q in zip(ours, peers):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step()
        peer.step()
        worst = max(worst, *(float((p - q).detach().abs().max()) for p, q in zip(ours, peers)))
    name = "bfloat16" if products else "float32 against bfloat16"
    evidence(id="TS-09", system="Muon", claim=f"weights after 5 updates, {scale} scale, {name}", unit="max abs",
             reference="torch.optim.Muon", reached=worst, tolerance=tolerance)  # fmt: skip


def test_fused_rows_are_matrices_of_their_own() -> None:
    """A fused q, k, v moves as the three matrices would."""
    fused = nn.Parameter(torch.randn(24, 8))
    apart = [nn.Parameter(p.clone()) for p in fused.detach().chunk(3)]
    none = AdamW([], 1.0, (0.9, 0.9), 1e-8)
    one = Muon([{"params": [fused], "lr": 0.1, "weight_decay": 0.0, "cut": {fused: 3}}], none)
    three = Muon([{"params": apart, "lr": 0.1, "weight_decay": 0.0, "cut": {}}], AdamW([], 1.0, (0.9, 0.9), 1e-8))
    whole = Muon([{"params": [w := nn.Parameter(fused.detach().clone())], "lr": 0.1, "weight_decay": 0.0, "cut": {}}],
                 AdamW([], 1.0, (0.9, 0.9), 1e-8))  # fmt: skip
    fused.grad = torch.randn_like(fused)
    w.grad = fused.grad
    for p, g in zip(apart, fused.grad.chunk(3)):
        p.grad = g.clone()
    for optimizer in (one, three, whole):
        optimizer.step()
    assert torch.allclose(fused, torch.cat(list(apart)), atol=1e-6)
    assert not torch.allclose(fused, w, atol=1e-3)


def test_a_stack_is_many_matrices() -> None:
    stack = nn.Parameter(torch.randn(3, 8, 4))
    stack.grad = torch.randn_like(stack)
    before = stack.detach().clone()
    Muon([{"params": [stack], "lr": 0.1, "weight_decay": 0.0, "cut": {}}], AdamW([], 1.0, (0.9, 0.9), 1e-8)).step()
    for old, new, g in zip(before, stack.detach(), stack.grad):
        want = closed_form(g.numpy()) * 0.1 * math.sqrt(2)
        assert np.abs((old - new).numpy() - want).max() < 1e-5


class Net(Model):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.head = nn.Linear(16, 7)

    def draw(self, rng, cond=None):
        return torch.zeros(len(rng), 5, dtype=torch.int64)

    def loss(self, batch: Batch) -> Loss:
        h = self.embed(batch.x)
        for layer in self.blocks:
            h = h + layer(h).tanh()
        target = (batch.x * 3 + 1) % 7
        nats = nn.functional.cross_entropy(self.head(h).flatten(0, 1), target.flatten(), reduction="sum")
        return Loss(nats, batch.x.numel())


def test_groups_and_resume_through_the_learner() -> None:
    """Muon has the hidden matrices only; state saved and loaded goes on as if never stopped, bit for bit."""

    def learner() -> Gradient:
        torch.manual_seed(0)
        model = Net()
        phase = Phase("nll", list(model.parameters()), model.loss)
        return Gradient(model, [phase], optimizer=muon(0.05, weight_decay=0.01),
                        schedule=constant(), ema=None)  # fmt: skip

    def batch(step: int) -> Batch:
        return Batch(torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(step)), None, Streams(step, 4))

    one = learner()
    assert hidden_matrices(one.model, list(one.model.parameters())) == [b.weight for b in one.model.blocks]
    losses = [one.step(batch(i))["loss"] for i in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    two = learner()
    for i in range(9):
        two.step(batch(i))
    tensors, values = two.state()
    weights = {n: t.clone() for n, t in two.model.state_dict().items()}
    three = learner()
    three.model.load_state_dict(weights)
    three.load_state(tensors, values)
    for i in range(9, 30):
        three.step(batch(i))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), three.model.parameters()))


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="spectrel"):
        Muon([], AdamW([], 1.0, (0.9, 0.9), 1e-8), scale="spectrel")  # type: ignore[arg-type]
    net = Net()
    with pytest.raises(ConfigError, match="equal blocks"):
        muon(cut={"0.weight": 3})(net, list(net.parameters()))


def test_fused_experts_are_cut_by_default() -> None:
    """The stacked gate and up matrices of experts move as each matrix alone would."""
    from protea.nn.moe import Experts

    net = nn.ModuleDict({"blocks": nn.ModuleList([Experts(2, 4, 6)])})
    p = net["blocks"][0].gate_up
    made = muon(0.1)(net, list(net.parameters()))
    for q in net.parameters():
        q.grad = torch.randn_like(q)
    before = p.detach().clone()
    made.step()
    for expert in range(2):
        for rows in (slice(0, 6), slice(6, 12)):
            want = 0.1 * closed_form(p.grad[expert, rows].numpy()) * math.sqrt(1.5)
            assert np.abs((before - p.detach())[expert, rows].numpy() - want).max() < 1e-5


def test_hidden_states_only() -> None:
    net = Net()
    made = muon()(net, list(net.parameters()))
    assert [len(g["params"]) for g in made.param_groups] == [2, 1, 4]  # head decayed; embedding and biases not
    assert len(adamw()(net, list(net.parameters())).param_groups) == 2
