r"""Choosing the next token: plain functions on logits, and the loop that writes a text.

    temperature  softmax(l / t): t < 1 sharpens, t = 0 is greedy
    top-k        keep the k most probable tokens                     (Fan et al. 2018)
    top-p        keep the smallest set whose mass is at least p      (Holtzman et al. 2020, "nucleus")
    min-p        keep tokens of at least p times the best one's mass (Nguyen et al. 2024)
    typical      keep those whose surprise is nearest the entropy    (Meister et al. 2023)

A removed token gets the logit -inf. They compose in this order, as in `transformers`, after the penalties
of `penalties.py`, and a token is then drawn by inverting the distribution function at one uniform number
per text and step. For many requests at once, stops, streams and constraints see `protea.serving`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.core import NextToken
from protea.errors import ConfigError, DataError
from protea.rng import Streams


def temperature(logits: Tensor, t: float) -> Tensor:
    """Logits (..., V) of the tempered distribution softmax(logits / t), t > 0.

    >>> torch.softmax(temperature(torch.tensor([0.0, 1.0]), 0.5), -1).round(decimals=3).tolist()
    [0.11900000274181366, 0.8809999823570251]
    """
    if not t > 0:
        raise ConfigError(f"temperature must be positive here, not {t}.", "Use temperature 0 in `generate` for greedy.")
    return logits / t


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest of (..., V) logits, and any that tie with the k-th.

    >>> top_k(torch.tensor([1.0, 3.0, 2.0]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    if k < 1:
        raise ConfigError(f"top_k must be at least 1, not {k}.", "Leave it out to keep every token.")
    least = logits.topk(min(k, logits.shape[-1]), -1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most probable tokens whose probabilities sum to at least p, in (0, 1].

    >>> top_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.6).exp().round(decimals=1).tolist()
    [0.5, 0.30000001192092896, 0.0]
    """
    if not 0 < p <= 1:
        raise ConfigError(f"top_p must be in (0, 1], not {p}.", "Use 1 to keep every token.")
    ordered, index = logits.sort(-1)  # ascending: tokens are dropped while the tail's mass is at most 1 - p
    drop = ordered.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -1] = False
    return logits.masked_fill(drop.scatter(-1, index, drop), -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens whose probability is at least p times that of the most probable one, p in [0, 1].

    >>> min_p(torch.tensor([0.5, 0.3, 0.1]).log(), 0.4).exp().round(decimals=1).tolist()
    [0.5, 0.30000001192092896, 0.0]
    """
    if not 0 <= p <= 1:
        raise ConfigError(f"min_p must be in [0, 1], not {p}.", "Use 0 to keep every token.")
    q = logits.softmax(-1)
    drop = q < p * q.amax(-1, keepdim=True)
    return logits.masked_fill(drop, -torch.inf)


def typical(logits: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose surprise -log p is nearest the entropy H, up to a probability of `mass` in (0, 1].

    >>> typical(torch.tensor([0.9, 0.05, 0.05]).log(), 0.5).exp().round(decimals=2).tolist()
    [0.8999999761581421, 0.0, 0.0]
    """
    if not 0 < mass <= 1:
        raise ConfigError(f"typical must be in (0, 1], not {mass}.", "Use 1 to keep every token.")
    if mass == 1:
        return logits
    log_p = logits.log_softmax(-1)
    entropy = -(log_p * log_p.exp()).nansum(-1, keepdim=True)
    far, index = (-log_p - entropy).abs().sort(-1)
    below = logits.gather(-1, index).softmax(-1).cumsum(-1) < mass
    last = below.sum(-1, keepdim=True).clamp_max(logits.shape[-1] - 1)
    drop = far > far.gather(-1, last)
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), -torch.inf)


def warp(
    logits: Tensor, t: float = 1.0, k: int | None = None, p: float | None = None, least: float | None = None,
    mass: float | None = None,
) -> Tensor:  # fmt: skip
    """Temperature t, then top-k, top-p p, min-p `least` and typical `mass`, where they are given."""
    if t != 1:
        logits = temperature(logits, t)
    if k is not None:
        logits = top_k(logits, k)
    if p is not None:
        logits = top_p(logits, p)
    if least is not None:
        logits = min_p(logits, least)
    return logits if mass is None else typical(logits, mass)


def greedy(logits: Tensor) -> Tensor:
    """The most probable token of (..., V) logits; the first among equals."""
    return logits.argmax(-1)


def pick(logits: Tensor, u: Tensor) -> Tensor:
    """Tokens (B,) of distribution softmax(logits), logits (B, V): the inverse of its CDF at u (B,) in (0, 1).

    >>> pick(torch.zeros(3, 4), torch.tensor([0.1, 0.6, 0.99])).tolist()
    [0, 2, 3]
    """
    cdf = logits.double().softmax(-1).cumsum(-1)
    cdf = cdf / cdf[:, -1:]
    return torch.searchsorted(cdf, u.to(cdf)[:, None].contiguous())[:, 0]


def uniforms(streams: Streams, n: int) -> Tensor:
    """(B, n) float64 on (0, 1), of 46 bits; a longer draw begins the same."""
    coarse, fine = (streams.uniform(n, 2).double() * 2**23).unbind(-1)
    return (coarse.floor() + fine * 2.0**-23) * 2.0**-23


@torch.no_grad()
def generate(
    model: NextToken,
    prompt: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    rng: int | Streams = 0,
) -> Tensor:
    """Continue each prompt by `max_new_tokens` tokens, feeding every token to the model once.

    Args:
        model: any next-token model.
        prompt: (B, P) int64 token ids, P >= 1, given to the model as they are.
        max_new_tokens: how many tokens to write; 0 is allowed.
        temperature: 0 takes the most probable token at each step and draws nothing.
        top_k, top_p, min_p: filters of this module, where given.
        rng: a seed, or one stream for each prompt; the i-th new token of a text takes its i-th number.

    Returns:
        (B, max_new_tokens) int64: the new tokens alone.

    Raises:
        DataError: an empty prompt.
        ConfigError: a negative temperature or number of tokens, or a filter out of its range.
    """
    if prompt.ndim != 2 or prompt.shape[1] == 0:
        raise DataError(
            f"A prompt of shape {tuple(prompt.shape)} cannot be continued: (B, P) with P of at least 1 is needed.",
            "Start an unprompted text with the begin-of-text token.",
        )
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens must not be negative ({max_new_tokens}).", "Ask for 0 or more.")
    if temperature < 0:
        raise ConfigError(f"temperature must not be negative ({temperature}).", "Use 0 for greedy decoding.")
    batch, length = prompt.shape
    u = uniforms(rng if isinstance(rng, Streams) else Streams(rng, batch, prompt.device), max_new_tokens)
    u = u.to(prompt.device)
    cache, fresh = model.new_cache(batch, length + max_new_tokens), prompt
    text = prompt.new_empty((batch, max_new_tokens))
    for i in range(max_new_tokens):
        logits = model.logits(fresh, cache)[:, -1]
        if temperature == 0:
            token = greedy(logits)
        else:
            token = pick(warp(logits, temperature, top_k, top_p, min_p), u[:, i])
        text[:, i] = token
        fresh = token[:, None]
    return text
