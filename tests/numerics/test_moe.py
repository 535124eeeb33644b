"""Mixtures of experts: grouped products against their definition, dense limits, gradients, dropping, counting."""

from __future__ import annotations

import pytest
import torch

from protea.errors import ConfigError
from protea.nn.auxiliary import auxiliary_losses
from protea.nn.context import Context, plain_context
from protea.nn.mlp_gated import SwiGLU
from protea.nn.moe import Experts, GatedShared, MoE, grouped_product
from protea.nn.router import HashRouter, LearnedRouter
from protea.nn.router_choices import Affinity, ExpertChoice, Groups, TopK
from protea.nn.router_losses import SequenceBalance, SwitchBalance, ZLoss

D, F, E = 16, 24, 8
CHOICES = {
    "softmax top-2": lambda: TopK(2),
    "top-3 unnormalised, grouped": lambda: TopK(3, normalise=False, scale=1.7, groups=Groups(4, 2)),
    "sigmoid with bias, grouped": lambda: Affinity(E, 3, scale=2.5, groups=Groups(4, 2, best=2)),
    "expert choice": lambda: ExpertChoice(2.0),
    "switch": lambda: TopK(1, normalise=False, capacity=1.0),
}


def one_by_one(moe: MoE, x: torch.Tensor, ctx: Context) -> torch.Tensor:
    """The definition: every pair of a token and an expert in turn."""
    routing, flat = moe.router(x, ctx), x.flatten(0, 1)
    y, e = torch.zeros_like(flat), moe.experts
    for t, i, g in zip(routing.tokens.tolist(), routing.experts.tolist(), routing.weights, strict=True):
        gate, up = (e.gate_up[i] @ flat[t]).chunk(2)
        y[t] = y[t] + g * (e.down[i] @ (torch.nn.functional.silu(gate) * up))
    y = y.view_as(x)
    return y if moe.shared is None else y + moe.shared(x)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("width", [F, 7])  # 7: not aligned, so that each expert has its own product
def test_output_and_gradients_equal_the_definition(name, width, evidence):
    moe = MoE(LearnedRouter(D, E, CHOICES[name]()), Experts(E, D, width), GatedShared(D, SwiGLU(D, 8)))
    x = torch.randn(2, 9, D, requires_grad=True)
    weights = [x, *moe.parameters()]
    got, want = moe(x, plain_context(9)), one_by_one(moe, x, plain_context(9))
    direction = torch.randn_like(got)
    slopes = [torch.autograd.grad(y, weights, direction) for y in (got, want)]
    worst = max((a - b).abs().max().item() for a, b in zip((got, *slopes[0]), (want, *slopes[1]), strict=True))
    evidence(id="AR-29", system="Mixture of experts", claim=f"output and gradients, {name}, width {width}",
             reference="one pair at a time", reached=worst, tolerance=2e-5, unit="max abs")  # fmt: skip


@pytest.mark.parametrize("sizes", [[5, 0, 3, 0], [0, 0, 0, 8], [2, 2, 2, 2], [0, 0, 0, 0]])
def test_grouped_product_of_empty_groups(sizes):
    x, w = torch.randn(sum(sizes), 8), torch.randn(4, 12, 8)
    want = torch.cat([a @ b.T for a, b in zip(x.split(sizes), w, strict=True)])
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    assert torch.allclose(grouped_product(x, w, ends), want, atol=1e-5)
    assert torch.allclose(grouped_product(x.double(), w.double(), ends), want.double(), atol=1e-5)


def dense_of(experts: Experts, i: int = 0) -> SwiGLU:
    mlp = SwiGLU(D, F)
    with torch.no_grad():
        mlp.gate.weight.copy_(experts.gate_up[i, :F])
        mlp.up.weight.copy_(experts.gate_up[i, F:])
        mlp.down.weight.copy_(experts.down[i])
    return mlp


@pytest.mark.parametrize("choice", [TopK(2), TopK(8), Affinity(E, 3), Affinity(E, 2, groups=Groups(4, 2, best=2))])
@torch.no_grad()
def test_equal_experts_are_one_dense_perceptron(choice, evidence):
    experts = Experts(E, D, F)
    experts.gate_up.copy_(experts.gate_up[:1].expand_as(experts.gate_up).clone())
    experts.down.copy_(experts.down[:1].expand_as(experts.down).clone())
    x = torch.randn(3, 7, D)
    got = MoE(LearnedRouter(D, E, choice), experts)(x, plain_context(7))
    evidence(id="AR-29", system="Mixture of experts", claim=f"equal experts, {type(choice).__name__} of {choice.k}",
             reference="dense SwiGLU", reached=(got - dense_of(experts)(x)).abs().max(), tolerance=1e-5,
             unit="max abs")  # fmt: skip


@torch.no_grad()
def test_a_single_expert_is_dense(evidence):
    experts, x = Experts(1, D, F), torch.randn(2, 5, D)
    got = MoE(LearnedRouter(D, 1, TopK(1)), experts)(x, plain_context(5))
    evidence(id="AR-29", system="Mixture of experts", claim="single expert", reference="dense SwiGLU",
             reached=(got - dense_of(experts)(x)).abs().max(), tolerance=1e-5, unit="max abs")  # fmt: skip


def test_gradients_are_exact_in_double():
    torch.manual_seed(1)
    moe = MoE(LearnedRouter(4, 3, TopK(2)), Experts(3, 4, 4)).double()
    names, values = zip(*((n, p) for n, p in moe.named_parameters() if "experts" in n), strict=True)
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)

    def f(x, *values):
        return torch.func.functional_call(moe, dict(zip(names, values, strict=True)), (x.detach(), plain_context(5)))

    assert torch.autograd.gradcheck(f, (x.detach(), *values))


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "expert choice"])
@torch.no_grad()
def test_token_choice_is_causal_in_use(name):
    moe = MoE(LearnedRouter(D, E, CHOICES[name]()), Experts(E, D, F)).eval()
    x = torch.randn(1, 12, D)
    y = x.clone()
    y[:, 8:] = torch.randn(1, 4, D)
    assert torch.allclose(moe(x, plain_context(12))[:, :8], moe(y, plain_context(12))[:, :8], atol=1e-5)
    apart = torch.cat([moe(x[:, t : t + 1], plain_context(1)) for t in range(12)], 1)
    assert torch.allclose(apart, moe(x, plain_context(12)), atol=1e-5)  # so decoding equals prefill


@torch.no_grad()
def test_expert_choice_leaks_the_future():
    torch.manual_seed(0)
    moe = MoE(LearnedRouter(D, E, ExpertChoice(1.0)), Experts(E, D, F)).eval()
    x = torch.randn(1, 32, D)
    y = x.clone()
    y[:, 16:] = 3 * torch.randn(1, 16, D)
    assert not torch.allclose(moe(x, plain_context(32))[:, :16], moe(y, plain_context(32))[:, :16])


def test_groups_refuse_no_more_than_asked():
    scores = torch.rand(64, E)
    allowed = Groups(4, 2).allowed(scores)
    groups = allowed.view(64, 4, 2).any(-1).sum(1)
    assert (groups == 2).all()
    best = scores.view(64, 4, 2).amax(-1).argmax(1)
    assert allowed.view(64, 4, 2)[torch.arange(64), best].all()


def test_padding_takes_no_place_and_counts_for_nothing():
    losses = [SwitchBalance(1.0), ZLoss(1.0), SequenceBalance(1.0)]
    router = LearnedRouter(D, 4, TopK(1, normalise=False, capacity=0.5), losses)
    x, pad = torch.randn(2, 10, D), torch.tensor([4, 0])
    with auxiliary_losses() as padded:
        routing = router(x, plain_context(10, pad=pad))
    assert router.load.sum() == sum(t % 10 >= 4 or t >= 10 for t in routing.tokens.tolist())
    noise = x.clone()
    noise[0, :4] = torch.randn(4, D)
    with auxiliary_losses() as other:
        again = router(noise, plain_context(10, pad=pad))
    kept = [{(t, e) for t, e in zip(r.tokens.tolist(), r.experts.tolist()) if t >= 4} for r in (routing, again)]
    assert kept[0] == kept[1]
    for (name, a), (_, b) in zip(padded, other, strict=True):
        assert torch.allclose(a, b), name


def test_hash_routes_by_the_token():
    router = HashRouter(4, 20, seed=3)
    ctx = plain_context(5)
    with pytest.raises(ConfigError, match="token ids"):
        router(torch.zeros(1, 5, D), ctx)
    ctx.shared["tokens"] = torch.tensor([[1, 2, 1, 7, 2]])
    experts = router(torch.zeros(1, 5, D), ctx).experts.tolist()
    assert experts[0] == experts[2] and experts[1] == experts[4]
    assert torch.bincount(router.table).tolist() == [5, 5, 5, 5]


@torch.no_grad()
def test_bfloat16_experts_route_in_float32():
    moe = MoE(LearnedRouter(D, E, Affinity(E, 2)), Experts(E, D, F))
    x = torch.randn(2, 16, D).bfloat16()
    want = moe.router(x.float(), plain_context(16))
    got = moe.bfloat16().router(x, plain_context(16))
    assert got.logits.dtype == torch.float32 and got.weights.dtype == torch.float32
    y = moe(x, plain_context(16))
    assert y.dtype == torch.bfloat16 and y.isfinite().all()
    assert (got.experts == want.experts).float().mean() > 0.8  # weights were rounded, sums were not


@pytest.mark.slow
def test_compiled_layer_equals_the_eager_one():
    moe, x = MoE(LearnedRouter(D, E, TopK(2)), Experts(E, D, F)).train(), torch.randn(2, 9, D)
    want = moe(x, plain_context(9))
    load = moe.router.load.clone()
    got = torch.compile(moe)(x, plain_context(9))
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.equal(moe.router.load, 2 * load)
    got.square().sum().backward()
    assert moe.experts.down.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "expert choice"])
@torch.no_grad()
def test_exported_layer_equals_the_eager_one(name):
    moe = MoE(LearnedRouter(D, E, CHOICES[name]()), Experts(E, D, F), SwiGLU(D, 8)).eval()

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.moe = moe

        def forward(self, x):
            return self.moe(x, plain_context(x.shape[1]))

    t = torch.export.Dim("t", min=2, max=64)
    graph = torch.export.export(Plain(), (torch.randn(1, 9, D),), dynamic_shapes={"x": {1: t}})
    x = torch.randn(1, 17, D)
    assert torch.allclose(graph.module()(x), moe(x, plain_context(17)), atol=1e-5)
