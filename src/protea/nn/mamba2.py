r"""The Mamba-2 layer (Dao & Gu 2024): one decay a head, so that the scan becomes matrix products (`nn/ssd.py`).

z, (x, B, C), Delta' = W_in u;   (x, B, C) <- silu(conv(x, B, C));   Delta = softplus(Delta' + b);
S_t = exp(Delta_t A) S_{t-1} + Delta_t B_t x_t^T,   y_t = C_t^T S_t + D x_t;   out = W_o norm(y silu(z)).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.nn.context import Context
from protea.nn.conv1d import CausalConv1d
from protea.nn.mamba import silu, softplus, step_bias
from protea.nn.precise import precise
from protea.nn.ssd import CHUNK, GatedRMSNorm, ssd
from protea.nn.ssm import restarts, without_padding


class Mamba2(nn.Module):
    """The layer.

    Args:
        d_model: width of the residual stream.
        n_heads: H.
        d_head: P, channels of a head.
        d_state: N.
        n_groups: heads of a group share B and C; divides H.
        d_conv: taps of the convolution.
        bias: of W_in and W_o.
        conv_bias: of the convolution.
        norm_eps: of the gated norm.
        step_limit: least and greatest Delta.
        chunk: see `ssd`; the result does not depend on it.

    >>> from protea.nn.context import plain_context
    >>> Mamba2(16, n_heads=4, d_head=8, d_state=8)(torch.zeros(2, 5, 16), plain_context(5)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, d_model: int, n_heads: int, d_head: int = 64, d_state: int = 64, n_groups: int = 1, d_conv: int = 4,
        bias: bool = False, conv_bias: bool = True, norm_eps: float = 1e-5,
        step_limit: tuple[float, float] = (0.0, float("inf")), chunk: int = CHUNK,
    ) -> None:  # fmt: skip
        super().__init__()
        if n_heads % n_groups:
            raise ConfigError(f"{n_heads} heads do not divide into {n_groups} groups.", "n_groups must divide n_heads.")
        d_inner, d_bc = n_heads * d_head, n_groups * d_state
        self.d_head, self.d_state, self.step_limit, self.chunk = d_head, d_state, step_limit, chunk
        self.split, self.xbc = (d_inner, d_inner + 2 * d_bc, n_heads), (d_inner, d_bc, d_bc)
        self.inp = nn.Linear(d_model, sum(self.split), bias=bias)
        self.conv = CausalConv1d(d_inner + 2 * d_bc, d_conv, conv_bias)
        self.dt_bias = nn.Parameter(step_bias(n_heads))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(n_heads))
        self.norm = GatedRMSNorm(d_inner, n_groups, norm_eps)
        self.o = nn.Linear(d_inner, d_model, bias=bias)

    def forward(self, u: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        window, S = (ctx.cache.state(ctx.layer) if ctx.cache is not None else None) or (None, None)
        z, xbc, dt = self.inp(u).split(self.split, -1)
        xbc, window = self.conv(without_padding(xbc, ctx), ctx, window)
        x, B, C = precise(silu(xbc)).split(self.xbc, -1)
        x, B, C = x.unflatten(-1, (-1, self.d_head)), *(v.unflatten(-1, (-1, self.d_state)) for v in (B, C))
        delta = softplus(precise(dt) + self.dt_bias).clamp(*self.step_limit)
        y, S = ssd(C, B, x * delta[..., None], -self.A_log.exp() * delta, S, restarts(ctx), self.chunk)
        if ctx.cache is not None:
            ctx.cache.keep(ctx.layer, window, S)
        return self.o(self.norm((y + self.D[:, None] * x).flatten(-2).to(u.dtype), z))
