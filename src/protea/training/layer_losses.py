r"""Losses of layers over a whole batch, however it is cut into microbatches m and spread over ranks r.

A layer's loss is value(S, C), linear in its sums S (`protea.nn.auxiliary`). With L and n the objective's sum and count,
N = sum n_{rm} and C = sum C_{rm}, a pass contributes

    L_{rm} + N sum_a value_a(S_{a,rm}, C_a),

and these add up to N times the loss of the whole batch: its mean, plus every layer's loss over all of its tokens.
So C must be known before the first backward pass. With one pass a rank, counts are added up between forwards and
backwards, in one collective. With several, the second and later ones are heard once without gradients before, which
costs up to a third more; models whose layers add no loss pay nothing.

Every rank passes equally often and hears the same layers, so the collectives match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from protea.core import Batch, Loss
from protea.nn.auxiliary import Term
from protea.training import parallel

Values = list[tuple[Tensor, Callable[[Tensor], None]]]


class Pass(NamedTuple):
    """A loss, what layers add to it, and what they measured."""

    loss: Loss
    terms: list[Term]
    values: Values


class Whole:
    """The counts of all passes of a step, on all ranks.

    Args:
        passes: each with its weight, 0 for rows that are not the batch's.
        device: where the sums are made.
    """

    @torch.no_grad()
    def __init__(self, passes: Iterable[tuple[Pass, int]], device: torch.device) -> None:
        total: list[Tensor] = []
        for heard, weight in passes:
            counts = [torch.as_tensor(heard.loss.count), *(term.counts for term in heard.terms)]
            counts = [weight * c.detach().to(device, torch.float64) for c in counts]
            total = [a + b for a, b in zip(total, counts, strict=True)] if total else counts
        parallel.add_(total)
        self.count, self.counts = total[0], total[1:]

    def total(self, heard: Pass) -> Tensor:
        """What a pass contributes; see the module."""
        losses = (term.value(term.sums, counts) for term, counts in zip(heard.terms, self.counts, strict=True))
        return heard.loss.total + self.count * sum(losses)


def accumulate(
    hear: Callable[[Batch, bool], Pass], parts: Sequence[tuple[Batch, int]], device: torch.device
) -> tuple[Tensor, Tensor, list[Values]]:
    """Add up the gradients of this rank's microbatches, N times too large.

    Args:
        hear: a microbatch, and whether layers shall count its rows, to its pass.
        parts: at least one microbatch, each with its weight.
        device: where sums are made.

    Returns:
        This rank's part of N times the mean loss and of N, both float64, and what layers measured in each pass.
    """
    total, count, measured = torch.zeros((), dtype=torch.float64, device=device), 0.0, []
    heard, whole = hear(parts[0][0], parts[0][1] > 0), None
    if heard.terms:
        with torch.no_grad():
            later = ((hear(part, False), weight) for part, weight in parts[1:])
            whole = Whole([(heard, parts[0][1]), *later], device)
    for i, (part, weight) in enumerate(parts):
        heard = hear(part, weight > 0) if i else heard
        loss = heard.loss.total if whole is None else whole.total(heard)
        (loss if weight else loss * 0.0).backward()
        total += weight * loss.detach()
        count = count + weight * torch.as_tensor(heard.loss.count, device=device).detach().double()
        measured.append([(values if weight else values[:0], act) for values, act in heard.values])
    return total, torch.as_tensor(count), measured


@torch.no_grad()
def act_on(passes: list[Values]) -> None:
    """Give every layer what it measured in all passes, on all ranks."""
    for several in zip(*passes, strict=True):
        several[0][1](parallel.concatenate(torch.cat([values for values, _ in several])))
