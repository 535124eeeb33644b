r"""Beam search: the K best beginnings of a text are carried on together, sharing the blocks of what they share.

A text of n new tokens scores log p(new tokens) / n^a: a > 0 favours long ones. Only the K best continuations of a step
may end there; the search stops when no open beam can beat the worst of K finished ones, as far as its present length
tells (`patience` "usual"), as soon as K are finished ("first"), or when the longest text it may become could not
("never"). This is the search of `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from protea.errors import ConfigError, DataError
from protea.serving.blocks import Text
from protea.serving.compute import Alone, Job, Said
from protea.serving.engine import Engine

Patience = Literal["usual", "first", "never"]


class Beam(NamedTuple):
    """New tokens, their score, and log p of them (nats)."""

    tokens: list[int]
    score: float
    log_prob: float


class _Open(NamedTuple):
    tokens: list[int]
    log_prob: float
    text: Text


@torch.inference_mode()
def beam_search(
    engine: Engine, prompt: Sequence[int], max_new_tokens: int, beams: int = 4, *, length_penalty: float = 1.0,
    patience: Patience = "usual", stop_ids: Sequence[int] | None = None,
) -> list[Beam]:  # fmt: skip
    """The best texts found, best first: at most `beams`.

    Args:
        engine: its model and memory are used; it must have nothing else to do.
        prompt: token ids.
        max_new_tokens: at most so many.
        beams: K.
        length_penalty: a.
        patience: see the module.
        stop_ids: tokens that end a text (and are part of it); None for the model's.

    Raises:
        ConfigError: settings out of range, or a busy engine.
    """
    if beams < 1 or max_new_tokens < 1 or patience not in ("usual", "first", "never"):
        raise ConfigError(
            f"{beams} beams of {max_new_tokens} tokens with patience {patience!r} make no search.",
            'Give positive numbers, and a patience of "usual", "first" or "never".',
        )
    stops = sorted(engine.stop_ids if stop_ids is None else stop_ids)
    text, said = begin(engine, prompt, max_new_tokens, beams)
    open_ = [_Open([], 0.0, text)]
    logits = said.logits[-1:]
    done: list[Beam] = []
    for n in range(1, max_new_tokens + 1):
        total = logits.log_softmax(-1) + torch.tensor([[b.log_prob] for b in open_])
        best = total.flatten().topk(min(max(2, 1 + len(stops)) * beams, total.numel()))
        found = [
            (p, *divmod(i, total.shape[1])) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        done += [
            Beam([*open_[b].tokens, token], p / n**length_penalty, p)
            for p, b, token in found[:beams]
            if token in stops or n == max_new_tokens
        ]
        done = sorted(done, key=lambda beam: -beam.score)[:beams]
        going = [] if n == max_new_tokens else [c for c in found if c[2] not in stops][:beams]
        new = [_Open([*open_[b].tokens, token], p, engine.blocks.fork(open_[b].text)) for p, b, token in going]
        for beam in open_:
            engine.blocks.release(beam.text)
        open_ = new
        if not open_ or (len(done) == beams and not _hope(open_[0], done, n, max_new_tokens, length_penalty, patience)):
            break
        logits = torch.cat([s.logits for s in engine.compute([Job(b.text, b.tokens[-1:], 1) for b in open_])])
    for beam in open_:
        engine.blocks.release(beam.text)
    return done


def _hope(best: _Open, done: list[Beam], n: int, most: int, a: float, patience: Patience) -> bool:
    """Whether the best open beam may still beat the worst finished one."""
    if patience == "first":
        return False
    length = most if patience == "never" and a > 0 else n
    return best.log_prob / length**a > done[-1].score


def begin(engine: Engine, prompt: Sequence[int], new: int, copies: int, wanted: bool = False) -> tuple[Text, Said]:
    """A text that holds the prompt, and what the model said of its last token (or, `wanted`, of all)."""
    if engine.busy:
        raise ConfigError("The engine has requests to answer.", "Run it to their end first, or use another.")
    if isinstance(engine.compute, Alone):
        raise ConfigError(f"Texts of {type(engine.model).__name__} cannot be forked.", "Sample instead.")
    if len(prompt) == 0:
        raise DataError("The prompt is empty.", "Start an unprompted text with the begin-of-text token.")
    if len(prompt) + new > engine.longest + 1:
        raise DataError(
            f"A prompt of {len(prompt)} tokens and {new} new ones do not fit in the context of {engine.longest}.",
            "Shorten the prompt, or ask for fewer new tokens.",
        )
    wrong = next((i for i in prompt if not 0 <= i < engine.inputs), None)
    if wrong is not None:
        raise DataError(f"There is no token {wrong}: ids run from 0 to {engine.inputs - 1}.", "Use its tokenizer.")
    blocks = engine.blocks
    if 2 * copies * (-(-(len(prompt) + new) // blocks.block) + 1) > blocks.size:
        raise ConfigError(f"{copies} texts at once do not fit in the engine's memory.", "Give it a larger `memory`.")
    text, said = blocks.new(), []
    for start in range(0, len(prompt), engine.chunk):
        ids = [int(i) for i in prompt[start : start + engine.chunk]]
        said.append(engine.compute([Job(text, ids, len(ids) if wanted else 1)])[0])
    if not wanted:
        return text, said[-1]
    hidden = None if said[0].hidden is None else torch.cat([s.hidden for s in said if s.hidden is not None])
    return text, Said(torch.cat([s.logits for s in said]), hidden)
