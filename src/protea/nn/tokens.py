"""Token ids into the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protea.nn.context import Context


class TokenEmbedding(nn.Module):
    """One learned vector a token, times a scale, plus what stands for its position.

    Args:
        inputs: ids that can be read.
        d_model: width of the residual stream.
        scale: of the vectors (Gemma: sqrt(d_model)).
        position: called as position(positions), gives (T or (B, T), d_model) to add; or None.

    >>> from protea.nn.context import plain_context
    >>> TokenEmbedding(5, 8)(torch.tensor([[0, 4]]), plain_context(2)).shape
    torch.Size([1, 2, 8])
    """

    def __init__(self, inputs: int, d_model: int, scale: float = 1.0, position: nn.Module | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, d_model))
        self.scale, self.position = scale, position

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """(B, T) ids to (B, T, d_model)."""
        x = nn.functional.embedding(tokens, self.weight)
        if self.scale != 1.0:
            x = x * x.new_tensor(self.scale)
        return x if self.position is None else x + self.position(ctx.positions.clamp_min(0))
