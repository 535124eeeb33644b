r"""Multi-token prediction (DeepSeek-AI 2024, "DeepSeek-V3", section 2.2): D modules that look one token further each.

Module k at position i joins what was known with the token k ahead, and predicts the one after it:

    h'_i = M_k [RMSNorm(Emb(u_{i+k})) ; RMSNorm(h^{k-1}_i)],
    h^k_i = RMSNorm(Block_k(h'_i)),   u_{i+k+1} ~ Head(h^k_i),

with h^0 the stack's normalised output, and embedding and head those of the model. (The paper writes the two halves in
the other order; published weights have this one.) While training, the mean over modules of their cross-entropies,
times lambda, joins the loss (`protea.nn.auxiliary`). In use the modules may be left out, or draft tokens that the
model then verifies (speculative decoding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from protea.nn.auxiliary import Term, add_loss
from protea.nn.block import Block
from protea.nn.cache import Cache
from protea.nn.context import Context
from protea.nn.precise import precise


class Reads(Protocol):
    """The part of a decoder that modules share with it."""

    embed: Callable[[Tensor, Context], Tensor]
    outputs: int

    def read(self, h: Tensor) -> Tensor:
        """Logits of a normalised stream."""
        ...


class Ahead(nn.Module):
    """One module: the stream of depth k - 1 and the tokens k ahead to the stream of depth k.

    Args:
        d_model: width of the residual stream.
        block: a block like those of the stack.
        norms: of the embedding, of the stream, and of the result.
    """

    def __init__(self, d_model: int, block: Block, norms: tuple[nn.Module, nn.Module, nn.Module]) -> None:
        super().__init__()
        self.embed_norm, self.hidden_norm, self.norm = norms
        self.join = nn.Linear(2 * d_model, d_model, bias=False)
        self.block = block

    def forward(self, h: Tensor, e: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) of the stream h and embeddings e, both (B, T, d_model)."""
        return self.norm(self.block(self.join(torch.cat((self.embed_norm(e), self.hidden_norm(h)), -1)), ctx))


class MultiToken(nn.Module):
    """The modules of a decoder.

    Args:
        modules: of depth 1, 2 ... D.
        weight: lambda.
    """

    def __init__(self, modules: Sequence[Ahead], weight: float = 0.3) -> None:
        super().__init__()
        self.depths, self.weight = nn.ModuleList(modules), weight

    def streams(self, net: Reads, tokens: Tensor, h: Tensor, ctx: Context) -> list[Tensor]:
        """h^1, h^2 ... of texts (B, T) whose stream is h (B, T, d_model); h^k has T - k positions.

        A position keeps the place and the document that it has in the text; where the token ahead is of another
        document, it is seen by none that count.
        """
        t, out = tokens.shape[1], []
        for k, module in enumerate(self.depths, 1):
            ahead = tokens[:, k:]
            documents = None if ctx.documents is None else ctx.documents[:, : t - k]
            here = Context(ctx.positions[..., : t - k], documents, ctx.causal, shared={"tokens": ahead})
            h = module(h[:, : t - k], net.embed(ahead, here), here)
            out.append(h)
        return out

    def learn(self, net: Reads, tokens: Tensor, h: Tensor, ctx: Context) -> None:
        """Add lambda / D sum_k L_k, L_k the mean of -log p(u_{i+k+1}) over the positions that have one."""
        t, losses, counts = tokens.shape[1], [], []
        for k, stream in enumerate(self.streams(net, tokens, h, ctx), 1):
            if t < k + 2:
                break
            target = tokens[:, k + 1 :]
            keep = target < net.outputs
            if ctx.documents is not None:
                first, last = ctx.documents[:, : t - k - 1], ctx.documents[:, k + 1 :]
                keep = keep & (first == last) & (first >= 0)
            if ctx.valid is not None:
                keep = keep & ctx.valid[:, : t - k - 1]
            logits = net.read(stream[:, :-1]).flatten(0, 1)
            wanted = target.masked_fill(~keep, -100).flatten()
            losses.append(nn.functional.cross_entropy(precise(logits), wanted, ignore_index=-100, reduction="sum"))
            counts.append(keep.sum())
        if losses:
            sums = torch.stack(losses)
            add_loss(Term("MultiToken", sums, torch.stack(counts).to(sums), self.value))

    def value(self, sums: Tensor, counts: Tensor) -> Tensor:
        """lambda / D sum_k S_k / C_k."""
        return self.weight * (sums / counts.clamp_min(1)).mean()


class Drafter:
    """Drafts D tokens with the modules of a decoder, which remember the text so far.

    Args:
        net: the decoder, with its modules at `net.ahead`.
        capacity: tokens of the longest text.
        pick: logits (B, V) to the drafted ids (B,).

    Note:
        A module remembers only what verified tokens told it: what it wrote for drafted ones is written anew.
    """

    def __init__(
        self, net: Reads, modules: MultiToken, capacity: int, pick: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.net, self.modules, self.pick = net, modules, pick or (lambda logits: logits.argmax(-1))
        self.memories = [Cache(capacity) for _ in modules.depths]
        self.pending: list[Tensor | None] = [None] * len(self.memories)  # of depth k - 1, which depth k has yet to read

    @torch.no_grad()
    def drafts(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The next D tokens after those of a text, and their logits.

        Args:
            hidden: (B, n, d_model), the model's normalised stream at the n positions since the last call.
            tokens: (B, n) the verified token that follows each of them; the last is the newest of the text.

        Returns:
            ids (B, D) and logits (B, D, V).
        """
        h, drafted, logits = hidden, [], []
        for k, (module, memory) in enumerate(zip(self.modules.depths, self.memories, strict=True)):
            held = self.pending[k]
            whole = h if held is None else torch.cat((held, h), 1)
            ahead = torch.cat((tokens, *drafted), 1)[:, -whole.shape[1] :]
            ctx = memory.context(whole.shape[1], tokens.device)
            ctx.shared["tokens"] = ahead
            out = module(whole, self.net.embed(ahead, ctx), ctx)
            # The last k had drafted tokens ahead. The first of them is known of depth k - 1, and is read again.
            sure = whole.shape[1] - k
            memory.advance(max(0, sure))
            self.pending[k] = whole[:, sure : sure + 1] if k and sure >= 0 else None
            logits.append(self.net.read(out[:, -1]))
            drafted.append(self.pick(logits[-1])[:, None])
            h = out
        return torch.cat(drafted, 1), torch.stack(logits, 1)
