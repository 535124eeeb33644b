r"""Small operations of every layer with backward passes by hand, which need half the passes over memory of autograd's.

    rms_norm   y = g h, h = r x, r = (mean x^2 + eps)^(-1/2);   dx = r (a - h mean(a h)), a = g dy;   dg = sum dy h
    rotate     y = R x, half-split pairs turned by angles;      dx = R^T dy, the same turned back

Used while learning only, in eager float32; a compiler fuses the plain formulas itself. Both may be differentiated
again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def by_hand(x: Tensor) -> bool:
    """Whether x is to be differentiated, and not by a compiler or exporter."""
    plain = x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return plain and type(x) is Tensor and x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)


class RMSNormByHand(torch.autograd.Function):
    """(x, g, eps) to g x / sqrt(mean(x^2) + eps), over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, eps: float) -> Tensor:
        h, r = _normed(x, eps)
        ctx.save_for_backward(x, g, h, r)
        ctx.eps = eps
        return h * g

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, g, h, r = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again: h and r as functions of x
            h, r = _normed(x, ctx.eps)
        e = grads[0] * h
        mean = (e @ g)[..., None] / g.shape[0]
        return torch.addcmul(grads[0] * g, h, mean, value=-1) * r, e.flatten(0, -2).sum(0), None


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + eps).rsqrt()
    return x * r, r


class RotateByHand(torch.autograd.Function):
    """(x, cos, sin) to x turned, with cos and sin (..., T, D / 2) of angles that are not learnt."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.addcmul(x * torch.cat((cos, cos), -1), x.roll(half, -1), torch.cat((-sin, sin), -1))
