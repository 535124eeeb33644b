"""Drafters: another model, the text itself, or the heads that look further than the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protea.errors import ConfigError
from protea.models.autoregressive.language import LanguageModel
from protea.nn.mtp import Drafter as Heads
from protea.serving.blocks import Blocks, Text
from protea.serving.compute import Job
from protea.serving.compute import choose as choose_compute
from protea.serving.sampling import Uniforms, choose
from protea.serving.speculative import Draft, Drafter

if TYPE_CHECKING:
    from protea.serving.requests import Handle


class Lookup(Drafter):
    """What followed the last n tokens where the text had them before (Saxena 2023, "Prompt lookup decoding").

    Args:
        most: tokens proposed at once.
        longest: n that is tried first; then shorter ones, down to 1.

    >>> Lookup(most=3).follow([1, 2, 3, 4, 9, 1, 2], 3)
    [3, 4, 9]
    """

    def __init__(self, most: int = 8, longest: int = 3) -> None:
        if most < 1 or longest < 1:
            raise ConfigError(f"Drafts of {most} tokens after {longest} make no sense.", "Give positive numbers.")
        self.most, self.longest = most, longest

    def follow(self, ids: Sequence[int], most: int) -> list[int]:
        """The tokens after the latest earlier place that ends like the text."""
        text = torch.as_tensor(ids)
        for n in range(min(self.longest, len(ids) - 1), 0, -1):
            places = (text[:-1].unfold(0, n, 1) == text[-n:]).all(1).nonzero()[:, 0]
            if len(places):
                start = int(places[-1]) + n
                return list(ids[start : start + most])
        return []

    def propose(self, handles: Sequence[Handle], most: Sequence[int]) -> list[Draft]:
        return [Draft(self.follow(h.ids, n), None) for h, n in zip(handles, most, strict=True)]


class DraftModel(Drafter):
    """A smaller model of the same tokens, sampled as the request asks (Leviathan et al. 2023).

    Args:
        model: reads and predicts the ids of the model it drafts for.
        most: tokens proposed at once.
        slots: requests of the engine.
        longest: most tokens of a text.
    """

    def __init__(self, model: LanguageModel, most: int = 4, slots: int = 8, longest: int | None = None) -> None:
        self.model, self.most = model.eval(), most
        self.longest = longest or model.context
        size = self.longest + most + 1
        self.blocks = Blocks(slots * (size + 16) + 16, size, 16, most + 1)
        self.compute = choose_compute(model, self.blocks, 64)
        if self.blocks.stateful:
            raise ConfigError("A recurrent model's drafts cannot be taken back.", "Draft with a model that attends.")
        self.texts: dict[int, Text] = {}
        self.uniforms: dict[int, Uniforms] = {}

    def join(self, handle: Handle) -> None:
        self.texts[id(handle)] = self.blocks.new()
        self.uniforms[id(handle)] = Uniforms(handle.request.seed, handle.request.sample, "draft")

    def leave(self, handle: Handle) -> None:
        self.blocks.release(self.texts.pop(id(handle)))
        self.uniforms.pop(id(handle))

    def propose(self, handles: Sequence[Handle], most: Sequence[int]) -> list[Draft]:
        ids = [h.ids for h in handles]
        for h, text in zip(handles, ids, strict=True):  # what it wrote of drafts that fell
            mine = self.texts[id(h)]
            self.blocks.retract(mine, max(0, mine.length - len(text) + 1))
        drafted: list[list[int]] = [[] for _ in handles]
        q: list[list[Tensor]] = [[] for _ in handles]
        for n in range(max(most)):
            able = [i for i, m in enumerate(most) if n < m and len(ids[i]) + n <= self.model.context]
            jobs = []
            for i in able:
                text = self.texts[id(handles[i])]
                jobs.append(Job(text, [*ids[i], *drafted[i]][text.length :], 1))
            for i, said in zip(able, self.compute(jobs) if jobs else [], strict=True):
                handle, sampling = handles[i], handles[i].request.sampling
                whole = [*ids[i], *drafted[i]]
                logits = sampling.logits(said.logits[-1], whole, len(handle.request.prompt))
                drafted[i].append(choose(logits, sampling, self.uniforms[id(handle)][len(handle.tokens) + n]))
                q[i].append(logits.double().softmax(-1))
        return [Draft(d, torch.stack(p) if p else None) for d, p in zip(drafted, q, strict=True)]


class MultiTokenHeads(Drafter):
    """The model's own multi-token prediction modules (DeepSeek-AI 2024, "DeepSeek-V3", section 2.2), greedily.

    Args:
        model: its `net.ahead` holds the modules.

    Raises:
        ConfigError: it has none.
    """

    wants_hidden = True

    def __init__(self, model: LanguageModel) -> None:
        modules = getattr(model.net, "ahead", None)
        if modules is None or not len(modules.depths):
            raise ConfigError("The model has no modules that look ahead.", "Train one with them, or use Lookup().")
        self.net, self.modules, self.most, self.longest = model.net, modules, len(modules.depths), model.context
        self.heads: dict[int, Heads] = {}
        self.next: dict[int, list[int]] = {}

    def join(self, handle: Handle) -> None:
        self.heads[id(handle)] = Heads(self.net, self.modules, self.longest + self.most + 1)

    def leave(self, handle: Handle) -> None:
        self.heads.pop(id(handle), None)
        self.next.pop(id(handle), None)

    def learn(self, handle: Handle, hidden: Tensor, follow: Sequence[int]) -> None:
        ids, _ = self.heads[id(handle)].drafts(hidden[None], torch.tensor([list(follow)], device=hidden.device))
        self.next[id(handle)] = ids[0].tolist()

    def propose(self, handles: Sequence[Handle], most: Sequence[int]) -> list[Draft]:
        return [Draft(self.next.get(id(h), [])[:n], None) for h, n in zip(handles, most, strict=True)]
