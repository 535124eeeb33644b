r"""The first transformer (Vaswani et al. 2017, "Attention is all you need"): an encoder and a decoder that looks at it.

    encoder   h <- LN(h + MHA(h)),   h <- LN(h + FFN(h))                             every token sees every token
    decoder   x <- LN(x + MHA(x)),   x <- LN(x + MHA(x, h)),   x <- LN(x + FFN(x))    x causal; h the source's end

with sinusoids added to embeddings times sqrt(d). The blocks are lists of branches as everywhere; `Lookup` is the
mixer whose keys and values are the source's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protea.nn.attention import GQA
from protea.nn.block import Block
from protea.nn.branches import PostNorm
from protea.nn.context import Context, Memory, plain_context
from protea.nn.mlp import MLP
from protea.nn.position import Sinusoidal
from protea.nn.tokens import TokenEmbedding

SOURCE = "source"  # in `Context.shared`: the encoded source (B, S, d_model) and its mask (B, 1, 1, S) or None


class Lookup(nn.Module):
    """Attention of the stream to the source, without positions.

    Keys and values are worked out once for a text: a memory keeps them as this layer's state.

    Args:
        d_model: width of both streams.
        n_heads: divides d_model.
        bias: of all four matrices.
    """

    def __init__(self, d_model: int, n_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q, self.k, self.v, self.o = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        source, mask = ctx.shared[SOURCE]
        state = None if ctx.cache is None else ctx.cache.state(ctx.layer)
        if state is None:
            state = self._heads(self.k(source)), self._heads(self.v(source))
            if ctx.cache is not None:
                ctx.cache.keep(ctx.layer, *state)
        y = nn.functional.scaled_dot_product_attention(self._heads(self.q(h)), *state, attn_mask=mask)
        return self.o(y.transpose(1, 2).flatten(2))


class EncoderDecoder(nn.Module):
    """Logits of the target's next tokens, given the source.

    Args:
        embed: ids of the source to its stream. The target has an embedding of its own, `embed_target`.
        encoder, decoder: blocks; those of the decoder with a `Lookup` among their branches.
        norms: of the two last streams.
        outputs: how many tokens can follow.

    >>> net = vaswani(10, 12, n_layers=1, d_model=8, n_heads=2, d_ff=16)
    >>> net(torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)).shape
    torch.Size([3, 4, 12])
    """

    def __init__(
        self, embed: TokenEmbedding, embed_target: TokenEmbedding, encoder: Sequence[Block], decoder: Sequence[Block],
        norms: tuple[nn.Module, nn.Module], outputs: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.embed_target = embed, embed_target
        self.encoder, self.decoder, self.norms = nn.ModuleList(encoder), nn.ModuleList(decoder), nn.ModuleList(norms)
        self.head = nn.Linear(embed.weight.shape[1], outputs)

    def encode(self, source: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The encoded source (B, S, d_model) and its mask, of ids (B, S); `valid` (B, S) is False at padding."""
        documents = None
        if valid is not None:  # padding, wherever it stands, is a document of its own
            documents = valid.long()
        positions = torch.arange(source.shape[1], device=source.device)
        ctx = Context(positions, documents, causal=False)
        x = self.embed(source, ctx)
        for layer, block in enumerate(self.encoder):
            x = block(x, ctx.at(layer))
        return self.norms[0](x), None if valid is None else valid[:, None, None, :]

    def decode(self, source: tuple[Tensor, Tensor | None], target: Tensor, cache: Memory | None = None) -> Tensor:
        """Logits (B, T, outputs) of what follows each of the target's ids (B, T), given `encode(source)`."""
        t = target.shape[1]
        ctx = plain_context(t, target.device) if cache is None else cache.context(t, target.device)
        ctx.shared[SOURCE] = source
        x = self.embed_target(target, ctx)
        for layer, block in enumerate(self.decoder):
            x = block(x, ctx.at(layer))
        if cache is not None:
            cache.advance(t)
        return self.head(self.norms[1](x))

    def forward(self, source: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits (B, T, outputs) of ids (B, S) and (B, T)."""
        return self.decode(self.encode(source, valid), target)


def vaswani(
    inputs: int, outputs: int, *, n_layers: int = 6, d_model: int = 512, n_heads: int = 8, d_ff: int = 2048,
    eps: float = 1e-5,
) -> EncoderDecoder:  # fmt: skip
    """The paper's network: `inputs` ids of the source, `outputs` of the target; the base size by default."""

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(d_model, eps)

    def attention() -> PostNorm:
        return PostNorm(GQA(d_model, n_heads, n_heads, bias=True, bias_out=True), norm())

    def perceptron() -> PostNorm:
        return PostNorm(MLP(d_model, d_ff, nn.functional.relu), norm())

    def embed(ids: int) -> TokenEmbedding:
        made = TokenEmbedding(ids, d_model, scale=math.sqrt(d_model), position=Sinusoidal(d_model))
        nn.init.normal_(made.weight, std=d_model**-0.5)
        return made

    encoder = [Block([attention(), perceptron()]) for _ in range(n_layers)]
    decoder = [Block([attention(), PostNorm(Lookup(d_model, n_heads), norm()), perceptron()]) for _ in range(n_layers)]
    return EncoderDecoder(embed(inputs), embed(outputs), encoder, decoder, (nn.Identity(), nn.Identity()), outputs)
