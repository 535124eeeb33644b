r"""The small byte model that cuts a text into patches, and learns beside the large one.

Its own loss, -log p(x_{t+1} | x_<=t), is added to that of the whole model while training, and reaches its weights
alone. The threshold theta follows the scores of the texts seen in training, so that patches are of the wished size on
average: after every step it moves towards their quantile over the whole batch, whatever processes and microbatches it
was cut into. In the first step, patches are of one length. With a `threshold` given, theta is that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from protea.errors import ConfigError, nearest
from protea.nn.auxiliary import Term, add_loss, defer
from protea.nn.block import Block
from protea.nn.context import Context
from protea.nn.patching import RULES, calibrated, entropy, patch_starts, shifted
from protea.nn.tokens import TokenEmbedding


class Cut(NamedTuple):
    """What the patcher remembers of each text: entropy of the last byte, whether the next begins a patch, and how many
    bytes ago the last patch that no limit cut began. Each (B,)."""

    H: Tensor
    next: Tensor
    age: Tensor


class Patcher(nn.Module):
    """Bytes to patches.

    Args:
        embed, blocks, norm: of the small model.
        outputs: ids it predicts.
        rule: "global" or "relative", see `nn/patching.py`.
        size: bytes of a patch on average, which theta is set for.
        threshold: theta in nats; None learns it.
        longest: bytes of a patch at most; None for no limit.
        layer: of the context's memory, where its first block keeps what it remembers.
    """

    theta: Tensor
    seen: Tensor

    def __init__(
        self, embed: TokenEmbedding, blocks: Sequence[Block], norm: nn.Module, outputs: int, *, rule: str, size: float,
        threshold: float | None, longest: int | None, layer: int,
    ) -> None:  # fmt: skip
        super().__init__()
        if rule not in RULES:
            raise ConfigError(f"There is no rule {rule!r} for patches.", nearest(rule, RULES))
        self.embed, self.blocks, self.norm = embed, nn.ModuleList(blocks), norm
        self.head = nn.Linear(embed.weight.shape[1], outputs, bias=False)
        self.rule, self.size, self.longest, self.layer, self.fixed = rule, size, longest, layer, threshold is not None
        start = torch.tensor(1.0 if threshold is None else threshold, device="cpu" if self.fixed else None)
        self.register_buffer("theta", start, persistent=not self.fixed)
        self.register_buffer("seen", torch.zeros((), device="cpu" if self.fixed else None), persistent=not self.fixed)

    def settle(self) -> float:
        """Fix theta where it is, and return it."""
        theta, self.fixed = self.theta.detach().cpu(), True
        self.register_buffer("theta", theta.to(self.theta), persistent=False)
        self.register_buffer("seen", self.seen, persistent=False)
        return theta.item()

    def logits(self, tokens: Tensor, ctx: Context) -> Tensor:
        """(B, T, outputs)."""
        x = self.embed(tokens, ctx)
        for i, block in enumerate(self.blocks):
            x = block(x, ctx.at(self.layer + i))
        return self.head(self.norm(x))

    def forward(self, tokens: Tensor, ctx: Context, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Which bytes of whole texts begin a patch, and after which a next one would: (B, T) booleans each.

        Args:
            tokens, positions: (B, T).
            ctx: their context, without a memory.
        """
        logits = self.logits(tokens, ctx)
        inside = positions[:, 1:] > 0  # the bytes that follow one of their own text
        if self.training:
            nats = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            sums, counts = (nats * inside.flatten()).sum()[None], inside.sum()[None].to(nats)
            add_loss(Term("entropy model", sums, counts, lambda S, C: (S / C.clamp_min(1)).sum()))
        H = entropy(logits.detach())
        score = RULES[self.rule](H, shifted(H))
        theta, longest = self.theta, self.longest
        if self.training and not self.fixed:
            if torch.is_grad_enabled():
                defer(score[:, :-1][inside], self.calibrate)
            if not self.seen:  # nothing is known yet, and one part of the batch must not decide
                theta, longest = math.inf, min(math.ceil(self.size), longest or math.ceil(self.size))
        return patch_starts(score, theta, positions, longest)

    @torch.no_grad()
    def calibrate(self, scores: Tensor) -> None:
        """Move theta towards what cuts these scores (N,) into patches of the wished size: a running mean of such."""
        if len(scores):
            self.seen += 1
            self.theta += (calibrated(scores, self.size) - self.theta) / self.seen.clamp(max=50.0)

    def step(self, tokens: Tensor, ctx: Context, positions: Tensor, last: Cut | None) -> tuple[Tensor, Cut]:
        """The same for one byte of each text, with a memory: whether it begins a patch (B,), and what to remember."""
        H = entropy(self.logits(tokens, ctx))[:, 0]
        begins = torch.ones_like(H, dtype=torch.bool) if last is None else last.next
        before = torch.zeros_like(H) if last is None else last.H
        follows = positions[:, 0] + 1
        wished = ((RULES[self.rule](H, before) > self.theta) & (follows > 1)) | (follows == 0) | (follows == 1)
        age = torch.ones_like(follows) if last is None else last.age + 1
        age = torch.where(wished, 0, age)
        cut = wished if self.longest is None else wished | (age % self.longest == 0)
        return begins, Cut(H, cut, age)
