"""The decoding engine: many requests at once, joining and leaving at every step (continuous batching; Yu et al. 2022,
"Orca") over a paged memory.

    engine = Engine(model)
    handle = engine.submit(Request(ids, max_new_tokens=50, sampling=Sampling(temperature=0.8), seed=7))
    for piece in engine.stream(handle): ...

On the CPU the tokens of a request depend on the request alone, bit for bit: not on what runs beside it, nor on when it
joined (`compute.py` says how).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from protea.core import NextToken
from protea.errors import ConfigError, DataError, ProteaError
from protea.models.autoregressive.language import LanguageModel
from protea.serving.blocks import Blocks
from protea.serving.compute import Compute, Fused, Job, Said, choose
from protea.serving.prompt_cache import PromptCache
from protea.serving.requests import Finish, Handle, LogProb, Request
from protea.serving.sampling import choose as choose_token
from protea.serving.speculative import Draft, Drafter, verify
from protea.serving.text import Writer
from protea.serving.vocabulary import codec_of, readable, stop_ids_of


class Engine:
    """Answers requests to one model.

    Args:
        model: any next-token model; its weights must stay where they are while the engine lives.
        slots: requests that run at once; others wait.
        longest: most tokens of prompt and answer; None for the model's context.
        memory: tokens that the paged memory holds; None for `slots` of the longest texts, and a prompt cache as large.
        block: tokens of a block.
        chunk: tokens of a prompt computed in one step, so that long prompts do not hold up the others.
        drafter: proposes tokens that the model then verifies (speculative decoding); None for none.
        compute: makes what computes the model, of it, the memory and the most tokens of a step; see `compute.py`.

    >>> from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    >>> from protea.spaces import Tokens
    >>> model = language_model("llama", Tokens(32), ARCHITECTURES["llama"].scaled(1, 16, 32))
    >>> engine = Engine(model)
    >>> handles = [engine.submit(Request([256, n], max_new_tokens=n)) for n in (3, 5)]
    >>> engine.run(); [(len(h.tokens), h.finish) for h in handles]
    [(3, 'length'), (5, 'length')]
    """

    def __init__(
        self, model: NextToken, *, slots: int = 8, longest: int | None = None, memory: int | None = None,
        block: int = 16, chunk: int = 64, drafter: Drafter | None = None,
        compute: Callable[[Any, Blocks, int], Compute] = choose,
    ) -> None:  # fmt: skip
        if slots < 1 or chunk < block or chunk % block:
            raise ConfigError(
                f"{slots} slots and chunks of {chunk} tokens over blocks of {block} make no engine.",
                "Give at least one slot, and chunks of whole blocks.",
            )
        self.model, self.slots, self.chunk = model.eval(), slots, chunk
        context = getattr(model, "context", None)
        self.longest = min(longest or context or 2048, context or longest or 2048)
        self.codec = codec_of(model)
        self.stop_ids = stop_ids_of(model)
        self.inputs = readable(model)
        self.drafter = drafter
        spare = 1 if drafter is None else drafter.most + 1
        size = memory or 2 * slots * self.longest
        self.blocks = Blocks(max(size, self.longest + 2 * block), self.longest, block, spare)
        self.compute = compute(model, self.blocks, max(chunk, slots * spare))
        self.prompts = PromptCache(self.blocks, block if self.compute.free else chunk)
        self.shares = isinstance(model, LanguageModel)
        if drafter is not None and not self.shares:
            raise ConfigError(f"{type(model).__name__} cannot take tokens back.", "Leave the drafter out.")
        self.waiting: deque[Handle] = deque()
        self.running: list[Handle] = []
        self.steps = 0
        self._lock = threading.RLock()

    # ------------------------------------------------------------ asking

    def submit(self, request: Request) -> Handle:
        """Queue a request; `step`, `run` or `stream` make it progress.

        Raises:
            DataError: the prompt is longer than the context, or has an unknown id.
            ConfigError: its constraint cannot be met, or it asks for what the model has not.
        """
        wrong = next((i for i in request.prompt if not 0 <= i < self.inputs), None)
        if wrong is not None:
            raise DataError(f"There is no token {wrong}: ids run from 0 to {self.inputs - 1}.", "Use its tokenizer.")
        room = self.longest + 1 - len(request.prompt)  # the last new token is never read
        limit = room if request.max_new_tokens is None else request.max_new_tokens
        if limit > room or room < 1:
            raise DataError(
                f"A prompt of {len(request.prompt)} tokens and {request.max_new_tokens or 1} new ones do not fit in the"
                f" model's context of {self.longest}.",
                "Shorten the prompt, or ask for fewer new tokens.",
            )
        stops = self.stop_ids if request.stop_ids is None else request.stop_ids
        handle = Handle(request, limit=limit, stop_ids=frozenset(stops))
        if self.codec is not None:
            handle.writer = Writer(self.codec, request.stop)
        elif request.stop:
            raise ConfigError("The model's tokens stand for no text: there are no stop strings.", "Use stop_ids.")
        if request.constraint is not None:
            if self.codec is None:
                raise ConfigError("The model's tokens stand for no text to constrain.", "Leave the constraint out.")
            handle.matcher = request.constraint.start(self.codec, handle.stop_ids)
        if limit == 0:
            handle.finish = "length"
        else:
            self.waiting.append(handle)
        return handle

    def run(self, handles: Sequence[Handle] | None = None) -> None:
        """Work until these requests are done; None for all."""
        while any(not h.done for h in handles) if handles is not None else self.busy:
            self.step()

    def stream(self, handle: Handle) -> Iterator[str]:
        """Pieces of a request's text as they become certain, working meanwhile (for the other requests too)."""
        while True:
            if piece := handle.read():
                yield piece
            elif handle.done:
                return
            else:
                self.step()

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    # ------------------------------------------------------------ working

    @torch.inference_mode()
    def step(self) -> None:
        """A chunk of each new prompt, and a token (with a drafter: at least one) of each request that writes."""
        with self._lock:
            self.steps += 1
            for handle in [h for h in self.running if h.done]:
                self._leave(handle)
            self._admit()
            writing = [h for h in self.running if h.tokens]
            reading = [h for h in self.running if not h.tokens]
            drafts = self._drafts(writing)
            jobs = [self._chunk(h) for h in reading]
            states = {id(h): dict(h.state.states) for h in writing if h.state is not None and drafts[id(h)].ids}
            for h in writing:
                assert h.state is not None
                ids = [h.tokens[-1], *drafts[id(h)].ids]
                jobs.append(Job(h.state, ids, len(ids)))
            for handle, job, said in zip([*reading, *writing], jobs, self.compute(jobs), strict=True):
                try:
                    if handle in reading:
                        self._read(handle, job, said)
                    else:
                        self._write(handle, job, said, drafts[id(handle)], states.get(id(handle), {}))
                except ProteaError as error:
                    handle.error, handle.finish = error, "error"
            for handle in [h for h in self.running if h.done]:
                self._leave(handle)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            handle = self.waiting[0]
            if not handle.done:
                held = sum(self._need(h) for h in self.running)
                if self.running and held + self._need(handle) > self.blocks.size:
                    return  # no room before others leave
                whole = not self.shares or (self.drafter is not None and self.drafter.wants_hidden)
                handle.state = self.blocks.new() if whole else self.prompts.find(handle.request.prompt)
                handle.cached = handle.state.length
                self.running.append(handle)
                if self.drafter is not None:
                    self.drafter.join(handle)
            self.waiting.popleft()

    def _need(self, handle: Handle) -> int:
        return -(-(len(handle.request.prompt) + handle.limit + self.blocks.spare) // self.blocks.block) + 1

    def _chunk(self, handle: Handle) -> Job:
        assert handle.state is not None
        start, prompt = handle.state.length, handle.request.prompt
        end = min(len(prompt), (start // self.chunk + 1) * self.chunk)
        all_of_it = self.drafter is not None and self.drafter.wants_hidden
        return Job(handle.state, prompt[start:end], end - start if all_of_it else int(end == len(prompt)))

    def _read(self, handle: Handle, job: Job, said: Said) -> None:
        """A chunk of the prompt was computed; after the last one the first token is chosen."""
        if self.shares:
            self.prompts.keep(job.text, handle.request.prompt)
        last = job.text.length == len(handle.request.prompt)
        if last:
            self._choose(handle, said.logits[-1])
        if self.drafter is not None and said.hidden is not None and len(said.hidden):
            follow = [*handle.request.prompt, *handle.tokens][job.text.length - len(job.ids) + 1 :][: len(job.ids)]
            self.drafter.learn(handle, said.hidden[: len(follow)], follow)

    def _drafts(self, writing: list[Handle]) -> dict[int, Draft]:
        none = Draft([], None)
        if self.drafter is None or not writing:
            return {id(h): none for h in writing}
        asked = {id(h): min(self.drafter.most, h.limit - len(h.tokens) - 1) for h in writing}
        able = [h for h in writing if asked[id(h)] > 0]
        made = self.drafter.propose(able, [asked[id(h)] for h in able]) if able else []
        return {id(h): none for h in writing} | {id(h): draft for h, draft in zip(able, made, strict=True)}

    def _write(self, handle: Handle, job: Job, said: Said, draft: Draft, states: dict) -> None:
        """The last token and the drafts were computed: take what stands, forget the rest."""
        kept = 1
        for i in range(len(draft.ids) + 1):
            if i == len(draft.ids):
                self._choose(handle, said.logits[i])
                break
            logits = self._logits(handle, said.logits[i])
            token, stands = verify(logits, draft, i, handle, len(handle.tokens))
            handle.drafted += 1
            handle.accepted += int(stands)
            self._take(handle, token, said.logits[i])
            if not stands or handle.done:
                break
            kept += 1
        excess = len(job.ids) - kept
        if excess and not handle.done:
            if states:  # a state cannot be taken back: from the copy, over what stands
                self.blocks.retract(job.text, len(job.ids))
                job.text.states = states
                self.compute([Job(job.text, job.ids[:kept], 0)])
            else:
                self.blocks.retract(job.text, excess)
        if self.drafter is not None and said.hidden is not None and not handle.done:
            self.drafter.learn(handle, said.hidden[:kept], handle.tokens[-kept:])

    def _logits(self, handle: Handle, logits: Tensor) -> Tensor:
        """Of the distribution that the next token is drawn from."""
        sampling, matcher = handle.request.sampling, handle.matcher
        if matcher is None and sampling.plain:
            return logits
        if not math.isfinite(float(logits.amax())):
            raise not_numbers()
        allowed = None
        if matcher is not None:
            allowed = matcher.allowed(len(logits))
            for stop in handle.stop_ids:
                if stop < len(allowed):
                    allowed[stop] = matcher.accepting
            if not bool(allowed.any()):
                raise DataError("No token can follow under the constraint.", "Its text needs tokens the model has not.")
        return sampling.logits(logits, handle.ids, len(handle.request.prompt), allowed)

    def _choose(self, handle: Handle, logits: Tensor) -> None:
        sampling, processed = handle.request.sampling, self._logits(handle, logits)
        u = handle.uniforms[len(handle.tokens)] if sampling.temperature > 0 else 0.0
        token = choose_token(processed, sampling, u)
        if not math.isfinite(float(processed[token])):  # the largest of what is not a number is not a number
            raise not_numbers()
        self._take(handle, token, logits)

    def _take(self, handle: Handle, token: int, logits: Tensor) -> None:
        """The token is the next one of the answer."""
        handle.tokens.append(token)
        if handle.request.log_probs is not None:
            log_p = logits.double().log_softmax(-1)
            top = log_p.topk(min(handle.request.log_probs, len(log_p)))
            best = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            handle.log_probs.append(LogProb(float(log_p[token]), best))
        ended = token in handle.stop_ids
        if not ended and handle.matcher is not None:
            handle.matcher.consume(token)
        if not ended and handle.writer is not None and (piece := handle.writer.push(token)):
            handle.pieces.append(piece)
        if handle.matcher is not None and handle.matcher.finished:
            ended = True
        if ended or (handle.writer is not None and handle.writer.stopped is not None):
            self._finish(handle, "stop")
        elif len(handle.tokens) >= handle.limit:
            self._finish(handle, "length")

    def _finish(self, handle: Handle, why: Finish) -> None:
        if handle.writer is not None and (rest := handle.writer.close()):
            handle.pieces.append(rest)
        handle.finish = handle.finish or why

    def _leave(self, handle: Handle) -> None:
        self.running.remove(handle)
        if self.drafter is not None:
            self.drafter.leave(handle)
        if handle.state is not None:
            if self.compute.free and handle.error is None:
                excess = handle.state.length - len(handle.request.prompt) - max(0, len(handle.tokens) - 1)
                self.blocks.retract(handle.state, max(0, excess))  # drafts that fell
                if excess > 0:
                    handle.state.states = {}  # which have seen them
                self.prompts.keep(handle.state, handle.ids)
            self.blocks.release(handle.state)
            handle.state = None

    @property
    def fused(self) -> bool:
        """Whether the compiled kernels do the work."""
        return isinstance(self.compute, Fused)


def not_numbers() -> DataError:
    return DataError("The model's logits are not numbers.", "Check its weights: training may have diverged.")
