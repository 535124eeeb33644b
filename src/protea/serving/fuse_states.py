"""Mamba and Mamba-2 as operations of a `Plan` (`kernels/states.h`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from protea.nn.conv1d import CausalConv1d
from protea.nn.mamba import Mamba
from protea.nn.mamba2 import Mamba2
from protea.nn.ssd import GatedRMSNorm
from protea.serving.fuse import CONVOLVE, GATED_NORM, SCAN, SCAN_HEADS, Unsupported, only

if TYPE_CHECKING:
    from protea.serving.plan import Plan

TAPS = 8  # as in states.h


def convolved(plan: Plan, m: CausalConv1d, x: Tensor, channels: int) -> Tensor:
    """silu of the convolution of x (rows, channels), which may be a part of wider rows."""
    only(m, CausalConv1d, "weight", "bias")
    if m.weight.shape[1] > TAPS:
        raise Unsupported(f"a convolution of {m.weight.shape[1]} taps")
    y = plan.buffer(f"convolved{channels}", channels)
    taps = m.weight.shape[1]
    n = (channels, taps, x.stride(0), plan.state((taps - 1) * channels))
    plan.emit(CONVOLVE, n, (), (x, y, m.weight, m.bias))
    return y


def mamba(plan: Plan, m: Mamba, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    """Inputs and gates; the convolution; Delta, B and C; the recurrence; the way back."""
    only(m, Mamba, "split", "inp", "conv", "select", "norms", "delta", "A_log", "D", "o")
    channels, n = m.A_log.shape
    rank = m.split[0]
    inside = plan.buffer(f"xz{2 * channels}", 2 * channels)
    plan.linear(h, inside, (m.inp,))
    x = convolved(plan, m.conv, inside[:, :channels], channels)
    chosen, delta = plan.buffer(f"select{rank + 2 * n}", rank + 2 * n), plan.buffer(f"delta{channels}", channels)
    plan.linear(x, chosen, (m.select,))
    for norm, part in zip(m.norms, chosen.split(m.split, 1), strict=False):
        plan.norm(norm, part, part)
    plan.linear(chosen[:, :rank], delta, (m.delta,))
    plan.scratch(plan.rows)
    numbers = (channels, n, 2 * channels, rank + 2 * n, plan.state(channels * n))
    plan.emit(SCAN, numbers, (), (x, delta, inside[:, channels:], chosen[:, rank:], m.A_log, m.D))
    plan.linear(delta, y, (m.o,), add)


def mamba2(plan: Plan, m: Mamba2, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    """One projection; the convolution; the recurrence of each head; the gated norm; the way back."""
    only(
        m, Mamba2, "d_head", "d_state", "step_limit", "chunk", "split", "xbc", "inp", "conv", "dt_bias", "A_log", "D",
        "norm", "o",
    )  # fmt: skip
    only(m.norm, GatedRMSNorm, "groups", "eps", "g")
    d, wide, heads = m.split
    inside = plan.buffer(f"zxbcdt{sum(m.split)}", sum(m.split))
    plan.linear(h, inside, (m.inp,))
    xbc = convolved(plan, m.conv, inside[:, d : d + wide], wide)
    found, normed = plan.buffer(f"found{d}", d), plan.buffer(f"gated{d}", d)
    size, groups = m.d_state, m.xbc[1] // m.d_state
    n = (heads, m.d_head, size, groups, wide, inside.shape[1], plan.state(d * size))
    plan.emit(SCAN_HEADS, n, m.step_limit, (xbc, inside[:, d + wide :], found, m.dt_bias, m.A_log, m.D))
    plan.emit(GATED_NORM, (d, m.norm.groups, inside.shape[1]), (m.norm.eps,), (found, normed, inside, m.norm.g))
    plan.linear(normed, y, (m.o,), add)
