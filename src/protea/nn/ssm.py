r"""Selective state space (Gu & Dao 2023, "Mamba: linear-time sequence modeling with selective state spaces").

    Abar_t = exp(Delta_t A),   Bbar_t = Delta_t B_t,
    h_t = Abar_t h_{t-1} + Bbar_t x_t,   y_t = C_t h_t,

for each of D channels a state h of N entries; A is diagonal, Delta, B and C depend on the token.

Time is cut into chunks of `CHUNK` tokens. Inside a chunk all tokens are computed at once, by `scan_`; from one chunk to
the next goes the state alone. Abar, Bbar x and h are N times as large as the input, so they exist for one chunk at a
time, and the backward pass computes them again (Gu & Dao 2023, section 3.3): memory for training is O(T D) + O(T N)
instead of O(T D N).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from protea.nn.context import Context
from protea.nn.scan import scan_

CHUNK = 32


def restarts(ctx: Context) -> Tensor | None:
    """(B, T), True at the first token of a text: it sees neither padding nor another document. None for plain rows."""
    return None if ctx.positions.ndim == 1 else ctx.positions == 0


def without_padding(x: Tensor, ctx: Context) -> Tensor:
    """x (B, T, ...) with zeros at padding."""
    valid = ctx.valid
    return x if valid is None else x * valid.reshape(*valid.shape, *[1] * (x.ndim - 2)).to(x.dtype)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def _chunk(a_in: tuple[Tensor | None, ...], A: Tensor, h_0: Tensor) -> tuple[Tensor, Tensor]:
        """Abar and h of the tokens of one chunk, (B, T, D, N)."""
        x, delta, B, keep = a_in
        assert x is not None and delta is not None and B is not None
        a = (delta[..., None] * A).exp_()
        if keep is not None:
            a = a * keep[:, :, None, None]
        b = (delta * x)[..., None] * B[:, :, None, :]
        b[:, 0].addcmul_(a[:, 0], h_0)
        return a, scan_(a, b)

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h_0: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y, h, starts = torch.empty_like(x), h_0, []
        for t in range(0, x.shape[1], CHUNK):
            s = slice(t, t + CHUNK)
            starts.append(h)
            here = (x[:, s], delta[:, s], B[:, s], None if keep is None else keep[:, s])
            h_all = _SelectiveScan._chunk(here, A, h)[1]
            y[:, s] = (h_all @ C[:, s, :, None])[..., 0]
            h = h_all[:, -1].clone()
        ctx.save_for_backward(x, delta, A, B, C, keep, *starts)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, delta, A, B, C, keep, *starts = ctx.saved_tensors
        dx, ddelta, dB, dC = (torch.empty_like(v) for v in (x, delta, B, C))
        dA, carry = torch.zeros_like(A), dh
        for i in reversed(range(len(starts))):
            s = slice(i * CHUNK, (i + 1) * CHUNK)
            x_, d_, B_, C_, g = x[:, s], delta[:, s], B[:, s], C[:, s], dy[:, s]
            a, h = _SelectiveScan._chunk((x_, d_, B_, None if keep is None else keep[:, s]), A, starts[i])
            lam = g[..., None] * C_[:, :, None, :]
            lam[:, -1] += carry
            lam = scan_(torch.cat((a[:, 1:], a[:, :1]), 1), lam, reverse=True)
            dC[:, s] = (g[:, :, None] @ h)[:, :, 0]
            dB[:, s] = ((d_ * x_)[:, :, None] @ lam)[:, :, 0]
            through = (lam @ B_[..., None])[..., 0]  # of Delta x
            carry = a[:, 0] * lam[:, 0]
            h[:, 1:] = h[:, :-1].clone()
            h[:, 0] = starts[i]
            log_a = lam.mul_(h).mul_(a)  # of Delta A
            dx[:, s] = through * d_
            ddelta[:, s] = torch.addcmul(through * x_, torch.ones_like(x_), (log_a * A).sum(-1))
            dA += torch.einsum("btdn,btd->dn", log_a, d_)
        return dx, ddelta, dA, dB, dC, carry, None


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h_0: Tensor | None = None,
    restart: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y_t of all tokens, and the state after the last.

    Args:
        x: (B, T, D) inputs.
        delta: (B, T, D) step sizes, positive.
        A: (D, N), negative.
        B, C: (B, T, N).
        h_0: (B, D, N), the state before the first token; None for zeros.
        restart: (B, T), True where a text begins, that sees nothing before it; or None.

    Returns:
        y (B, T, D) and h_T (B, D, N), in float32 at least.

    >>> one = torch.ones(1, 3, 1)
    >>> y, h = selective_scan(one, one, -torch.log(torch.tensor([[2.0]])), one, one)
    >>> y.flatten().tolist(), h.item()
    ([1.0, 1.5, 1.75], 1.75)
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, delta, A, B, C = (v.to(dtype) for v in (x, delta, A, B, C))
    if h_0 is None:
        h_0 = x.new_zeros(x.shape[0], *A.shape)
    if x.shape[1] == 1:  # decoding: the recurrence itself
        if restart is not None:
            h_0 = h_0 * ~restart[:, :, None]
        d = delta[:, 0, :, None]
        h = (d * A).exp() * h_0.to(dtype) + (d * x[:, 0, :, None]) * B[:, 0, None]
        return (h @ C[:, 0, :, None])[:, None, :, 0], h
    keep = None if restart is None else (~restart).to(dtype)
    y, h = _SelectiveScan.apply(x, delta, A, B, C, h_0.to(dtype), keep)  # pyright: ignore[reportGeneralTypeIssues]
    return y, h
