r"""The matrix memory of xLSTM (Beck et al. 2024, "xLSTM: extended long short-term memory", section 2.3).

    C_t = f_t C_{t-1} + i_t k_t v_t^T,   n_t = f_t n_{t-1} + i_t k_t,   f_t = sigmoid(f~_t),   i_t = exp(i~_t),
    h_t = C_t^T q_t / max(|n_t^T q_t|, 1),   q scaled by 1 / sqrt(D).

Stabilised: with m_t = max(log f_t + m_{t-1}, i~_t), m_0 = 0, the gates f'_t = exp(log f_t + m_{t-1} - m_t) and
i'_t = exp(i~_t - m_t) are at most 1, C and n are kept times exp(-m_t), and the 1 becomes exp(-m_t). The result does not
depend on m, so no gradient goes through it.

m is a scan of (max, +), in O(log T) steps. What remains is a decaying linear memory with decay f' and keys i' k, that
of `ssd`: parallel within chunks, a linear scan between them. n is the column of C that a constant 1 in v writes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protea.nn.context import Context
from protea.nn.precise import precise
from protea.nn.scan import associative_scan
from protea.nn.ssd import CHUNK, ssd
from protea.nn.ssm import restarts

State = tuple[Tensor, Tensor]  # (C and n, (B, H, D, P + 1), times exp(-m)), (m, (B, H))


@torch.no_grad()
def stabiliser(log_f: Tensor, i: Tensor, m_0: Tensor | None, restart: Tensor | None) -> tuple[Tensor, Tensor]:
    """m_t, and m_{t-1} as token t sees it (0 where a text begins): (B, T, H) each.

    >>> stabiliser(torch.tensor([[[-1.0], [-1.0]]]), torch.tensor([[[3.0], [0.0]]]), None, None)[0].flatten().tolist()
    [3.0, 2.0]
    """
    if m_0 is None:
        m_0 = torch.zeros_like(i[:, 0])
    first = torch.zeros(i.shape[:2], dtype=torch.bool, device=i.device) if restart is None else restart
    add = log_f.masked_fill(first[..., None], -torch.inf)
    least = torch.where(first[..., None], torch.maximum(i, log_f), i)
    least[:, 0] = torch.maximum(least[:, 0], add[:, 0] + m_0)
    m = associative_scan(lambda a, b: (a[0] + b[0], torch.maximum(a[1] + b[0], b[1])), (add, least))[1]
    before = torch.cat((m_0[:, None], m[:, :-1]), 1).masked_fill(first[..., None], 0.0)
    return m, before


def mlstm(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State | None = None, restart: Tensor | None = None,
    chunk: int = CHUNK, eps: float = 1e-6,
) -> tuple[Tensor, State]:  # fmt: skip
    """h_t of all tokens, and the state after the last.

    Args:
        q, k: (B, T, H, D).
        v: (B, T, H, P).
        i, f: (B, T, H), before their activations.
        state: what the last call returned; None before the first token.
        restart: (B, T), True where a text begins, that sees nothing before it; or None.
        chunk: tokens computed by one matrix; the result does not depend on it.
        eps: added to the stabilised denominator.

    Returns:
        h (B, T, H, P), and the state.

    >>> one = torch.ones(1, 2, 1, 1)
    >>> h, (C, m) = mlstm(one, one, 3 * one, torch.zeros(1, 2, 1), torch.full((1, 2, 1), 100.0))
    >>> h.round(decimals=4).flatten().tolist(), C.flatten().tolist()
    ([3.0, 3.0], [6.0, 2.0])
    """
    log_f = nn.functional.logsigmoid(f)
    m, before = stabiliser(log_f, i, None if state is None else state[1], restart)
    k = k * (i - m).exp()[..., None]
    v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    decay = log_f + (before - m)  # at most 0, but for rounding
    y, C = ssd(q * q.shape[-1] ** -0.5, k, v, decay, None if state is None else state[0], restart, chunk)
    scale = torch.maximum(y[..., -1].abs(), (-m).exp()) + eps
    return y[..., :-1] / scale[..., None], (C, m[:, -1])


class HeadNorm(nn.Module):
    """LayerNorm of each head's entries, with a gain for every channel.

    Args:
        heads, d_head: (..., heads, d_head) goes in, (..., heads * d_head) comes out.
        eps: added to the variance.

    >>> HeadNorm(1, 2)(torch.tensor([[1.0, 3.0]])).round(decimals=3).tolist()
    [-1.0, 1.0]
    """

    def __init__(self, heads: int, d_head: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(heads * d_head))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(precise(x), x.shape[-1:], eps=self.eps).flatten(-2).to(self.g.dtype) * self.g


class MLSTM(nn.Module):
    """The layer as in xLSTM-7B (Beck et al. 2025): gates capped, heads normalised, an output gate.

    Args:
        d_model: width of the residual stream.
        n_heads: H.
        d_qk, d_v: widths of all heads' keys and values; d_model / 2 and d_model when None.
        gate_cap: i~ and f~ are c tanh(. / c); None for not.
        norm_eps: of the heads' norm.
        chunk: see `mlstm`.
        eps: see `mlstm`.

    >>> from protea.nn.context import plain_context
    >>> MLSTM(16, 2)(torch.zeros(2, 5, 16), plain_context(5)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, d_model: int, n_heads: int, d_qk: int | None = None, d_v: int | None = None,
        gate_cap: float | None = 15.0, norm_eps: float = 1e-6, chunk: int = CHUNK, eps: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__()
        d_qk, d_v = d_qk or d_model // 2, d_v or d_model
        self.n_heads, self.gate_cap, self.chunk, self.eps = n_heads, gate_cap, chunk, eps
        self.q = nn.Linear(d_model, d_qk, bias=False)
        self.k = nn.Linear(d_model, d_qk, bias=False)
        self.v = nn.Linear(d_model, d_v, bias=False)
        self.gate = nn.Linear(d_model, d_v, bias=False)
        self.i = nn.Linear(d_model, n_heads)
        self.f = nn.Linear(d_model, n_heads)
        self.norm = HeadNorm(n_heads, d_v // n_heads, norm_eps)
        self.o = nn.Linear(d_v, d_model, bias=False)
        with torch.no_grad():  # write little, forget little
            self.i.bias.fill_(-4.0)
            self.f.bias.copy_(torch.linspace(3.0, 6.0, n_heads))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        state = ctx.cache.state(ctx.layer) if ctx.cache is not None else None
        q, k, v = (precise(w(x)).unflatten(-1, (self.n_heads, -1)) for w in (self.q, self.k, self.v))
        i, f = precise(self.i(x)), precise(self.f(x))
        if (c := self.gate_cap) is not None:
            i, f = c * torch.tanh(i / c), c * torch.tanh(f / c)
        known = None if state is None else (state[0], state[1])
        h, new = mlstm(q, k, v, i, f, known, restarts(ctx), self.chunk, self.eps)
        if ctx.cache is not None:
            ctx.cache.keep(ctx.layer, *new)
        return self.o(torch.sigmoid(self.gate(x)) * self.norm(h).to(x.dtype))
