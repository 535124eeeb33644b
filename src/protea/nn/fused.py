r"""Small operations of every layer with backward passes by hand, which need half the passes over memory of autograd's.

    rms_norm   y = g h, h = r x, r = (mean x^2 + eps)^(-1/2);   dx = r (a - h mean(a h)), a = g dy;   dg = sum dy h
    rotate     y = R x, half-split pairs turned by angles;      dx = R^T dy, the same turned back
    nats       y = z - l_t, z = log sum_j e^l_j;                dl = (dy + dz) e^(l - z) - dy [j = t]

Used while learning only, in eager float32; a compiler fuses the plain formulas itself. On the CPU they are compiled
kernels, one pass over memory each (`kernels/training.cpp`). All may be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protea.kernels import training as kernels


def by_hand(x: Tensor) -> bool:
    """Whether x is to be differentiated, and nobody looks at single operations (see `kernels.watched`)."""
    plain = x.requires_grad and torch.is_grad_enabled() and not kernels.watched()
    return plain and type(x) is Tensor and x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)


def again(plain: Callable[..., Any], given: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of the plain formula as functions of what was given, for a second derivative."""
    out = plain(*given)
    wanted = [x for x in given if x.requires_grad]
    outs = list(out) if isinstance(out, tuple) else [out]
    found = iter(torch.autograd.grad(outs, wanted, list(grads), create_graph=True))
    return [next(found) if x.requires_grad else None for x in given]


class RMSNormByHand(torch.autograd.Function):
    """(x, g, eps) to g x / sqrt(mean(x^2) + eps), over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, eps: float) -> Tensor:
        ctx.eps, ctx.compiled = eps, kernels.ready(x, g)
        if ctx.compiled:
            y, r = kernels.rms_norm(x, g, eps)
        else:
            h, r = _normed(x, eps)
            y = h * g
        ctx.save_for_backward(x, g, r)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, g, r = ctx.saved_tensors
        differentiable = torch.is_grad_enabled()  # to be differentiated again: h and r as functions of x
        if ctx.compiled and not differentiable:
            return *kernels.rms_norm_back(grads[0], x, g, r), None
        h, r = _normed(x, ctx.eps) if differentiable else (x * r, r)
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
        return _turned(grads[0], cos, sin, -1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float = 1.0) -> Tensor:
    if not torch.is_grad_enabled() and kernels.ready(x, cos, sin) and kernels.turns(x, cos):
        return kernels.rotate(x, cos, sin, sign)
    half, sin = x.shape[-1] // 2, sin * sign
    return torch.addcmul(x * torch.cat((cos, cos), -1), x.roll(half, -1), torch.cat((-sin, sin), -1))


def nats(logits: Tensor, target: Tensor) -> Tensor:
    """What each target costs, (N,): logsumexp l - l_t, and 0 where t is negative.

    Args:
        logits: (N, V).
        target: (N,) integers below V; a negative one is left out.

    >>> nats(torch.zeros(2, 4), torch.tensor([0, -1])).exp().round(decimals=4).tolist()
    [4.0, 1.0]
    """
    return _by_hand(logits, target)[0] if _kernel_takes(logits, target) else _nats(logits, target)


def nats_and_normaliser(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`nats`, and logsumexp l, (N,)."""
    if _kernel_takes(logits, target):
        return _by_hand(logits, target)
    return _nats(logits, target), logits.logsumexp(-1)


def _kernel_takes(logits: Tensor, target: Tensor) -> bool:
    plain = logits.is_contiguous() and logits.numel() > 0 and target.dtype == torch.int64
    return (
        plain and kernels.ready(logits) and not torch.is_autocast_enabled("cpu") and int(target.max()) < logits.shape[1]
    )


def _by_hand(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return NatsByHand.apply(logits, target.contiguous())  # type: ignore[no-any-return]


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    wanted = target.masked_fill(target < 0, -100)
    return nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="none")


class NatsByHand(torch.autograd.Function):
    """(l, target) to what `nats_and_normaliser` gives."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        y, z, parts = kernels.nats(logits, target)
        ctx.save_for_backward(logits, target, parts)
        return y, z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        logits, target, parts = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(lambda l: (_nats(l, target), l.logsumexp(-1)), [logits], grads)[0], None
        return kernels.nats_back(*grads, logits, target, parts), None
