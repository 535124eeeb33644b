"""The decoder-only stack: embedding, blocks, norm, head. Architectures are lists of blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protea.nn.block import Block
from protea.nn.cache import Cache, Context, causal_context


class Decoder(nn.Module):
    """Token ids (B, T) to logits (B, T, outputs) of the tokens that follow.

    Args:
        embed: ids to the residual stream.
        blocks: every one may differ.
        norm: of the last residual stream.
        outputs: how many tokens can follow.
        tie: use the first `outputs` rows of the embedding as the head's weights.

    Note:
        With a cache the ids continue the texts it holds, and the call that computed all layers advances it.
    """

    def __init__(
        self, embed: nn.Embedding, blocks: Sequence[Block], norm: nn.Module, outputs: int, tie: bool = False
    ) -> None:
        super().__init__()
        self.embed, self.blocks, self.norm, self.outputs = embed, nn.ModuleList(blocks), norm, outputs
        self.head = None if tie else nn.Linear(embed.embedding_dim, outputs, bias=False)

    def hidden(self, tokens: Tensor, ctx: Context) -> Tensor:
        """The normalised residual stream after the last block, (B, T, d_model)."""
        x = self.embed(tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, ctx.at(layer))
        return self.norm(x)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        h = self.hidden(tokens, causal_context(tokens.shape[1], cache, tokens.device))
        if cache is not None:
            cache.advance(tokens.shape[1])
        return nn.functional.linear(h, self.embed.weight[: self.outputs]) if self.head is None else self.head(h)


@torch.no_grad()
def init_decoder(net: Decoder) -> Decoder:
    """Normal weights of variance 1 / fan-in; those that write to the residual stream times 1 / sqrt(2 L).

    So each branch adds a like share to the stream (Radford et al. 2019), and the first loss is near log V.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    nn.init.normal_(net.embed.weight, std=0.02 if net.head is None else 1.0)
    for name, p in net.blocks.named_parameters():
        if name.endswith(("mixer.o.weight", "mixer.down.weight")):
            p.mul_((2 * len(net.blocks)) ** -0.5)
    if net.head is not None:
        net.head.weight.mul_(0.1)
    return net
