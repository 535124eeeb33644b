"""How each part of a decoder becomes operations of a `Plan`; what is not here has no fused form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from protea.nn.activations import gelu_tanh, relu_squared
from protea.nn.attention import GQA, ALiBi, SoftCap, sdpa
from protea.nn.branches import Parallel
from protea.nn.logits import LogitCap, LogitScale
from protea.nn.mlp import MLP
from protea.nn.mlp_gated import GatedMLP
from protea.nn.norm import OffsetRMSNorm, RMSNorm
from protea.nn.position import LearnedPositions, RoPE, Sinusoidal, rotate, rotate_interleaved

if TYPE_CHECKING:
    from protea.serving.plan import Plan

EMBED, NORM, LINEAR, GLU, REMEMBER, ATTEND, ADD, GATHER, SOFTCAP, CHOOSE, EXPERTS, COMBINE = range(12)  # as in plan.h
REMEMBER_LATENT, ABSORB, EXPAND, CONVOLVE, SCAN, SCAN_HEADS, GATED_NORM = range(12, 19)
ACTIVATIONS: dict[object, int] = {
    nn.functional.silu: 0, gelu_tanh: 1, nn.functional.gelu: 2, nn.functional.relu: 3, relu_squared: 4,
    nn.SiLU: 0, nn.ReLU: 3,
}  # fmt: skip


class Unsupported(Exception):
    """The decoder has a part that no fused operation computes."""


def only(module: Any, kind: type, *known: str) -> None:
    """Refuse a module of another class, or one with parts beside the known ones."""
    if type(module) is not kind:
        raise Unsupported(f"{type(module).__name__} has no fused form")
    parts = {*module._parameters, *module._modules, *module._buffers}
    own = {name for name in vars(module) if not name.startswith("_") and name != "training"}
    if strange := {n for n in (parts | own) - set(known) if getattr(module, n) is not None}:
        raise Unsupported(f"{kind.__name__}.{sorted(strange)[0]} has no fused form")
    if module._forward_hooks or module._forward_pre_hooks:
        raise Unsupported(f"{kind.__name__} has a hook")


def norm_facts(module: Any) -> tuple[Tensor | None, Tensor | None, float, float, bool]:
    """Gain, shift, epsilon, what is added to the gain, and whether the mean is taken off."""
    if type(module) in (RMSNorm, OffsetRMSNorm):
        only(module, type(module), "g", "eps")
        return module.g, None, module.eps, float(type(module) is OffsetRMSNorm), False
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        return module.weight, module.bias, module.eps, 0.0, True
    raise Unsupported(f"{type(module).__name__} has no fused form")


def finish_facts(module: nn.Module) -> tuple[float, float]:
    """Scale and soft cap (0: none) of logits."""
    if type(module) is LogitCap:
        return 1.0, module.cap
    if type(module) is LogitScale:
        return module.scale, 0.0
    raise Unsupported(f"{type(module).__name__} has no fused form")


def positions_table(position: nn.Module | None, longest: int) -> Tensor | None:
    """What an embedding adds at each position, (longest, d)."""
    if position is None:
        return None
    if type(position) is LearnedPositions:
        if len(position.weight) < longest:
            raise Unsupported(f"{len(position.weight)} learned positions are fewer than {longest}")
        return position.weight
    if type(position) is Sinusoidal:
        return position(torch.arange(longest)).contiguous()
    raise Unsupported(f"{type(position).__name__} has no fused form")


def activation(function: object) -> int:
    """Its number in products.h."""
    if isinstance(function, nn.GELU):
        return 1 if function.approximate == "tanh" else 2
    found = ACTIVATIONS.get(function, ACTIVATIONS.get(type(function)))
    if found is None:
        raise Unsupported(f"the activation {function!r} has no fused form")
    return found


def gqa(plan: Plan, m: GQA, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    """Projections side by side; heads normed, turned and remembered; attention over the blocks; the way back."""
    only(m, GQA, "q", "k", "v", "o", "d_head", "position", "kernel", "window", "scale", "qk_norm")
    d, q, k = m.d_head, m.q.out_features, m.k.out_features
    heads, kv, block = q // d, k // d, plan.blocks.block
    cap, slopes = 0.0, None
    if type(m.kernel) is SoftCap:
        cap = m.kernel.cap
    elif type(m.kernel) is ALiBi:
        slopes = m.kernel.slopes.float().contiguous()
    elif m.kernel is not sdpa:
        raise Unsupported(f"the kernel {m.kernel!r} has no fused form")
    norms, eps, plus = (None, None), 0.0, 0.0
    if m.qk_norm is not None:
        (gq, _, *one), (gk, _, *two) = norm_facts(m.qk_norm.q), norm_facts(m.qk_norm.k)
        if one != two or one[2] or gq is None or gk is None or gq.shape != (d,) or gk.shape != (d,):
            raise Unsupported("norms of queries and keys that have no fused form")
        norms, (eps, plus, _) = (gq, gk), one
    turned, layout, cos, sin = (0, 0, None, None) if m.position is None else turning(plan, m.position)
    shape = torch.empty(1, kv, 1, d)
    keys, values = plan.blocks.layer(layer, m.window, shape, shape)
    qkv, a = plan.buffer(f"qkv{q + 2 * k}", q + 2 * k), plan.buffer(f"a{q}", q)
    tables = plan.pointers(m.window)
    plan.linear(h, qkv, (m.q, m.k, m.v))
    n = (heads, kv, d, d, block, turned, layout, m.window or 0, q + 2 * k, d)
    plan.emit(REMEMBER, n, (eps, plus), (qkv, keys, values, tables, cos, sin, *norms))
    plan.emit(ATTEND, n, (m.scale or 1 / math.sqrt(d), cap), (qkv, keys, values, tables, slopes, a))
    plan.linear(a, y, (m.o,), add)


def turning(plan: Plan, rope: RoPE) -> tuple[int, int, Tensor, Tensor]:
    """Entries of a head that are turned, whether they are interleaved, and cos and sin of every position."""
    only(rope, RoPE, "frequencies", "scale", "turn")
    if rope.turn not in (rotate, rotate_interleaved):
        raise Unsupported("a rotary layout that has no fused form")
    cos, sin = rotary_table(plan, rope)
    return 2 * cos.shape[1], int(rope.turn is rotate_interleaved), cos, sin


def rotary_table(plan: Plan, rope: RoPE) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, (longest, half), once for all layers."""
    for name, made in plan.rotary:
        if name is rope:
            return made
    cos, sin = rope.angles(torch.arange(plan.blocks.longest))
    plan.rotary.append((rope, (cos.float().contiguous(), sin.float().contiguous())))
    return plan.rotary[-1][1]


def gated(plan: Plan, m: GatedMLP, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    only(m, GatedMLP, "gate", "up", "down", "activation")
    inside = plan.buffer(f"m{m.gate.out_features}", m.gate.out_features)
    plan.linear(h, inside, (m.gate, m.up), act=activation(m.activation), kind=GLU)
    plan.linear(inside, y, (m.down,), add)


def plain(plan: Plan, m: MLP, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    only(m, MLP, "up", "down", "activation")
    inside = plan.buffer(f"m{m.up.out_features}", m.up.out_features)
    plan.linear(h, inside, (m.up,), act=activation(m.activation))
    plan.linear(inside, y, (m.down,), add)


def parallel(plan: Plan, m: Parallel, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    only(m, Parallel, "mixers")
    for i, mixer in enumerate(m.mixers):
        plan.mix(mixer, h, y, layer, add or i > 0)
