"""More than one answer to a request: the best of n, and what most of n agree on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

from protea.errors import ConfigError
from protea.serving.engine import Engine
from protea.serving.requests import Handle, Request


def several(engine: Engine, request: Request, n: int) -> list[Handle]:
    """n answers to one request: samples 0 .. n - 1 of its seed. The prompt is computed once where it fills blocks.

    Raises:
        ConfigError: n below 1, or a greedy request, whose answers would be the same.
    """
    if n < 1:
        raise ConfigError(f"{n} answers were asked for.", "Ask for at least one.")
    if n > 1 and request.sampling.temperature == 0:
        raise ConfigError("Greedy answers are all the same.", "Give the request a temperature above 0.")
    if request.log_probs is None:
        request = replace(request, log_probs=0)
    handles = [engine.submit(request)]
    while not handles[0].tokens and not handles[0].done:
        engine.step()
    handles += [engine.submit(replace(request, sample=request.sample + i)) for i in range(1, n)]
    engine.run(handles)
    return handles


def best_of(
    engine: Engine, request: Request, n: int, score: Callable[[Handle], float] | None = None
) -> tuple[Handle, list[Handle]]:
    """The answer of the highest score, and all of them (Stiennon et al. 2020; Nakano et al. 2021).

    Args:
        engine: that answers.
        request: with a temperature above 0.
        n: how many answers.
        score: of an answer; None for its mean log-probability a token under the model.
    """
    handles = several(engine, request, n)
    rate = score or (lambda handle: handle.mean_log_prob)
    return max(handles, key=rate), handles


class Vote(NamedTuple):
    """What the answers said.

    Args:
        answer: said most often, the first among equals; None if no answer could be read.
        share: of all n that said so.
        votes: each answer and how often it was said.
        handles: all of them.
    """

    answer: Hashable
    share: float
    votes: list[tuple[Hashable, int]]
    handles: Sequence[Handle]


def self_consistency(
    engine: Engine, request: Request, n: int, extract: Callable[[str], Hashable | None] = str.strip
) -> Vote:
    """A majority vote over n chains of thought (Wang et al. 2023, "Self-consistency improves chain of thought").

    Args:
        engine: that answers.
        request: with a temperature above 0.
        n: how many answers.
        extract: the answer in a text; None where there is none, which is no vote.
    """
    handles = several(engine, request, n)
    said = [answer for handle in handles if (answer := extract(handle.text)) is not None]
    votes = Counter(said).most_common()
    answer, count = votes[0] if votes else (None, 0)
    return Vote(answer, count / n, votes, handles)
