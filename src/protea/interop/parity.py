"""Does an exported model say what the original says? Logits and greedy text, before anyone relies on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from protea.core import NextToken
from protea.errors import ParityError
from protea.rng import Streams

Twin = Callable[[list[int]], Tensor]  # token ids of one text to its last logits (V,)


@dataclass(frozen=True)
class Agreement:
    """What was compared, and how far apart the two were.

    Args:
        reader: who opened the export.
        prompts, tokens: texts continued, and tokens compared in all.
        gap: largest difference of logits, relative to the largest logit.
    """

    reader: str
    prompts: int
    tokens: int
    gap: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@torch.no_grad()
def agreement(
    ours: NextToken, theirs: Twin, prompts: Sequence[Sequence[int]], *, reader: str, new: int = 12,
    tolerance: float = 1e-3,
) -> Agreement:  # fmt: skip
    """Continue every prompt greedily with both, from the same ids.

    Args:
        ours: the original.
        theirs: the export, through its reader.
        prompts: token ids, at least one each.
        reader: its name.
        new: tokens to continue by.
        tolerance: of the logits, relative to the largest.

    Raises:
        ParityError: logits further apart than that, or another most probable token that is no tie.
    """
    worst = 0.0
    for prompt in prompts:
        text = list(prompt)
        for _ in range(new):
            a = ours.logits(torch.tensor([text]))[0, -1].double().cpu()
            b = theirs(text).double().cpu()[: len(a)]
            gap = ((a - b).abs().max() / a.abs().max()).item()
            worst = max(worst, gap)
            if not gap <= tolerance:
                raise ParityError(
                    f"Opened by {reader}, the export says something else: after {len(text)} tokens its logits are "
                    f"{gap:.2g} (relative) from the original's, where {tolerance:g} is allowed.",
                    "The file was not kept. Please report the architecture and its settings.",
                )
            text.append(int(a.argmax()))
            if int(b.argmax()) != text[-1] and a[text[-1]] - a[int(b.argmax())] > 2 * tolerance * a.abs().max():
                raise ParityError(
                    f"Opened by {reader}, the export continues with token {int(b.argmax())}, the original with "
                    f"{text[-1]}, after {text[:-1]}.",
                    "The file was not kept. Please report the architecture and its settings.",
                )
    return Agreement(reader, len(prompts), new * len(prompts), worst)


def trial_prompts(vocabulary: int, begin: int, context: int, count: int = 3, seed: int = 0) -> list[list[int]]:
    """Random texts after begin-of-text, short enough that some tokens may follow.

    >>> [len(p) for p in trial_prompts(10, 10, 64)]
    [5, 5, 5]
    """
    length = max(0, min(4, context - 14))
    u = Streams(seed, count).uniform(max(1, length))
    return [[begin, *(row * vocabulary).long().clamp_max(vocabulary - 1).tolist()[:length]] for row in u]
