r"""The network of the Byte Latent Transformer (Pagnoni et al. 2024): bytes in, bytes out, patches between.

    encoder    h = blocks(bytes + hashed n-grams);   P_p = W max_{t in p} h_t,   P_p <- 2 P_p + cross(P_p, h of patch p)
    latent     z = blocks(P), causal over patches
    decoder    d = h,   d_t <- block(2 d_t + cross(d_t, W z_p)), p the last patch that has ended when byte t + 1 comes

A patch has k vectors of the local width. The doubled residuals are those of the authors' code. Byte t + 1 is predicted
from patches that end at byte t or before, so nothing that follows is seen, however the patches fall.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protea.models.autoregressive.blt_patcher import Cut, Patcher
from protea.nn.block import Block
from protea.nn.context import Context, Memory, Seen, plain_context
from protea.nn.cross_attention import CrossAttention
from protea.nn.hash_ngrams import HashNGrams
from protea.nn.tokens import TokenEmbedding


class LocalEncoder(nn.Module):
    """Bytes to the stream of bytes, and to patches.

    Args:
        embed, ngrams: of bytes.
        blocks: over bytes.
        spread: a patch's maximum to its k vectors.
        cross: from a patch's vectors to its bytes.
    """

    def __init__(
        self, embed: TokenEmbedding, ngrams: HashNGrams, blocks: Sequence[Block], spread: nn.Linear,
        cross: CrossAttention,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.ngrams, self.blocks, self.spread, self.cross = (
            embed, ngrams, nn.ModuleList(blocks), spread, cross
        )  # fmt: skip

    def bytes(self, tokens: Tensor, ctx: Context, positions: Tensor, past: Tensor) -> Tensor:
        """(B, T, d) of the bytes."""
        h = self.embed(tokens, ctx) + self.ngrams(tokens, positions, past)
        for i, block in enumerate(self.blocks):
            h = block(h, ctx.at(i))
        return h

    def patches(self, most: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """(B, P, k d) of patches whose bytes' maximum is `most` (B, P, d); mask (B, 1, P, S), their bytes."""
        d = most.shape[-1]
        x = self.spread(most)
        each = x.shape[-1] // d
        x = x.unflatten(-1, (each, d)).flatten(1, 2)
        x = 2 * x + self.cross(x, k, v, mask.repeat_interleave(each, 2))
        return x.unflatten(1, (-1, each)).flatten(2)


class Latent(nn.Module):
    """The large transformer, over patches."""

    def __init__(self, inward: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.inward, self.blocks = inward, nn.ModuleList(blocks)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.inward(x)
        for i, block in enumerate(self.blocks):
            x = block(x, ctx.at(i))
        return x


class LocalDecoder(nn.Module):
    """Patches back to the stream of bytes.

    Args:
        spread: a latent to its k vectors of the local width.
        cross: before each block, from bytes to the vectors of their patch.
        blocks: over bytes.
        norm: of the last stream.
        layer: of the context's memory, where the first block keeps what it remembers.
    """

    def __init__(
        self, spread: nn.Linear, cross: Sequence[CrossAttention], blocks: Sequence[Block], norm: nn.Module, layer: int
    ) -> None:
        super().__init__()
        self.spread, self.cross, self.blocks, self.norm = spread, nn.ModuleList(cross), nn.ModuleList(blocks), norm
        self.layer = layer

    def vectors(self, z: Tensor, d: int) -> Tensor:
        """(B, P k, d) of latents (B, P, D)."""
        return self.spread(z).unflatten(-1, (-1, d)).flatten(1, 2)

    def forward(self, h: Tensor, vectors: Tensor, mask: Tensor | None, ctx: Context) -> Tensor:
        """(B, T, d) of h (B, T, d) and vectors (B, S, d), which a byte sees by mask (B, 1, T, S)."""
        for i, (cross, block) in enumerate(zip(self.cross, self.blocks, strict=True)):
            h = 2 * h + cross(h, *cross.keys(vectors), mask)
            h = block(h, ctx.at(self.layer + i))
        return self.norm(h)


class _Patches(Memory):
    """The latent transformer's memory while patches end at different times: row b writes its patch number count_b."""

    def __init__(self, memory: Memory, layer: int, count: Tensor) -> None:
        self.memory, self.layer, self.count = memory, layer, count

    def context(self, tokens: int, device: torch.device | str = "cpu") -> Context:
        return Context(self.count[:, None], cache=self)

    def remember(self, ctx: Context, window: int | None, *new: Tensor) -> tuple[tuple[Tensor, ...], Seen]:
        held = self.memory.state(self.layer + ctx.layer)
        if held is None:
            held = tuple(p.new_zeros(*p.shape[:2], 16, p.shape[3]) for p in new)
        if int(self.count.max()) >= held[0].shape[2]:
            held = tuple(torch.cat((p, torch.zeros_like(p)), 2) for p in held)
        slots = torch.arange(held[0].shape[2], device=self.count.device)
        here = (slots == self.count[:, None])[:, None, :, None]
        held = tuple(torch.where(here, p, old) for p, old in zip(new, held, strict=True))
        self.memory.keep(self.layer + ctx.layer, *held)
        mask = (slots <= self.count[:, None])[:, None, None, :]
        return held, Seen(self.count[:, None], slots, mask)

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        return self.memory.state(self.layer + layer)

    def keep(self, layer: int, *state: Tensor) -> None:
        self.memory.keep(self.layer + layer, *state)

    def advance(self, tokens: int) -> None:
        """Counts are the caller's."""


class ByteLatent(nn.Module):
    """Ids (B, T) to logits (B, T, outputs) of the ids that follow.

    Args:
        encoder, latent, decoder, patcher: the parts.
        outputs: ids that can follow.
        layers: first layer numbers of the memory: of the pool's keys, of the latent transformer, of the rest.
    """

    def __init__(
        self, encoder: LocalEncoder, latent: Latent, decoder: LocalDecoder, patcher: Patcher, outputs: int,
        layers: tuple[int, int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.latent, self.decoder, self.patcher = encoder, latent, decoder, patcher
        self.outputs, self.layers = outputs, layers
        self.head = nn.Linear(encoder.embed.weight.shape[1], outputs, bias=False)

    @property
    def embed(self) -> TokenEmbedding:
        """Of bytes."""
        return self.encoder.embed

    def forward(
        self, tokens: Tensor, cache: Memory | None = None, *, pad: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits; see `Decoder`. Whole texts are computed at once; with a memory, byte by byte."""
        if cache is None:
            return self.whole(tokens, plain_context(tokens.shape[1], tokens.device, pad=pad, documents=documents))
        out = []
        for t in range(tokens.shape[1]):
            out.append(self.step(tokens[:, t : t + 1], cache))
            cache.advance(1)
        return torch.cat(out, 1)

    def starts(self, tokens: Tensor) -> Tensor:
        """Which bytes (B, T) of whole texts begin a patch, booleans."""
        ctx = plain_context(tokens.shape[1], tokens.device)
        return self.patcher(tokens, ctx, ctx.positions.expand_as(tokens))[0]

    def whole(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Logits of whole texts, all bytes and all patches at once."""
        positions = ctx.positions.expand_as(tokens)
        starts, cut = self.patcher(tokens, ctx, positions)
        patch = starts.cumsum(1) - 1  # (B, T), the patch of each byte
        read = patch + cut - 1  # the last that ended when the next byte comes
        n = int(patch.max()) + 1
        ids = torch.arange(n, device=tokens.device)
        past = tokens.new_zeros(len(tokens), self.encoder.ngrams.back)
        h = self.encoder.bytes(tokens, ctx, positions, past)
        most = h.new_zeros(len(h), n, h.shape[-1]).scatter_reduce(
            1, patch[..., None].expand_as(h), h, "amax", include_self=False
        )
        own = patch[:, None, None, :] == ids[:, None]  # (B, 1, P, T)
        own = own | ~own.any(-1, keepdim=True)  # rows of fewer patches: what they compute is read by nobody
        z = self.latent(self.encoder.patches(most, *self.encoder.cross.keys(h), own), self._over(ctx, patch, n))
        vectors = self.decoder.vectors(z, h.shape[-1])
        mask = (read.clamp_min(0)[..., None] == ids)[:, None].repeat_interleave(vectors.shape[1] // n, -1)
        return self.head(self.decoder(h, vectors, mask, ctx))

    def _over(self, ctx: Context, patch: Tensor, n: int) -> Context:
        """The context of patches: those of padding and of each document are apart, and count from zero."""
        ids = torch.arange(n, device=patch.device)
        if ctx.positions.ndim == 1:
            return Context(ids)
        new = ctx.positions == 0  # bytes that begin a text
        text = new.cumsum(1)
        of = torch.zeros_like(patch[:, :1]).expand(-1, n).scatter_reduce(1, patch, text, "amax", include_self=False)
        of = of.cummax(1).values  # patches that a row does not have belong to its last text
        first = torch.ones_like(of, dtype=torch.bool)
        first[:, 1:] = of[:, 1:] != of[:, :-1]
        return Context(ids - (ids * first).cummax(1).values, of)

    def step(self, tokens: Tensor, cache: Memory) -> Tensor:
        """Logits (B, 1, outputs) of one more byte of each text."""
        ctx = cache.context(1, tokens.device)
        pool, latent, rest = self.layers
        positions = ctx.positions.expand_as(tokens)
        batch, d = len(tokens), self.embed.weight.shape[1]
        held = cache.state(rest)
        if held is None:
            past, last = tokens.new_zeros(batch, self.encoder.ngrams.back), None
            count, length = tokens.new_zeros(batch), tokens.new_zeros(batch)
            most = self.embed.weight.new_zeros(batch, d)
            vectors = most.new_zeros(batch, self.decoder.spread.out_features // d, d)
        else:
            past, count, length, most, vectors = held[:5]
            last = Cut(*held[5:])
        begins, cut = self.patcher.step(tokens, ctx, positions, last)
        h = self.encoder.bytes(tokens, ctx, positions, past)
        most = torch.where(begins[:, None], h[:, 0], torch.maximum(most, h[:, 0]))
        length = torch.where(begins, 1, length + 1)
        (k, v), seen = ctx.at(pool).remember(*self.encoder.cross.keys(h))
        ended = cut.next & (positions[:, 0] >= 0)
        if ended.any():
            mask = seen.keys > seen.queries[..., -1:] - length[:, None]  # the bytes of the patch
            x = self.encoder.patches(most[:, None], k, v, mask[:, None, None])
            patches = _Patches(cache, latent, count)
            z = self.latent(x, patches.context(1))
            vectors = torch.where(ended[:, None, None], self.decoder.vectors(z, d), vectors)
            count = count + ended
        y = self.decoder(h, vectors, None, ctx)
        past = torch.cat((past, tokens), 1)[:, 1:]
        cache.keep(rest, past, count, length, most, vectors, *cut)
        return self.head(y)
