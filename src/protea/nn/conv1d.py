r"""Causal depthwise convolution over time, with a state of its last K - 1 inputs.

y_t = beta + sum_{j < K} w_{K-1-j} x_{t-j},     x before the text (or the document) is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protea.nn.context import Context


class CausalConv1d(nn.Module):
    """One short filter a channel.

    Args:
        channels: C.
        kernel: K taps; `weight` is (C, K), its last column meets the newest token.
        bias: whether each channel has one.

    >>> from protea.nn.context import plain_context
    >>> y, state = CausalConv1d(6, 4)(torch.ones(2, 5, 6), plain_context(5))
    >>> y.shape, state.shape
    (torch.Size([2, 5, 6]), torch.Size([2, 3, 6]))
    """

    def __init__(self, channels: int, kernel: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel).uniform_(-(kernel**-0.5), kernel**-0.5))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor, ctx: Context, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, C), zero at padding, and the K - 1 inputs before it (None for zeros), to the same of its end.

        Documents of a packed row do not see each other.
        """
        taps = self.weight.shape[1]
        if state is None:
            state = x.new_zeros(x.shape[0], taps - 1, x.shape[2])
        t, window = x.shape[1], torch.cat((state, x), 1)
        if t == 1:
            y = torch.einsum("bkc,ck->bc", window, self.weight)[:, None]
        else:
            y = window[:, taps - 1 :] * self.weight[:, -1]
            for back in range(1, taps):  # over the few taps, never over time
                w = self.weight[:, taps - 1 - back].expand_as(y)
                if ctx.documents is not None:
                    w = w * (ctx.positions >= back)[..., None]
                y = torch.addcmul(y, window[:, taps - 1 - back : taps - 1 - back + t], w)
        if self.bias is not None:
            y = y + self.bias
        return y, window[:, t:]
