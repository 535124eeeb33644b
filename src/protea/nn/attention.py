r"""Attention = projector x position x kernel.

A *kernel* maps q (B, H, T, D), k and v (B, H_kv, S, D) to softmax(scale q k^T + mask) v, where query
head h reads key head h // (H / H_kv), and scale is 1 / sqrt(D) unless told. A *projector* makes q, k,
v of the residual stream and returns to it: grouped-query attention (Ainslie et al. 2023, "GQA") has
multi-head (H_kv = H; Vaswani et al. 2017) and multi-query (H_kv = 1; Shazeer 2019) attention as its ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.kernels import softmax_attention as compiled
from protea.kernels.training import ready
from protea.nn.context import Context, Seen
from protea.nn.fused import again, by_hand
from protea.nn.fused_layers import HeadsByHand, fuses
from protea.nn.position import RoPE, rotate

Kernel = Callable[[Tensor, Tensor, Tensor, Seen, float | None], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, seen: Seen, scale: float | None = None) -> Tensor:
    """PyTorch's fused kernel; for learning on the CPU in float32 our own, which is faster for short texts."""
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # On CPUs its backward pass is several times slower in bfloat16 than in float32.
        with torch.autocast("cpu", enabled=False):
            return sdpa(q.float(), k.float(), v.float(), seen, scale)
    if seen.mask is None and by_hand(q) and ready(q, k, v) and compiled.takes(q, k, v):
        out: Tensor = AttendByHand.apply(q, k, v, seen, scale or 1 / math.sqrt(q.shape[-1]))
        return out
    grouped = q.shape[1] != k.shape[1]
    return nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen.mask, is_causal=seen.causal, scale=scale, enable_gqa=grouped
    )


def reference(q: Tensor, k: Tensor, v: Tensor, seen: Seen, scale: float | None = None) -> Tensor:
    """The definition, term by term."""
    return attend(q, k, v, seen, scale)


def attend(
    q: Tensor, k: Tensor, v: Tensor, seen: Seen, scale: float | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """The definition, with the scores (B, H, T, S) changed before the mask."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))
    if change is not None:
        scores = change(scores)
    mask = seen.mask
    if mask is None and seen.causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


class AttendByHand(torch.autograd.Function):
    """(q, k, v, seen without a mask, scale) to what `attend` gives, by `kernels/softmax_attention.cpp`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, seen: Seen, scale: float) -> Tensor:
        out, normaliser = compiled.attend(q, k, v, seen.causal, scale)
        ctx.save_for_backward(q, k, v, out, normaliser)
        ctx.seen, ctx.scale = seen, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, normaliser = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *again(lambda q, k, v: attend(q, k, v, ctx.seen, ctx.scale), (q, k, v), grads), None, None
        return *compiled.attend_back(grads[0], q, k, v, out, normaliser, ctx.seen.causal, ctx.scale), None, None


class SoftCap:
    """A kernel whose scores are bounded: c tanh(score / c) before the mask (Gemma team 2024, "Gemma 2").

    >>> q = torch.randn(1, 1, 3, 4)
    >>> seen = Seen(torch.arange(3), torch.arange(3), causal=True)
    >>> torch.allclose(SoftCap(1e6)(q, q, q, seen), sdpa(q, q, q, seen), atol=1e-4)
    True
    """

    def __init__(self, cap: float) -> None:
        self.cap = cap

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, seen: Seen, scale: float | None = None) -> Tensor:
        def bound(scores: Tensor) -> Tensor:
            return self.cap * (scores / self.cap).tanh()

        return attend(q, k, v, seen, scale, bound)


class ALiBi:
    """A kernel that takes m_h times the distance off the scores (Press et al. 2022, "Train short, test long").

    Args:
        slopes: m_h of the heads, (H,); see `alibi_slopes`.
    """

    def __init__(self, slopes: Tensor) -> None:
        self.slopes = slopes

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, seen: Seen, scale: float | None = None) -> Tensor:
        ahead = seen.queries[..., :, None] - seen.keys[..., None, :]  # (T, S) or (B, T, S)
        distance = (ahead if ahead.ndim == 3 else ahead[None])[:, None].clamp_min(0)
        bias = -self.slopes.to(q.device)[:, None, None] * distance.to(q.dtype)
        return attend(q, k, v, seen, scale, lambda scores: scores + bias)


def alibi_slopes(n_heads: int) -> Tensor:
    """m_h = 2^(-8 h / H) of H heads, a power of two; of others, those of the power below and every second of the next.

    >>> alibi_slopes(8)[:3].tolist()
    [0.5, 0.25, 0.125]
    """
    n = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8 * (h + 1) / n) for h in range(n)]
    slopes += [2.0 ** (-4 * (2 * h + 1) / n) for h in range(n_heads - n)]
    return torch.tensor(slopes, device="cpu")


class QKNorm(nn.Module):
    """Norms of every head's queries and keys, before positions (Henry et al. 2020; Qwen 3, Gemma 3).

    Args:
        q, k: called on (B, H, T, D).
    """

    def __init__(self, q: nn.Module, k: nn.Module) -> None:
        super().__init__()
        self.q, self.k = q, k


class GQA(nn.Module):
    """Grouped-query attention.

    Args:
        d_model: width of the residual stream.
        n_heads: query heads H.
        n_kv_heads: key and value heads; divides H. H is multi-head, 1 multi-query attention.
        d_head: width of a head; d_model / n_heads when None.
        position: rotary positions of queries and keys; None for none.
        kernel: see the module.
        window: a token sees itself and the window - 1 before it; None for all.
        scale: of the scores; None for 1 / sqrt(d_head).
        bias: whether q, k and v have one.
        bias_out: whether o has one.
        qk_norm: norms of queries and keys; None for none.

    Raises:
        ConfigError: heads that do not divide.

    >>> from protea.nn.context import plain_context
    >>> GQA(16, 4, 2)(torch.zeros(3, 5, 16), plain_context(5)).shape
    torch.Size([3, 5, 16])
    """

    def __init__(
        self, d_model: int, n_heads: int, n_kv_heads: int, *, d_head: int | None = None,
        position: RoPE | None = None, kernel: Kernel = sdpa, window: int | None = None,
        scale: float | None = None, bias: bool = False, bias_out: bool = False, qk_norm: QKNorm | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if n_heads % n_kv_heads or (d_head is None and d_model % n_heads):
            raise ConfigError(
                f"{n_heads} heads of a width of {d_model} cannot share {n_kv_heads} key-value heads.",
                "n_kv_heads must divide n_heads, and n_heads must divide d_model.",
            )
        self.d_head = d_head or d_model // n_heads
        self.q = nn.Linear(d_model, n_heads * self.d_head, bias=bias)
        self.k = nn.Linear(d_model, n_kv_heads * self.d_head, bias=bias)
        self.v = nn.Linear(d_model, n_kv_heads * self.d_head, bias=bias)
        self.o = nn.Linear(n_heads * self.d_head, d_model, bias=bias_out)
        self.position, self.kernel, self.window, self.scale = position, kernel, window, scale
        self.qk_norm = qk_norm

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def _project(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v (B, H, T, D), normed and turned."""
        if fuses(x, self.q, self.k, self.v):
            cos, sin = self._angles(x, ctx)
            weights = self.q.weight, self.k.weight, self.v.weight
            q, k, v = HeadsByHand.apply(x, *weights, cos, sin, self.d_head)  # type: ignore[misc]
        else:
            q, k, v, cos = self._heads(self.q(x)), self._heads(self.k(x)), self._heads(self.v(x)), None
        if self.qk_norm is not None:
            q, k = self.qk_norm.q(q), self.qk_norm.k(k)
        if self.position is not None and cos is None:
            q, k = self.position.share(q, ctx), self.position.share(k, ctx)
        return q, k, v

    def _angles(self, x: Tensor, ctx: Context) -> tuple[Tensor | None, Tensor | None]:
        """cos and sin where queries and keys can be turned at once: whole heads, half-split, not normed before."""
        if self.position is None or self.qk_norm is not None or self.position.turn is not rotate:
            return None, None
        cos, sin = self.position.shared_angles(x.dtype, ctx)
        return (cos, sin) if 2 * cos.shape[-1] == self.d_head else (None, None)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        q, k, v = self._project(x, ctx)
        (k, v), seen = ctx.remember(k, v, window=self.window)
        return self.o(self.kernel(q, k, v, seen, self.scale).transpose(1, 2).flatten(2))


@torch.no_grad()
def pool_heads(attention: GQA, n_kv_heads: int) -> GQA:
    """Fewer key-value heads, each the mean of those it replaces: where up-training starts (Ainslie et al. 2023)."""
    q, k, v, d = attention.q, attention.k, attention.v, attention.d_head
    bias = q.bias is not None
    out = GQA(
        q.in_features, q.out_features // d, n_kv_heads, d_head=d, position=attention.position,
        kernel=attention.kernel, window=attention.window, scale=attention.scale, bias=bias,
        bias_out=attention.o.bias is not None, qk_norm=attention.qk_norm,
    )  # fmt: skip
    out.q.load_state_dict(q.state_dict())
    out.o.load_state_dict(attention.o.state_dict())
    for new, old in ((out.k, k), (out.v, v)):
        new.weight.copy_(old.weight.unflatten(0, (n_kv_heads, -1, d)).mean(1).flatten(0, 1))
        if bias:
            new.bias.copy_(old.bias.unflatten(0, (n_kv_heads, -1, d)).mean(1).flatten())
    return out
