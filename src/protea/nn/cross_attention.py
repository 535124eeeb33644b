r"""Cross-attention of one stream to another, each normalised: o(softmax(q(norm x) k(norm s)^T / sqrt(D)) v(norm s))."""

from __future__ import annotations

from torch import Tensor, nn

from protea.nn.norm import RMSNorm


class CrossAttention(nn.Module):
    """Queries of x, keys and values of s; no positions, no residual.

    Args:
        d_model: width of both.
        n_heads, n_kv_heads: as in grouped-query attention.
        eps: of the norms.

    >>> import torch
    >>> cross = CrossAttention(8, 2, 1)
    >>> cross(torch.zeros(1, 3, 8), *cross.keys(torch.zeros(1, 5, 8))).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.d_head = d_model // n_heads
        self.norm_q, self.norm_k = RMSNorm(d_model, eps), RMSNorm(d_model, eps)
        self.q = nn.Linear(d_model, n_heads * self.d_head, bias=False)
        self.k = nn.Linear(d_model, n_kv_heads * self.d_head, bias=False)
        self.v = nn.Linear(d_model, n_kv_heads * self.d_head, bias=False)
        self.o = nn.Linear(n_heads * self.d_head, d_model, bias=False)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def keys(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) of s (B, S, d_model)."""
        s = self.norm_k(s)
        return self._heads(self.k(s)), self._heads(self.v(s))

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q, d_model) to the same; mask (B, 1, Q, S) is True where a query may look."""
        q = self._heads(self.q(self.norm_q(x)))
        grouped = q.shape[1] != k.shape[1]
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return self.o(y.transpose(1, 2).flatten(2))
