r"""The scalar memory of xLSTM, with memory mixing (Beck et al. 2024, section 2.2).

    (i~, f~, z~, o~)_t = W x_t + R h_{t-1} + b,   z = tanh(z~), o = sigmoid(o~), f = sigmoid(f~), i = exp(i~),
    c_t = f c_{t-1} + i z,   n_t = f n_{t-1} + i,   h_t = o c_t / n_t,

kept times exp(-m_t) with m_t = max(log f_t + m_{t-1}, i~_t), before the first token minus infinity. R is block
diagonal: the cells of a head see one another's outputs, so they can track a state that no memory without mixing can.

Because h_{t-1} passes through R and a nonlinearity, the recurrence is not associative: this is the one layer whose time
is inherently sequential, and its loop over tokens is not one that a scan could replace. Everything else is outside it:
W x for all tokens before, the gradients of W and R for all tokens after.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from protea.nn.context import Context
from protea.nn.conv1d import CausalConv1d
from protea.nn.mlstm import HeadNorm
from protea.nn.precise import precise
from protea.nn.ssm import restarts, without_padding

State = tuple[Tensor, Tensor, Tensor, Tensor]  # h, c, n, m


class _SLSTM(torch.autograd.Function):
    """Tensors are (T, H, B, 4, D) for gates, (H, B, D) for states: a step is one batched product and pointwise work."""

    @staticmethod
    def forward(
        ctx: Any, wx: Tensor, R: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, ...]:
        steps, heads, batch, _, d = wx.shape
        kernel = R.flatten(2)  # (H, D, 4 D)
        kept = []
        hs = wx.new_empty(steps, heads, batch, d)
        for t in range(steps):
            if keep is not None:
                h, c, n = h * keep[t], c * keep[t], n * keep[t]
                m = m.masked_fill(keep[t] == 0, -torch.inf)
            g = torch.baddbmm(wx[t].flatten(2), h, kernel).view(heads, batch, 4, d)
            log_f = nn.functional.logsigmoid(g[:, :, 1]) + m
            m = torch.maximum(log_f, g[:, :, 0])
            i, f = torch.exp(g[:, :, 0] - m), torch.exp(log_f - m)
            z, o = torch.tanh(g[:, :, 2]), torch.sigmoid(g[:, :, 3])
            kept.append((h, c, n, i, f, z, o, torch.sigmoid(-g[:, :, 1])))
            c, n = torch.addcmul(f * c, i, z), torch.addcmul(i, f, n)
            h = torch.mul(o, c / n, out=hs[t])
        ctx.save_for_backward(kernel, *(torch.stack(v) for v in zip(*kept, strict=True)), keep)
        ctx.mark_non_differentiable(m)
        return hs, h.clone(), c, n, m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dhs: Tensor, dh: Tensor, dc: Tensor, dn: Tensor, _: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kernel, h_, c_, n_, i, f, z, o, back, keep = ctx.saved_tensors
        steps, heads, batch, d = h_.shape
        dg = h_.new_empty(steps, heads, batch, 4, d)
        n = torch.addcmul(i, f, n_)
        ratio, o_n = torch.addcmul(f * c_, i, z) / n, o / n
        by_f, by_z, by_o, across = f * back, i * (1 - z * z), ratio * o * (1 - o), kernel.transpose(1, 2)
        for t in range(steps - 1, -1, -1):
            dh = dh + dhs[t]
            through = dh * o_n[t]
            dc, dn = dc + through, torch.addcmul(dn, through, ratio[t], value=-1)
            torch.mul(i[t], torch.addcmul(dn, dc, z[t]), out=dg[t, :, :, 0])
            torch.mul(by_f[t], torch.addcmul(dn * n_[t], dc, c_[t]), out=dg[t, :, :, 1])
            torch.mul(dc, by_z[t], out=dg[t, :, :, 2])
            torch.mul(dh, by_o[t], out=dg[t, :, :, 3])
            dh, dc, dn = torch.bmm(dg[t].flatten(2), across), dc * f[t], dn * f[t]
            if keep is not None:
                dh, dc, dn = dh * keep[t], dc * keep[t], dn * keep[t]
        dR = torch.einsum("thbd,thbge->hdge", h_, dg)
        return dg, dR, dh, dc, dn, None, None


def slstm(wx: Tensor, R: Tensor, state: State | None = None, restart: Tensor | None = None) -> tuple[Tensor, State]:
    """h_t of all tokens, and the state after the last.

    Args:
        wx: (B, T, 4, H, D), W x + b of the gates i, f, z, o.
        R: (H, D, 4, D), from a head's outputs to its gates.
        state: h, c, n, m after the token before, each (B, H, D); None before the first.
        restart: (B, T), True where a text begins, that sees nothing before it; or None.

    Returns:
        h (B, T, H, D), and the state.

    >>> h, _ = slstm(torch.zeros(1, 3, 4, 1, 2) + torch.arange(4.0).view(4, 1, 1), torch.zeros(1, 2, 4, 2))
    >>> [round(x, 4) for x in h[0, :, 0, 0].tolist()]  # sigmoid(3) tanh(2), whatever the time
    [0.9183, 0.9183, 0.9183]
    """
    gates = wx.permute(1, 3, 0, 2, 4).contiguous()  # (T, H, B, 4, D)
    if state is None:
        zero = gates.new_zeros(*gates.shape[1:3], gates.shape[-1])
        old = (zero, zero, zero, torch.full_like(zero, -torch.inf))
    else:
        old = tuple(s.transpose(0, 1) for s in state)
    keep = None if restart is None else (~restart).T[:, None, :, None].to(wx.dtype)
    hs, *new = _SLSTM.apply(gates, R, *old, keep)  # pyright: ignore[reportGeneralTypeIssues]
    h, c, n, m = (s.transpose(0, 1) for s in new)
    return hs.permute(2, 0, 1, 3), (h, c, n, m)


class SLSTM(nn.Module):
    """The layer: i and f see a short convolution of the input, heads are normalised apart.

    Args:
        d_model: width of the residual stream and of the memory.
        n_heads: blocks of R; divides d_model.
        d_conv: taps of the convolution.
        norm_eps: of the heads' norm.

    >>> from protea.nn.context import plain_context
    >>> SLSTM(16, 2)(torch.zeros(2, 5, 16), plain_context(5)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(self, d_model: int, n_heads: int, d_conv: int = 4, norm_eps: float = 1e-6) -> None:
        super().__init__()
        d = d_model // n_heads
        self.n_heads = n_heads
        self.conv = CausalConv1d(d_model, d_conv)
        self.i_f = nn.Linear(d_model, 2 * d_model)
        self.z_o = nn.Linear(d_model, 2 * d_model)
        self.R = nn.Parameter(torch.zeros(n_heads, d, 4, d))
        self.norm = HeadNorm(n_heads, d, norm_eps)
        self.o = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():  # forget gates from 1 / (1 + e^-3) to 1 / (1 + e^-6) over the cells of a head
            self.i_f.bias.zero_()[d_model:] = torch.linspace(3.0, 6.0, d).repeat(n_heads)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        state = ctx.cache.state(ctx.layer) if ctx.cache is not None else None
        window, known = (None, None) if state is None else (state[0], (state[1], state[2], state[3], state[4]))
        mixed, window = self.conv(without_padding(x, ctx), ctx, window)
        gates = torch.cat((self.i_f(nn.functional.silu(mixed)), self.z_o(x)), -1)
        h, new = slstm(precise(gates).unflatten(-1, (4, self.n_heads, -1)), precise(self.R), known, restarts(ctx))
        if ctx.cache is not None:
            ctx.cache.keep(ctx.layer, window, *new)
        return self.o(self.norm(h).to(x.dtype))
