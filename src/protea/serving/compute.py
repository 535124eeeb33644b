"""How the engine has the model compute: the text of a request must not depend on what is computed beside it.

Fused    all rows in one call of the compiled kernels, whose sums run in an order of the row's own
Apart    each request by itself on the paged memory, in calls whose shapes the request alone decides
Together tokens of many requests as one batch of PyTorch's, whose rounding may depend on the batch (for GPUs)
Alone    models with a memory of their own kind, each request by itself
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protea.core import NextToken
from protea.models.autoregressive.decoder import Decoder
from protea.models.autoregressive.language import LanguageModel
from protea.serving.blocks import Blocks, Text
from protea.serving.fuse import Unsupported
from protea.serving.paged import PagedCache
from protea.serving.plan import Plan


class Job(NamedTuple):
    """Ids that continue a text; logits are wanted of the last `wanted` of them."""

    text: Text
    ids: Sequence[int]
    wanted: int = 1


class Said(NamedTuple):
    """logits (wanted, V) float32, and the normalised residual stream (wanted, d), or None where there is none."""

    logits: Tensor
    hidden: Tensor | None


class Compute(ABC):
    """Computes jobs, and has their texts remember the ids.

    `free`: whether a request's numbers are the same in whatever pieces it is computed; if not, the engine cuts it at
    places that the request alone decides.
    """

    free: bool = False

    @abstractmethod
    def __call__(self, jobs: Sequence[Job]) -> list[Said]:
        """What each job says."""


class Fused(Compute):
    """One call of the compiled kernels for all jobs. Raises `Unsupported` where there is no plan."""

    free = True

    def __init__(self, model: LanguageModel, blocks: Blocks, rows: int) -> None:
        self.plan = Plan(model.net, blocks, rows)

    def __call__(self, jobs: Sequence[Job]) -> list[Said]:
        return [Said(*said) for said in self.plan(jobs)]


class Apart(Compute):
    """Each job in a call of its own."""

    def __init__(self, model: LanguageModel, blocks: Blocks, rows: int = 0) -> None:
        self.model, self.blocks = model, blocks
        self.device = next(model.parameters()).device

    def __call__(self, jobs: Sequence[Job]) -> list[Said]:
        return [self._say([job])[0] for job in jobs]

    def _say(self, jobs: Sequence[Job]) -> list[Said]:
        """Jobs of as many ids each."""
        ids = torch.tensor([list(job.ids) for job in jobs], device=self.device)
        cache = PagedCache(self.blocks, [job.text for job in jobs])
        most = max(job.wanted for job in jobs)
        net = self.model.net
        if isinstance(net, Decoder):
            h = net.hidden(ids, cache.context(ids.shape[1], self.device))
            cache.advance(ids.shape[1])
            h = h[:, h.shape[1] - most :]
            logits = net.read(h).float() if most else h.new_empty(len(jobs), 0, net.outputs)
            said = [(x, y) for x, y in zip(logits, h.float(), strict=True)]
        else:
            said = [(x, None) for x in self.model.logits(ids, cache)[:, ids.shape[1] - most :].float()]
        return [
            Said(x[most - job.wanted :], None if y is None else y[most - job.wanted :])
            for job, (x, y) in zip(jobs, said, strict=True)
        ]


class Together(Apart):
    """Jobs of as many ids each, with states of equal shapes, in one call."""

    def __call__(self, jobs: Sequence[Job]) -> list[Said]:
        groups: dict[Any, list[int]] = {}
        for i, job in enumerate(jobs):
            shapes = tuple((layer, *(p.shape for p in state)) for layer, state in job.text.states.items())
            groups.setdefault((len(job.ids), shapes), []).append(i)
        out: dict[int, Said] = {}
        for members in groups.values():
            out |= dict(zip(members, self._say([jobs[i] for i in members]), strict=True))
        return [out[i] for i in range(len(jobs))]


class Alone(Compute):
    """Any next-token model: a memory of its own for each text."""

    def __init__(self, model: NextToken, blocks: Blocks, rows: int = 0) -> None:
        self.model, self.longest = model, blocks.longest

    def __call__(self, jobs: Sequence[Job]) -> list[Said]:
        out = []
        for text, ids, wanted in jobs:
            if text.own is None:
                text.own = self.model.new_cache(1, self.longest)
            logits = self.model.logits(torch.tensor([list(ids)]), text.own)[0].float()
            out.append(Said(logits[len(logits) - wanted :], None))
            text.length += len(ids)
        return out


def choose(model: NextToken, blocks: Blocks, rows: int) -> Compute:
    """The fastest way that leaves every request its text: fused where it can be, checked against the model."""
    if not isinstance(model, LanguageModel):
        return Alone(model, blocks)
    if next(model.parameters()).device.type != "cpu":
        return Together(model, blocks) if isinstance(model.net, Decoder) else Apart(model, blocks)
    apart = Apart(model, blocks)
    try:
        fused = Fused(model, blocks, rows)
    except Unsupported:
        _trial(apart, blocks)  # so that every kind of layer is known
        return apart
    want, got = _trial(apart, blocks), _trial(fused, blocks)
    if not torch.allclose(got, want, rtol=1e-3, atol=1e-3 * float(want.nan_to_num().abs().max()), equal_nan=True):
        warnings.warn("The fused decoding plan disagrees with the model: requests are worked out apart.", stacklevel=3)
        return apart
    return fused


@torch.inference_mode()
def _trial(compute: Compute, blocks: Blocks) -> Tensor:
    """Logits of a few tokens, some at once, some one by one."""
    text, n = blocks.new(), min(6, blocks.longest)
    ids = [i % 2 for i in range(n)]
    logits = [compute([Job(text, ids[: n - 2], 1)])[0].logits] if n > 2 else []
    logits += [compute([Job(text, [i], 1)])[0].logits for i in ids[max(0, n - 2) :]]
    blocks.release(text)
    return torch.cat(logits)
