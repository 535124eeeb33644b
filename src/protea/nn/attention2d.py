"""Self-attention over the pixels of a feature map (Ho et al. 2020; non-local networks, Wang et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn


class Attention2D(nn.Module):
    """x + W_o softmax(q k^T / sqrt(d)) v, with q, k, v linear in GroupNorm(x), over the H W positions of x.

    Args:
        channels: of the map (B, channels, H, W).
        head_dim: channels of a head; it divides `channels`.
        groups: of the normalisation.
    """

    def __init__(self, channels: int, head_dim: int = 8, groups: int = 8) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        q, k, v = self.qkv(h).reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = nn.functional.scaled_dot_product_attention(q, k, v)  # (B, heads, H W, d)
        h = self.out(h.transpose(1, 2).reshape(batch, height * width, channels))
        return x + h.transpose(1, 2).reshape(x.shape)
