r"""Thinking in streams: the last hidden state is fed back in the place of a token (Hao et al. 2024, "Coconut").

    x_{t+1} = h_t,    h_t the normalised stream above token (or thought) t,

for n steps between a question and its answer: a continuous chain of thought that need not be said in words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.errors import ConfigError
from protea.models.autoregressive.decoder import Decoder
from protea.nn.context import Context, Memory, plain_context


def enter(net: Decoder, h: Tensor, ctx: Context) -> Tensor:
    """A stream (B, T, d_model) as the input of the first block, at the context's positions."""
    position = net.embed.position
    return h if position is None else h + position(ctx.positions.clamp_min(0))


def think(net: Decoder, tokens: Tensor, n: int) -> Tensor:
    """The normalised stream (B, T + n, d_model) of texts (B, T) followed by n thoughts; gradients pass through all.

    Each thought takes a pass over all before it, as in training with Coconut.

    Raises:
        ConfigError: a negative number of thoughts.

    >>> from protea.models.autoregressive.llama import LlamaConfig, build
    >>> think(build(LlamaConfig(1, 16, 2, 1, 16), 5, 5), torch.tensor([[0, 1, 2]]), 4).shape
    torch.Size([1, 7, 16])
    """
    if n < 0:
        raise ConfigError(f"There are no {n} thoughts.", "Ask for 0 or more.")
    t = tokens.shape[1]
    ctx = plain_context(t, tokens.device)
    x = net.embed(tokens, ctx)
    h = net.stream(x, ctx)
    for i in range(n):
        here = plain_context(t + i + 1, tokens.device)
        x = torch.cat((x, enter(net, h[:, -1:], Context(here.positions[-1:]))), 1)
        h = net.stream(x, here)
    return h


@torch.no_grad()
def think_on(net: Decoder, memory: Memory, h: Tensor, n: int) -> Tensor:
    """The same from the stream (B, 1, d_model) of the last token of texts in a memory, one position a step.

    The memory holds the thoughts afterwards, and the text can go on in tokens. Returns their streams (B, n, d_model).
    """
    out = []
    for _ in range(n):
        ctx = memory.context(1, h.device)
        h = net.stream(enter(net, h, ctx), ctx)
        memory.advance(1)
        out.append(h)
    return torch.cat(out, 1) if out else h[:, :0]
