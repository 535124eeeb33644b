r"""Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1): keys and values from one small latent.

    c_s = RMSNorm(W_DKV h_s),   k^R_s = RoPE(W_KR h_s)          remembered: d_c + d_R numbers a token, for all heads
    k_{s,i} = [W_UK,i c_s ; k^R_s],   v_{s,i} = W_UV,i c_s
    q_{t,i} = [q^C_{t,i} ; RoPE(q^R_{t,i})],   [q^C ; q^R] = W_Q h  or  W_UQ RMSNorm(W_DQ h)
    o_{t,i} = sum_s softmax_s(q_{t,i} . k_{s,i} / sqrt(d_nope + d_R)) v_{s,i},   u_t = W_O [o_{t,1} ; ... ; o_{t,H}]

Positions enter by k^R and q^R alone. Since W_UK,i does not depend on the position, q^C . W_UK c = (W_UK^T q^C) . c: the
*absorbed* form never makes keys and values, all heads attend to the latents, and W_UV acts on what they find. It costs
more for each pair of tokens and nothing for each token remembered, so it is the form to decode with; a prefill and
training *materialise* keys and values. Were c's keys rotated, W_UQ^T R_{s-t} W_UK would differ for every distance, and
nothing could be absorbed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from protea.nn.attention import Kernel, sdpa
from protea.nn.context import Context, Seen
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE


class Form(Protocol):
    """One way to compute the same attention."""

    def cost(self, mla: MLA, t: int, s: int) -> float:
        """Multiplications for t queries and s keys."""
        ...

    def __call__(self, mla: MLA, q: Tensor, q_rope: Tensor, latent: Tensor, seen: Seen) -> Tensor:
        """(B, H, T, d_v) of q (B, H, T, d_nope), q_rope (B, H, T, d_R) and latents (B, 1, S, d_c + d_R)."""
        ...


@dataclass(frozen=True)
class Materialised:
    """Keys and values of every head, as in the definition."""

    kernel: Kernel = sdpa

    def cost(self, mla: MLA, t: int, s: int) -> float:
        d = mla.d_nope + mla.d_rope
        return mla.n_heads * (s * mla.d_c * (mla.d_nope + mla.d_v) + 2 * t * s * max(d, mla.d_v))

    def __call__(self, mla: MLA, q: Tensor, q_rope: Tensor, latent: Tensor, seen: Seen) -> Tensor:
        c, k_rope = latent.split((mla.d_c, mla.d_rope), -1)
        kv = mla.kv_up(c[:, 0]).unflatten(-1, (-1, mla.d_nope + mla.d_v)).transpose(1, 2)  # of the heads held here
        k, v = kv.split((mla.d_nope, mla.d_v), -1)
        q = torch.cat((q, q_rope), -1)
        k = torch.cat((k, k_rope.expand(-1, k.shape[1], -1, -1)), -1)
        if mla.d_v < q.shape[-1]:  # fused kernels want values as wide as keys
            v = nn.functional.pad(v, (0, q.shape[-1] - mla.d_v))
        return self.kernel(q, k, v, seen, mla.scale)[..., : mla.d_v]


@dataclass(frozen=True)
class Absorbed:
    """W_UK goes into the queries and W_UV into the output: multi-query attention to the latents.

    Heads stand beside each other as queries of one head, so that no latent is copied; the values are the whole
    latents, whose rotary entries are dropped from the answer.
    """

    kernel: Kernel = sdpa

    def cost(self, mla: MLA, t: int, s: int) -> float:
        return mla.n_heads * t * (mla.d_c * (mla.d_nope + mla.d_v) + 2 * s * (mla.d_c + mla.d_rope))

    def __call__(self, mla: MLA, q: Tensor, q_rope: Tensor, latent: Tensor, seen: Seen) -> Tensor:
        w_k, w_v = mla.kv_up.weight.unflatten(0, (mla.n_heads, -1)).split((mla.d_nope, mla.d_v), 1)  # (H, d, d_c)
        h, t = q.shape[1:3]
        q = torch.cat((q @ w_k, q_rope), -1).flatten(1, 2)[:, None]  # (B, 1, H T, d_c + d_R)
        o = self.kernel(q, latent, latent, _for_heads(seen, h, t), mla.scale)[:, 0, :, : mla.d_c]
        return o.unflatten(1, (h, t)) @ w_v.transpose(1, 2)


def _for_heads(seen: Seen, h: int, t: int) -> Seen:
    """What h heads of t queries see, which stand in a row."""
    mask = seen.mask
    if mask is None and seen.causal and t > 1:
        mask = torch.ones(1, 1, t, t, dtype=torch.bool, device=seen.keys.device).tril()
    if mask is not None and t > 1:
        mask = mask.repeat(1, 1, h, 1)
    return replace(seen, mask=mask, causal=False)


@dataclass(frozen=True)
class Cheapest:
    """Whichever of some forms multiplies least for the queries and keys at hand."""

    forms: tuple[Form, ...] = (Materialised(), Absorbed())

    def choose(self, mla: MLA, t: int, s: int) -> Form:
        """The form that t queries and s keys get."""
        return min(self.forms, key=lambda form: form.cost(mla, t, s))

    def cost(self, mla: MLA, t: int, s: int) -> float:
        return self.choose(mla, t, s).cost(mla, t, s)

    def __call__(self, mla: MLA, q: Tensor, q_rope: Tensor, latent: Tensor, seen: Seen) -> Tensor:
        return self.choose(mla, q.shape[2], latent.shape[2])(mla, q, q_rope, latent, seen)


class LowRank(nn.Module):
    """W_UQ RMSNorm(W_DQ x): DeepSeek's compressed queries.

    >>> LowRank(8, 4, 12)(torch.zeros(2, 8)).shape
    torch.Size([2, 12])
    """

    def __init__(self, inputs: int, rank: int, outputs: int, *, eps: float = 1e-6, bias: bool = False) -> None:
        super().__init__()
        self.compress = nn.Linear(inputs, rank, bias=bias)
        self.norm = RMSNorm(rank, eps)
        self.expand = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.norm(self.compress(x)))


class MLA(nn.Module):
    """Multi-head latent attention; see the module.

    Args:
        d_model: width of the residual stream.
        n_heads: H.
        d_c: width of the latent.
        d_nope, d_rope: widths of a key without and with a position.
        d_v: width of a value.
        position: rotary positions of d_rope entries.
        q: d_model to H (d_nope + d_rope); a `Linear` when None, or a `LowRank`.
        norm: of the latent; RMSNorm when None.
        scale: of the scores; 1 / sqrt(d_nope + d_rope) when None.
        bias: whether the projection to the latent and the one back to the stream have one.
        form: how to compute it.

    >>> from protea.nn.cache import Cache
    >>> from protea.nn.position import rope_frequencies
    >>> mla, cache = MLA(32, 4, d_c=8, d_nope=6, d_rope=4, d_v=6, position=RoPE(rope_frequencies(4))), Cache(10)
    >>> mla(torch.zeros(2, 5, 32), cache.context(5)).shape, cache.nbytes == 2 * 10 * (8 + 4) * 4
    (torch.Size([2, 5, 32]), True)
    """

    def __init__(
        self, d_model: int, n_heads: int, *, d_c: int, d_nope: int, d_rope: int, d_v: int, position: RoPE,
        q: nn.Module | None = None, norm: nn.Module | None = None, scale: float | None = None, bias: bool = False,
        form: Form = Cheapest(),
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_heads, self.d_c, self.d_nope, self.d_rope, self.d_v = n_heads, d_c, d_nope, d_rope, d_v
        self.q = q or nn.Linear(d_model, n_heads * (d_nope + d_rope), bias=False)
        self.kv_down = nn.Linear(d_model, d_c + d_rope, bias=bias)  # W_DKV over W_KR
        self.norm = norm or RMSNorm(d_c)
        self.kv_up = nn.Linear(d_c, n_heads * (d_nope + d_v), bias=False)  # of each head, W_UK over W_UV
        self.o = nn.Linear(n_heads * d_v, d_model, bias=bias)
        self.position, self.form = position, form
        self.scale = (d_nope + d_rope) ** -0.5 if scale is None else scale

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        q = self.q(x).unflatten(-1, (-1, self.d_nope + self.d_rope)).transpose(1, 2)
        q, q_rope = q.split((self.d_nope, self.d_rope), -1)
        c, k_rope = self.kv_down(x).split((self.d_c, self.d_rope), -1)
        q_rope, k_rope = self.position.share(q_rope, ctx), self.position.share(k_rope[:, None], ctx)
        (latent,), seen = ctx.remember(torch.cat((self.norm(c)[:, None], k_rope), -1))
        return self.o(self.form(self, q, q_rope, latent, seen).transpose(1, 2).flatten(2))
