"""Questions with short answers: what the tokenisation probes share.

A transformer of a given number of parameters learns p(answer | question) and is judged by how many held-out answers
its most probable tokens spell in full. Questions are read, not predicted: the loss is over answers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from protea.core import Batch, Loss, Phase
from protea.models.autoregressive.language import LanguageModel
from protea.models.autoregressive.transformer import TransformerConfig, build
from protea.rng import Streams, fold
from protea.spaces import Tokens
from protea.spaces.tokenizers import Tokenizer
from protea.training import Gradient
from protea.training.optim import OptimizerFactory, adamw


class Answers(NamedTuple):
    """Rows of questions with their answers.

    Args:
        x: (N, T) ids of questions and answers, then padding.
        answer: (N, T) where the answers are.
    """

    x: Tensor
    answer: Tensor

    def __len__(self) -> int:
        return len(self.x)


def tokenise(tokenizer: Tokenizer, rows: Sequence[Sequence[str]], length: int | None = None) -> Answers:
    """Ids of rows of pieces: question, answer, question, answer ... No token straddles two pieces.

    Args:
        length: T; None: that of the longest row.
    """
    pieces = list(dict.fromkeys(piece for row in rows for piece in row))
    ids = dict(zip(pieces, tokenizer.encode_batch(pieces)))
    joined = [[id for piece in row for id in ids[piece]] for row in rows]
    marks = [[n % 2 == 1 for n, piece in enumerate(row) for _ in ids[piece]] for row in rows]
    length = length or max(map(len, joined))
    pad = [[0] * (length - len(row)) for row in joined]
    x = torch.tensor([row + more for row, more in zip(joined, pad)])
    return Answers(x, torch.tensor([row + [False] * len(more) for row, more in zip(marks, pad)]))


def transformer(
    tokenizer: Tokenizer, length: int, parameters: int, *, layers: int = 2, width: int = 32
) -> LanguageModel:
    """A transformer of about so many parameters: what the vocabulary leaves over is given to the feed-forward part."""

    def made(d_ff: int) -> LanguageModel:
        config = TransformerConfig(layers, width, width // 16, width // 16, d_ff, length, tie=True)
        return build(Tokens(length, tokenizer=tokenizer), config)

    with torch.device("meta"):
        small, one = (size(made(d)) for d in (16, 17))
    return made(max(16, 16 + round((parameters - small) / (one - small))))


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def learn(
    model: LanguageModel, data: Answers, steps: int, *, batch: int = 64, optimizer: OptimizerFactory | None = None,
    seed: int = 0,
) -> None:  # fmt: skip
    """Minimise -log p(answer | question) for so many steps; by AdamW at 5e-3 where no optimizer is given."""

    def loss(rows: Batch) -> Loss:
        at = rows.x[:, 0]
        x, answer = data.x[at], data.answer[at]
        logits = model.logits(x[:, :-1])[answer[:, 1:]]
        return Loss(nn.functional.cross_entropy(logits, x[:, 1:][answer[:, 1:]], reduction="sum"), len(logits))

    phase = Phase("answers", list(model.parameters()), loss)
    learner = Gradient(model, [phase], optimizer=optimizer or adamw(5e-3), ema=None, batch_size=batch)
    learner.horizon = steps
    model.train()
    for step in range(steps):
        u = Streams(fold(seed, "batch"), torch.arange(step * batch, (step + 1) * batch)).uniform()
        learner.step(Batch((u * len(data)).long()[:, None], None, Streams(seed, batch)))
    model.eval()


@torch.no_grad()
def correct(model: LanguageModel, data: Answers) -> Tensor:
    """(N, T) whether each token of an answer is the most probable one; True where there is no answer."""
    right = []
    for start in range(0, len(data), 512):
        x, answer = data.x[start : start + 512], data.answer[start : start + 512]
        said = nn.functional.pad(model.logits(x[:, :-1]).argmax(-1), (1, 0))
        right.append((said == x) | ~answer)
    return torch.cat(right)
