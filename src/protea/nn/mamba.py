r"""The Mamba layer (Gu & Dao 2023): a selective state space after a short convolution, and a gate.

    x, z = W_in u;   x <- silu(conv(x));   Delta', B, C = W_x x;   Delta = softplus(W_D Delta' + b_D);
    y = SSM(x; Delta, A, B, C) + D x;      out = W_o (y silu(z)).

What it remembers of a text does not grow: the last K - 1 inputs of the convolution and the state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from protea.nn.context import Context
from protea.nn.conv1d import CausalConv1d
from protea.nn.norm import RMSNorm
from protea.nn.precise import precise
from protea.nn.ssm import restarts, selective_scan, without_padding

softplus, silu = nn.functional.softplus, nn.functional.silu


def step_bias(channels: int, low: float = 1e-3, high: float = 0.1) -> Tensor:
    """(channels,) biases whose softplus, the step size Delta, is log-uniform between `low` and `high` (Gu et al. 2022).

    >>> bool((softplus(step_bias(1000)) >= 9.9e-4).all())
    True
    """
    delta = torch.exp(torch.rand(channels) * (math.log(high) - math.log(low)) + math.log(low))
    return delta + torch.log(-torch.expm1(-delta))  # the inverse of softplus


class Mamba(nn.Module):
    """The layer.

    Args:
        d_model: width of the residual stream.
        d_inner: channels D of the state space; 2 d_model when None.
        d_state: N, entries of a channel's state.
        d_conv: taps of the convolution.
        dt_rank: width of Delta'; ceil(d_model / 16) when None.
        bias: of W_in and W_o.
        conv_bias: of the convolution.
        norm_eps: normalise Delta', B and C by RMSNorms with that eps (Jamba: Lieber et al. 2024); None for not.

    >>> from protea.nn.context import plain_context
    >>> Mamba(16)(torch.zeros(2, 5, 16), plain_context(5)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, d_model: int, d_inner: int | None = None, d_state: int = 16, d_conv: int = 4,
        dt_rank: int | None = None, bias: bool = False, conv_bias: bool = True, norm_eps: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        d_inner, rank = d_inner or 2 * d_model, dt_rank or -(-d_model // 16)
        self.split = (rank, d_state, d_state)
        self.inp = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.conv = CausalConv1d(d_inner, d_conv, conv_bias)
        self.select = nn.Linear(d_inner, sum(self.split), bias=False)
        self.norms = nn.ModuleList() if norm_eps is None else nn.ModuleList(RMSNorm(n, norm_eps) for n in self.split)
        self.delta = nn.Linear(rank, d_inner)
        with torch.no_grad():
            self.delta.bias.copy_(step_bias(d_inner))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.o = nn.Linear(d_inner, d_model, bias=bias)

    def forward(self, u: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        window, h = (ctx.cache.state(ctx.layer) if ctx.cache is not None else None) or (None, None)
        x, z = self.inp(u).chunk(2, -1)
        x, window = self.conv(without_padding(x, ctx), ctx, window)
        x = silu(x)
        parts = self.select(x).split(self.split, -1)
        if len(self.norms):
            parts = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        dt, B, C = parts
        y, h = selective_scan(x, softplus(precise(self.delta(dt))), -self.A_log.exp(), B, C, h, restarts(ctx))
        if ctx.cache is not None:
            ctx.cache.keep(ctx.layer, window, h)
        return self.o(torch.addcmul(y.to(x.dtype), x, self.D) * silu(z))
