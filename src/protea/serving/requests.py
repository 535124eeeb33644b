"""What is asked of the engine, and what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from protea.errors import ConfigError, DataError, ProteaError
from protea.serving.blocks import Text
from protea.serving.constrained.constraint import Constraint, Matcher
from protea.serving.sampling import Sampling, Uniforms
from protea.serving.text import Writer

Finish = Literal["stop", "length", "cancelled", "error"]
GREEDY = Sampling()


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Args:
        prompt: token ids, begin-of-text where the model wants it; at least one.
        max_new_tokens: at most so many; None for as many as the context holds.
        sampling: how tokens are chosen.
        seed: of its random numbers: equal requests of equal seeds have equal answers, whatever runs beside them.
        sample: which of the answers of that seed.
        stop: strings at which the text ends (they are not part of it).
        stop_ids: tokens after which it ends; None for those of the model.
        log_probs: how many of the most probable tokens to tell at each place, beside the chosen one; None for none.
        constraint: what the text must be, from `protea.serving.constrained`; or None.
    """

    prompt: Sequence[int]
    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    seed: int = 0
    sample: int = 0
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] | None = None
    log_probs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tuple(int(i) for i in self.prompt))
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        if not self.prompt:
            raise DataError("The prompt is empty.", "Start an unprompted text with the begin-of-text token.")
        if self.max_new_tokens is not None and self.max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens must not be negative ({self.max_new_tokens}).", "Ask for 0 or more.")
        if self.log_probs is not None and self.log_probs < 0:
            raise ConfigError(f"log_probs must not be negative ({self.log_probs}).", "Ask for 0 or more.")


class LogProb(NamedTuple):
    """Under the model itself, before penalties, constraints, temperature and filters.

    Args:
        chosen: nats of the chosen token.
        top: (token, nats) of the most probable ones.
    """

    chosen: float
    top: list[tuple[int, float]]


@dataclass(eq=False)
class Handle:
    """A request on its way. Made by `Engine.submit`; read `tokens`, `text`, `log_probs`, `finish` and `error`.

    Args:
        request: what was asked.
        tokens: new ids, the one that stopped it among them.
        log_probs: of each new token, where they were asked for.
        finish: None while it runs; "stop" (a stop token or string, or a constraint that is met), "length",
            "cancelled" or "error".
        error: what went wrong.
        cached: tokens of the prompt that did not have to be computed.
        drafted, accepted: tokens that a drafter proposed, and those taken.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    log_probs: list[LogProb] = field(default_factory=list)
    finish: Finish | None = None
    error: ProteaError | None = None
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    pieces: list[str] = field(default_factory=list)  # of text that nobody has read
    limit: int = 0
    stop_ids: frozenset[int] = frozenset()
    state: Text | None = None
    writer: Writer | None = None
    matcher: Matcher | None = None
    uniforms: Uniforms = field(init=False)
    coins: Uniforms = field(init=False)  # accept or refuse drafts

    def __post_init__(self) -> None:
        seed, sample = self.request.seed, self.request.sample
        self.uniforms, self.coins = Uniforms(seed, sample), Uniforms(seed, sample, "accept")

    @property
    def ids(self) -> list[int]:
        """Prompt and new tokens."""
        return [*self.request.prompt, *self.tokens]

    @property
    def text(self) -> str:
        """The new text, as far as it is certain; empty for a model without text."""
        return "" if self.writer is None else self.writer.text

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.finish is not None

    @property
    def mean_log_prob(self) -> float:
        """Nats a token, of the new tokens (they must have been asked for); -inf for none."""
        return sum(p.chosen for p in self.log_probs) / len(self.log_probs) if self.log_probs else -math.inf

    def cancel(self) -> None:
        """Stop as soon as the engine comes to it."""
        if self.finish is None:
            self.finish = "cancelled"

    def read(self) -> str:
        """The text since the last reading."""
        piece, self.pieces = "".join(self.pieces), []
        return piece
