"""Mixtures of experts as operations of a `Plan` (`kernels/experts.h`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from protea.nn.moe import Experts, GatedShared, MoE
from protea.nn.router import LearnedRouter
from protea.nn.router_choices import Affinity, Groups, TopK
from protea.serving.fuse import CHOOSE, COMBINE, EXPERTS, Unsupported, activation, only

if TYPE_CHECKING:
    from protea.serving.plan import Plan

GROUP = 8  # inputs that share one reading of weights, as in products.h


def moe(plan: Plan, m: MoE, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    """Logits, each row's choice, the chosen experts' two products, and their weighted sum."""
    only(m, MoE, "router", "experts", "shared")
    router: Any = m.router
    experts = m.experts
    only(router, LearnedRouter, "n_experts", "losses", "load", "dropped", "weight", "choice")
    only(experts, Experts, "gate_up", "down", "activation")
    e, d, f = experts.down.shape
    choice, top = choice_of(plan, router, h)
    inside, answers = plan.buffer(f"inside{top * f}", top * f), plan.buffer(f"answers{top * d}", top * d)
    plan.scratch(GROUP * max(d, f))
    up = (e, top, d, f, plan.portion(f), activation(experts.activation), 0)
    plan.emit(EXPERTS, up, (), (h, inside, experts.gate_up, choice))
    plan.emit(EXPERTS, (e, top, f, d, plan.portion(d), -1, 1), (), (inside, answers, experts.down, choice))
    shared = gate = None
    if type(m.shared) is GatedShared:
        only(m.shared, GatedShared, "gate", "mlp")
        shared, gate = plan.buffer("shared", d), plan.buffer("gate", 1)
        plan.linear(h, gate, (m.shared.gate,))
        plan.mix(m.shared.mlp, h, shared, layer, add=False)
    elif m.shared is not None:
        plan.mix(m.shared, h, y, layer, add)
        add = True
    plan.emit(COMBINE, (d, top, int(add)), (), (answers, y, choice, shared, gate))


def choice_of(plan: Plan, router: LearnedRouter, h: Tensor) -> tuple[Tensor, int]:
    """Where each row's experts and their weights are written, (rows, 2 k), and k."""
    rule, e = router.choice, router.n_experts
    if type(rule) is TopK:
        only(rule, TopK, "k", "normalise", "scale", "groups", "capacity")
        bias = None
    elif type(rule) is Affinity:
        only(rule, Affinity, "k", "normalise", "scale", "groups", "bias")
        bias = rule.bias
        if bias.dtype != torch.float32 or bias.device.type != "cpu":
            raise Unsupported("a bias of the router that is not float32 on the CPU")
    else:
        raise Unsupported(f"{type(rule).__name__} has no fused form")
    groups = rule.groups or Groups(1, 1)
    if rule.k > groups.kept * (e // groups.n) or e % groups.n:
        raise Unsupported("groups of experts that are too small")
    logits, choice = plan.buffer(f"logits{e}", e), plan.buffer(f"choice{rule.k}", 2 * rule.k)
    plan.product(h, logits, [router.weight], [None])
    n = (e, rule.k, int(bias is not None), int(rule.normalise), groups.n, groups.kept, groups.best)
    plan.emit(CHOOSE, n, (rule.scale,), (logits, choice, bias))
    return choice, rule.k
