r"""Layers of several linear maps as one operation, with backward passes by hand: for learning on the CPU in float32.

    gated   g = x W_g^T,  u = x W_u^T,  y = (a(g) * u) W_d^T
    heads   q = R x W_q^T,  k = R x W_k^T,  v = x W_v^T,  R the rotation of a head by its position

Autograd would keep a(g) and a(g) u as well as g and u, and sum the gradients of x in passes of their own; here the
first two are worked out again, and products add to the gradient where it lies. The rest is matrix products (torch's)
and the kernels of `kernels/training.cpp`. Wherever a condition fails, layers take their plain form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from protea.kernels import training as kernels
from protea.nn.activations import gelu_tanh
from protea.nn.fused import again, by_hand

KINDS = {nn.functional.silu: kernels.SILU, gelu_tanh: kernels.GELU_TANH}
ACTIVATIONS = {kind: activation for activation, kind in KINDS.items()}


def fuses(x: Tensor, *maps: nn.Module) -> bool:
    """Whether x (..., d) and these maps of the layer may take the fused form: plain `nn.Linear`, nothing hooked on."""
    if not (by_hand(x) and x.numel() and all(map(_plain, maps))):
        return False
    return kernels.ready(x, *(m.weight for m in maps))  # type: ignore[arg-type]


def _plain(m: nn.Module) -> bool:
    hooked = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return type(m) is nn.Linear and m.bias is None and not hooked and "forward" not in m.__dict__


class GatedByHand(torch.autograd.Function):
    """(x (..., d), W_g, W_u, W_d, kind of a) to y (..., d); see the module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wg: Tensor, wu: Tensor, wd: Tensor, kind: int) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        g, u = flat.mm(wg.t()), flat.mm(wu.t())
        ctx.kind = kind
        ctx.save_for_backward(x, wg, wu, wd, g, u)
        return kernels.gated(g, u, kind).mm(wd.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, wg, wu, wd, g, u = ctx.saved_tensors
        if torch.is_grad_enabled():
            a = ACTIVATIONS[ctx.kind]
            return *again(lambda x, wg, wu, wd: a(x @ wg.t()) * (x @ wu.t()) @ wd.t(), (x, wg, wu, wd), grads), None
        needs = ctx.needs_input_grad
        dy, flat = grads[0].reshape(-1, wd.shape[0]), x.reshape(-1, x.shape[-1])
        dg, du, product = kernels.gated_back(dy.mm(wd), g, u, ctx.kind)
        dx = dg.mm(wg).addmm_(du, wu).view(x.shape) if needs[0] else None
        return (
            dx,
            dg.t().mm(flat) if needs[1] else None,
            du.t().mm(flat) if needs[2] else None,
            dy.t().mm(product) if needs[3] else None,
            None,
        )


class HeadsByHand(torch.autograd.Function):
    """(x (B, T, d), W_q, W_k, W_v, cos, sin or both None, d_head) to q, k, v (B, H, T, d_head); see the module."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cos: Tensor | None, sin: Tensor | None, d_head: int
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        q, k, v = (flat.mm(w.t()).view(*x.shape[:2], -1, d_head).transpose(1, 2) for w in (wq, wk, wv))
        if cos is not None and sin is not None:
            q, k = kernels.rotate(q, cos, sin, out=q), kernels.rotate(k, cos, sin, out=k)
        ctx.d_head = d_head
        ctx.save_for_backward(x, wq, wk, wv, cos, sin)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, wq, wk, wv, cos, sin = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *again(lambda *given: heads(*given, cos, sin, ctx.d_head), (x, wq, wk, wv), grads), None, None, None
        needs, flat = ctx.needs_input_grad, x.reshape(-1, x.shape[-1])
        dx: Tensor | None = None
        dw: list[Tensor | None] = []
        for dy, w, turned, needed in zip(grads, (wq, wk, wv), (cos is not None, cos is not None, False), needs[1:4]):
            if turned:
                dy = kernels.rotate(dy if dy.stride(3) == 1 else dy.contiguous(), cos, sin, -1.0)
            dy = dy.transpose(1, 2).reshape(len(flat), -1)
            if needs[0]:
                dx = dy.mm(w) if dx is None else dx.addmm_(dy, w)
            dw.append(dy.t().mm(flat) if needed else None)
        return None if dx is None else dx.view(x.shape), *dw, None, None, None


def heads(
    x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cos: Tensor | None, sin: Tensor | None, d_head: int
) -> tuple[Tensor, ...]:
    """The plain formula of `HeadsByHand`."""
    q, k, v = ((x @ w.t()).unflatten(-1, (-1, d_head)).transpose(1, 2) for w in (wq, wk, wv))
    if cos is None or sin is None:
        return q, k, v
    return _turn(q, cos, sin), _turn(k, cos, sin), v


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
