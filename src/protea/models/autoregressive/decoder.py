"""The decoder-only stack: embedding, blocks, norm, head. Architectures are lists of blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protea.nn.block import Block
from protea.nn.context import Context, Memory, plain_context
from protea.nn.mtp import MultiToken
from protea.nn.tokens import TokenEmbedding


class Decoder(nn.Module):
    """Token ids (B, T) to logits (B, T, outputs) of the tokens that follow.

    Args:
        embed: ids to the residual stream.
        blocks: every one may differ.
        norm: of the last residual stream.
        outputs: how many tokens can follow.
        tie: use the first `outputs` rows of the embedding as the head's weights.
        finish: applied to the logits (a scale, a soft cap), or None.
        ahead: modules that look further than the next token: they add to the loss, and can draft; or None.

    Note:
        With a memory the ids continue the texts it holds, and the call that computed all layers advances it.
    """

    def __init__(
        self, embed: TokenEmbedding, blocks: Sequence[Block], norm: nn.Module, outputs: int, tie: bool = False,
        finish: nn.Module | None = None, ahead: MultiToken | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.blocks, self.norm, self.outputs = embed, nn.ModuleList(blocks), norm, outputs
        self.head = None if tie else nn.Linear(embed.weight.shape[1], outputs, bias=False)
        self.finish, self.ahead = finish, ahead

    def stream(self, x: Tensor, ctx: Context) -> Tensor:
        """The normalised residual stream after the last block, (B, T, d_model), of one that enters the first."""
        for layer, block in enumerate(self.blocks):
            x = block(x, ctx.at(layer))
        return self.norm(x)

    def hidden(self, tokens: Tensor, ctx: Context) -> Tensor:
        """The normalised residual stream after the last block, (B, T, d_model), of token ids."""
        ctx.shared["tokens"] = tokens  # for routers by hash
        return self.stream(self.embed(tokens, ctx), ctx)

    def read(self, h: Tensor) -> Tensor:
        """Logits (..., outputs) of a normalised residual stream (..., d_model)."""
        head = self.embed.weight[: self.outputs] if self.head is None else self.head.weight
        logits = nn.functional.linear(h, head)
        return logits if self.finish is None else self.finish(logits)

    def forward(
        self, tokens: Tensor, cache: Memory | None = None, *, pad: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits; `pad` and `documents` (see `plain_context`) say how rows without a memory are laid out."""
        t = tokens.shape[1]
        if cache is None:
            ctx = plain_context(t, tokens.device, pad=pad, documents=documents)
        else:
            ctx = cache.context(t, tokens.device)
        h = self.hidden(tokens, ctx)
        if cache is not None:
            cache.advance(t)
        elif self.ahead is not None and self.training:
            self.ahead.learn(self, tokens, h, ctx)
        return self.read(h)


@torch.no_grad()
def init_decoder(net: Decoder) -> Decoder:
    """Normal weights of variance 1 / fan-in, those that write to the residual stream times 1 / sqrt(2 L); zero biases.

    So each branch adds a like share to the stream (Radford et al. 2019), and the first loss is near log V.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(net.embed.weight, std=0.02 if net.head is None else 1.0)
    for name, p in net.blocks.named_parameters():
        if "mixer" in name and name.endswith((".o.weight", ".down.weight", ".experts.down")):
            p.mul_((2 * len(net.blocks)) ** -0.5)
    if net.head is not None:
        net.head.weight.mul_(0.1)
    return net
