"""How a request chooses its tokens: penalties, what a constraint allows, filters, and one draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protea.errors import ConfigError
from protea.rng import Streams, fold
from protea.samplers.penalties import frequency, no_repeat, repetition
from protea.samplers.tokens import pick, uniforms, warp

PAGE = 64  # uniform numbers drawn at once


@dataclass(frozen=True)
class Sampling:
    """Settings of the chain; see `samplers/tokens.py` and `samplers/penalties.py`.

    Args:
        temperature: 0 for greedy.
        top_k, top_p, min_p, typical: filters; None for none.
        repetition: of tokens of prompt and answer; 1 for none.
        frequency, presence: of tokens of the answer.
        no_repeat: n of n-grams that may not come again; None for none.

    >>> Sampling(temperature=-1)
    Traceback (most recent call last):
    protea.errors.ConfigError: temperature must not be negative (-1). Use 0 for greedy decoding.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    no_repeat: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(f"temperature must not be negative ({self.temperature}).", "Use 0 for greedy decoding.")
        warp(torch.zeros(2), 1.0, self.top_k, self.top_p, self.min_p, self.typical)  # raises where they are wrong
        repetition(torch.zeros(2), [0], self.repetition)
        if self.no_repeat is not None:
            no_repeat(torch.zeros(2), [0], self.no_repeat)

    @property
    def plain(self) -> bool:
        """Whether the most probable token is taken as it is."""
        return (
            self.temperature == 0 and self.repetition == 1 and not (self.frequency or self.presence or self.no_repeat)
        )

    def logits(self, logits: Tensor, text: Sequence[int], prompt: int, allowed: Tensor | None = None) -> Tensor:
        """(V,) logits of the distribution that is drawn from, after `text`, whose first `prompt` ids were given.

        Greedy decoding takes their largest. `allowed` (V,) is True where a constraint lets a token follow.
        """
        if self.repetition != 1:
            logits = repetition(logits, text, self.repetition)
        if self.no_repeat is not None:
            banned = no_repeat(logits, text, self.no_repeat)
            free = banned.isfinite() if allowed is None else banned.isfinite() & allowed
            logits = banned if bool(free.any()) else logits  # rather a repetition than nothing
        if self.frequency or self.presence:
            logits = frequency(logits, text[prompt:], self.frequency, self.presence)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        if self.temperature > 0:
            logits = warp(logits, self.temperature, self.top_k, self.top_p, self.min_p, self.typical)
        return logits


class Uniforms:
    """The numbers of one request: the i-th decides its i-th new token, whatever else is computed.

    Args:
        seed, sample: which text of which seed; the numbers are those of `samplers.tokens.generate`.
        tags: of another family of numbers of the same text.

    >>> a, b = Uniforms(3), Uniforms(3)
    >>> a[100] == b[100] and a[0] != a[1]
    True
    """

    def __init__(self, seed: int, sample: int = 0, *tags: str) -> None:
        self.seed, self.sample = fold(seed, *tags) if tags else seed, sample
        self.drawn: list[float] = []

    def __getitem__(self, i: int) -> float:
        while i >= len(self.drawn):  # a longer draw begins the same
            size = max(PAGE, 2 * len(self.drawn))
            self.drawn = uniforms(Streams(self.seed, [self.sample]), size)[0].tolist()
        return self.drawn[i]


def choose(logits: Tensor, sampling: Sampling, u: float) -> int:
    """A token of processed logits (V,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    return int(pick(logits[None], torch.tensor([u], device=logits.device, dtype=torch.float64))[0])
