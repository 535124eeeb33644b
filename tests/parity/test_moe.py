"""Auxiliary losses and capacity against transformers, routers against DeepSeek's."""

from __future__ import annotations

import pytest
import torch

from protea.nn.auxiliary import auxiliary_losses
from protea.nn.context import plain_context
from protea.nn.router import LearnedRouter
from protea.nn.router_choices import Affinity, Groups, TopK, within_capacity
from protea.nn.router_losses import (
    CommunicationBalance,
    DeviceBalance,
    SequenceBalance,
    SwitchBalance,
    ZLoss,
)

D, E = 16, 8
pytest.importorskip("transformers")


def test_load_balance_of_all_layers_equals_mixtrals(evidence):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    layers = tuple(torch.randn(3 * 10, E) for _ in range(4))
    want = load_balancing_loss_func(layers, E, top_k=2)
    logits = torch.cat(layers)  # transformers averages over layers before it multiplies
    routing = TopK(2)(logits[None], None)
    got = SwitchBalance(1.0)(routing, routing.counts(), None).mean()
    evidence(id="AR-29", system="Mixture of experts", claim="load-balance loss",
             reference="transformers mixtral.load_balancing_loss_func", reached=(got - want).abs(),
             tolerance=1e-5)  # fmt: skip


@pytest.mark.parametrize("pad", [None, torch.tensor([4, 0, 1])])
def test_losses_of_a_layer(pad, evidence):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    router = LearnedRouter(D, E, TopK(2), [SwitchBalance(0.02), ZLoss(0.001)])
    x = torch.randn(3, 10, D)
    ctx = plain_context(10, pad=pad)
    with auxiliary_losses() as terms:
        router(x, ctx)
    (balance, got_balance), (z, got_z) = terms
    assert (balance, z) == ("SwitchBalance", "ZLoss")
    logits = x @ router.weight.T
    mask = None if ctx.valid is None else ctx.valid
    want = 0.02 * load_balancing_loss_func((logits.flatten(0, 1),), E, 2, None if mask is None else mask.int())
    kept = logits if mask is None else logits[mask][None]
    want_z = 0.001 * router_z_loss_func(kept)
    for claim, a, b in (("load-balance loss of a layer", got_balance, want), ("router z-loss", got_z, want_z)):
        evidence(id="AR-35", system="Mixture of experts", claim=f"{claim}{', padded' if pad is not None else ''}",
                 reference="transformers", reached=(a - b).abs().detach(), tolerance=1e-5)  # fmt: skip


def test_capacity_drops_what_switch_drops(evidence):
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

    config = SwitchTransformersConfig(d_model=D, num_experts=4, expert_capacity=5, router_jitter_noise=0.0)
    theirs = SwitchTransformersTop1Router(config).eval()
    ours = LearnedRouter(D, 4, TopK(1, normalise=False, capacity=1.0))
    with torch.no_grad():
        ours.weight.copy_(theirs.classifier.weight)
    x = torch.randn(3, 20, D)
    out = theirs(x)
    mask = next(o for o in out if torch.is_tensor(o) and o.shape == (3, 20, 4) and not o.is_floating_point())
    routing = ours(x, plain_context(20))
    got = torch.zeros(60, 4, dtype=mask.dtype)
    got[routing.tokens, routing.experts] = 1
    evidence(id="AR-34", system="Switch routing", claim="kept and dropped tokens that differ",
             reference="transformers SwitchTransformersTop1Router",
             reached=(got.view_as(mask) != mask).sum(), tolerance=0)  # fmt: skip
    assert routing.wanted - len(routing.tokens) == int(60 - mask.sum()) > 0
    assert float(ours.dropped) == routing.wanted - len(routing.tokens)


def by_hand(scores, experts, k, devices, limit):
    """The sums of the DeepSeek-V2 paper (equations 23-31) and of V3 (17-20), for one text, term by term."""
    t, e = scores.shape
    p = [sum(scores[j][i] / scores[j].sum() for j in range(t)) / t for i in range(e)]
    f = [e / (k * t) * sum(i in experts[j] for j in range(t)) for i in range(e)]
    expert = sum(a * b for a, b in zip(f, p))
    size = e // devices
    device = sum(sum(f[d * size : (d + 1) * size]) / size * sum(p[d * size : (d + 1) * size]) for d in range(devices))
    sends = [sum(any(i // size == d for i in experts[j]) for j in range(t)) for d in range(devices)]
    communication = sum(devices / (limit * t) * sends[d] * sum(p[d * size : (d + 1) * size]) for d in range(devices))
    return [float(x) for x in (expert, device, communication)]


@pytest.mark.parametrize("choice", [TopK(3, groups=Groups(4, 2)), Affinity(E, 3, groups=Groups(4, 2, best=2))])
def test_deepseeks_balance_losses_are_their_sums(choice, evidence):
    losses = [SequenceBalance(1.0), DeviceBalance(4, 1.0), CommunicationBalance(4, 2, 1.0)]
    router = LearnedRouter(D, E, choice, losses)
    with auxiliary_losses() as terms:
        routing = router(torch.randn(2, 6, D), plain_context(6))
    experts = routing.experts.view(2, 6, 3).tolist()
    rows = [by_hand(routing.scores[b].detach(), experts[b], 3, 4, 2) for b in range(2)]
    for i, (name, got) in enumerate(terms):
        want = (rows[0][i] + rows[1][i]) / 2
        evidence(id="AR-32", system="DeepSeek balance losses", claim=f"{name}, {type(choice).__name__}",
                 reference="the papers' sums, term by term", reached=abs(got.item() - want),
                 tolerance=1e-5)  # fmt: skip


def test_gradient_flows_through_probabilities_alone():
    router = LearnedRouter(D, E, TopK(2), [SwitchBalance(1.0)])
    x = torch.randn(2, 30, D)
    with auxiliary_losses() as terms:
        router(x, plain_context(30))
    terms[0][1].backward()
    logits = (x.flatten(0, 1) @ router.weight.detach().T).requires_grad_()
    counts = logits.topk(2).indices.flatten().bincount(minlength=E).float()
    (E * (counts / 60 * logits.softmax(-1).mean(0)).sum()).backward()
    assert torch.allclose(router.weight.grad, logits.grad.T @ x.flatten(0, 1), atol=1e-6)


def test_capacity_is_first_come_first_served_within_a_row():
    experts = torch.tensor([[[0, 1], [0, 2], [0, 1]], [[0, 1], [1, 0], [1, 2]]])
    keep = within_capacity(experts, 3, 2)
    assert keep.tolist() == [[[True, True], [True, True], [False, True]], [[True, True], [True, True], [False, True]]]
