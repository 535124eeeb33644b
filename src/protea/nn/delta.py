r"""The gated delta rule (Yang et al. 2024, "Gated delta networks: improving Mamba2 with delta rule").

    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,   y_t = S_t^T q_t,

with alpha_t and beta_t between 0 and 1 and |k_t| = 1: what the memory says of k_t is replaced by v_t, in proportion to
beta_t. Within a chunk, with the decays D_ts of `nn/ssd.py` and K the keys, the values that are really written solve a
triangular system (the WY form),

    (I + tril(beta K K^T * D, -1)) U = beta (V - D_t0 K S),

so that U = U_V - W S for the state S before the chunk, and S after it is a linear function M S + N of S:
M = D_L0 I - (D_L K)^T W, N = (D_L K)^T U_V. The chunks' (M, N) are composed by an associative scan. No loop over time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protea.nn.context import Context
from protea.nn.conv1d import CausalConv1d
from protea.nn.mamba import silu, softplus, step_bias
from protea.nn.precise import precise
from protea.nn.scan import associative_scan
from protea.nn.ssd import CHUNK, Decay, chunked, unchunked
from protea.nn.ssm import restarts, without_padding


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(|x|^2 + eps) over the last axis.

    >>> unit(torch.tensor([3.0, 4.0])).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, log_alpha: Tensor, beta: Tensor, state: Tensor | None = None,
    restart: Tensor | None = None, chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y_t of all tokens, and the state after the last.

    Args:
        q, k: (B, T, G, D), keys of length 1; head h reads group h // (H / G).
        v: (B, T, H, P).
        log_alpha: (B, T, H), at most 0.
        beta: (B, T, H).
        state: (B, H, D, P), S before the first token; None for zeros.
        restart: (B, T), True where a text begins, that sees nothing before it; or None.
        chunk: tokens computed by one triangular system; the result does not depend on it.

    Returns:
        y (B, T, H, P) and S_T (B, H, D, P).

    >>> one, v = torch.ones(1, 2, 1, 1), torch.tensor([3.0, 7.0]).view(1, 2, 1, 1)
    >>> gated_delta(one, one, v, 0 * one[..., 0], one[..., 0])[0].flatten().tolist()
    [3.0, 7.0]
    """
    t, each = v.shape[1], v.shape[2] // q.shape[2]
    q, k = q.repeat_interleave(each, 2), k.repeat_interleave(each, 2)
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    if t == 1:  # decoding: the recurrence itself
        q, k, v = q[:, 0, :, :, None], k[:, 0, :, :, None], v[:, 0, :, None]
        left = log_alpha[:, 0].exp() if restart is None else log_alpha[:, 0].exp() * ~restart
        state = left[..., None, None] * state
        state = state + k @ (beta[:, 0, :, None, None] * (v - k.transpose(-1, -2) @ state))
        return (q.transpose(-1, -2) @ state).transpose(1, 2), state
    chunk = min(chunk, t)
    decay = Decay(chunked(log_alpha, chunk), None if restart is None else chunked(restart[..., None], chunk)[:, 0])
    q, k, v, beta = (chunked(x, chunk) for x in (q, k, v, beta[..., None]))
    system = beta * (k @ k.transpose(-1, -2)) * decay.within  # its diagonal is taken as ones
    known = torch.cat((beta * v, beta * k * decay.since[..., None]), -1)
    u, w = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True).split(
        (v.shape[-1], k.shape[-1]), -1
    )
    ends = (k * decay.until[..., None]).transpose(-1, -2)  # (B, H, M, D, L)
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    move = decay.since[..., -1][..., None, None] * eye - ends @ w
    n = ends @ u
    moves, news = associative_scan(
        lambda a, b: (b[0] @ a[0], b[0] @ a[1] + b[1]), (move.transpose(1, 2), n.transpose(1, 2))
    )
    after = (moves @ state[:, None] + news).transpose(1, 2)  # (B, H, M, D, P)
    before = torch.cat((state[:, :, None], after[:, :, :-1]), 2)
    u = u - w @ before
    y = (q @ k.transpose(-1, -2) * decay.within) @ u + (q * decay.since[..., None]) @ before
    return unchunked(y, t), after[:, :, -1]


class GatedDeltaNet(nn.Module):
    """The layer: short convolutions of q, k and v, keys and queries of length 1, a gated norm of each head.

    Args:
        d_model: width of the residual stream.
        n_heads: value heads H.
        n_qk_heads: query and key heads; divides H.
        d_qk, d_v: widths of a head.
        d_conv: taps of the convolution.
        norm_eps: of the heads' norm.
        chunk: see `gated_delta`.

    >>> from protea.nn.context import plain_context
    >>> GatedDeltaNet(16, 4, 2, 8, 8)(torch.zeros(2, 5, 16), plain_context(5)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, d_model: int, n_heads: int, n_qk_heads: int, d_qk: int, d_v: int, d_conv: int = 4,
        norm_eps: float = 1e-6, chunk: int = CHUNK,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_heads, self.d_qk, self.d_v, self.chunk, self.norm_eps = n_heads, d_qk, d_v, chunk, norm_eps
        self.split = (n_qk_heads * d_qk, n_qk_heads * d_qk, n_heads * d_v)
        self.qkv = nn.Linear(d_model, sum(self.split), bias=False)
        self.gate = nn.Linear(d_model, n_heads * d_v, bias=False)
        self.alpha_beta = nn.Linear(d_model, 2 * n_heads, bias=False)
        self.conv = CausalConv1d(sum(self.split), d_conv, bias=False)
        self.dt_bias = nn.Parameter(step_bias(n_heads))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.g = nn.Parameter(torch.ones(d_v))
        self.o = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        window, S = (ctx.cache.state(ctx.layer) if ctx.cache is not None else None) or (None, None)
        qkv, window = self.conv(without_padding(self.qkv(x), ctx), ctx, window)
        q, k, v = precise(silu(qkv)).split(self.split, -1)
        q, k = (unit(h.unflatten(-1, (-1, self.d_qk))) for h in (q, k))
        a, b = precise(self.alpha_beta(x)).chunk(2, -1)
        log_alpha = -self.A_log.exp() * softplus(a + self.dt_bias)
        y, S = gated_delta(
            q * self.d_qk**-0.5, k, v.unflatten(-1, (-1, self.d_v)), log_alpha, b.sigmoid(), S, restarts(ctx),
            self.chunk,
        )  # fmt: skip
        if ctx.cache is not None:
            ctx.cache.keep(ctx.layer, window, S)
        y = (self.g * nn.functional.rms_norm(y, self.g.shape, eps=self.norm_eps)).flatten(-2)
        return self.o((y * silu(precise(self.gate(x)))).to(x.dtype))
