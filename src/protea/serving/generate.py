"""`protea.generate`: prompts in, new tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from protea.core import NextToken
from protea.errors import ConfigError, DataError
from protea.serving.engine import Engine
from protea.serving.requests import Request
from protea.serving.sampling import Sampling


def generate(
    model: NextToken, ids: Tensor | Sequence[Sequence[int]], max_new_tokens: int = 64, temperature: float = 0.0, *,
    seed: int = 0, stop_ids: Sequence[int] = (), engine: Engine | None = None, **sampling: Any,
) -> Tensor:  # fmt: skip
    """Continue prompts.

    Args:
        model: any next-token model.
        ids: (B, T) int64 prompts, or a list of lists of any lengths; begin-of-text where the model wants it.
        max_new_tokens: how many tokens to write; 0 is allowed.
        temperature: 0 for greedy.
        seed: row i takes the numbers of sample i of the seed; its tokens do not depend on the other rows.
        stop_ids: tokens that end a row; what would follow is -1.
        engine: to use; None makes one.
        sampling: top_k, top_p, min_p, typical, repetition, frequency, presence, no_repeat: see `Sampling`.

    Returns:
        (B, max_new_tokens) int64: the new tokens alone.

    Raises:
        DataError: an empty prompt, an unknown token id, or more than the context holds.
        ConfigError: a negative temperature or number of tokens, or a setting out of its range.

    >>> from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    >>> from protea.spaces import Tokens
    >>> model = language_model("llama", Tokens(32), ARCHITECTURES["llama"].scaled(1, 16, 32))
    >>> generate(model, torch.tensor([[256, 72, 105]]), max_new_tokens=4).shape
    torch.Size([1, 4])
    """
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens must not be negative ({max_new_tokens}).", "Ask for 0 or more.")
    if isinstance(ids, Tensor) and (ids.ndim != 2 or ids.is_floating_point()):
        raise DataError(f"Prompts of shape {tuple(ids.shape)} of {ids.dtype} are no (B, T) ids.", "Give int64 (B, T).")
    try:
        chain = Sampling(temperature, **sampling)
    except TypeError:
        raise ConfigError(f"There is no such setting among {', '.join(sampling)}.", "See `Sampling`.") from None
    rows = ids.tolist() if isinstance(ids, Tensor) else [list(row) for row in ids]
    longest = max((len(row) for row in rows), default=1) + max_new_tokens
    if engine is None:
        context = getattr(model, "context", longest)
        engine = Engine(model, slots=max(1, min(8, len(rows))), longest=min(context, longest))
    handles = [
        engine.submit(Request(row, max_new_tokens, chain, seed, sample=i, stop_ids=tuple(stop_ids)))
        for i, row in enumerate(rows)
    ]
    engine.run(handles)
    for handle in handles:
        if handle.error is not None:
            raise handle.error
    out = torch.full((len(rows), max_new_tokens), -1, dtype=torch.int64)
    for i, handle in enumerate(handles):
        out[i, : len(handle.tokens)] = torch.tensor(handle.tokens, dtype=torch.int64)
    return out.to(ids.device) if isinstance(ids, Tensor) else out
