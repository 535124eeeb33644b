r"""Penalties: logits that depend on what the text has said already.

    repetition   l / r of positive and l r of negative logits of tokens seen    (Keskar et al. 2019, "CTRL")
    frequency    l - f c, with c how often the new text has the token           (OpenAI's API reference)
    presence     l - p where c > 0
    no repeat    -inf where the token would complete an n-gram the text has     (Paulus et al. 2018)

Ids that cannot follow (begin-of-text beyond the vocabulary, say) are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protea.errors import ConfigError


def _seen(text: Sequence[int], v: int) -> Tensor:
    ids = torch.as_tensor(text, dtype=torch.int64)
    return ids[(ids >= 0) & (ids < v)]


def repetition(logits: Tensor, text: Sequence[int], r: float) -> Tensor:
    """Logits (V,) with those of every token of `text` (prompt included) made less likely, r > 1; r in (0, 1) more.

    >>> repetition(torch.tensor([2.0, -2.0, 1.0]), [0, 1], 2.0).tolist()
    [1.0, -4.0, 1.0]
    """
    if not r > 0:
        raise ConfigError(f"repetition must be positive, not {r}.", "Use 1 for no penalty.")
    ids = _seen(text, logits.shape[-1]).to(logits.device)
    mine = logits[ids]
    return logits.scatter(0, ids, torch.where(mine < 0, mine * r, mine / r))


def frequency(logits: Tensor, text: Sequence[int], f: float, p: float = 0.0) -> Tensor:
    """Logits (V,) less f times how often each token is in `text`, and less p where it is at all.

    >>> frequency(torch.zeros(3), [0, 0, 1], 0.5, 1.0).tolist()
    [-2.0, -1.5, 0.0]
    """
    count = torch.bincount(_seen(text, logits.shape[-1]), minlength=logits.shape[-1]).to(logits)
    return logits - f * count - p * (count > 0)


def no_repeat(logits: Tensor, text: Sequence[int], n: int) -> Tensor:
    """Logits (V,) with -inf for tokens that would complete an n-gram of `text` again.

    >>> no_repeat(torch.zeros(3), [0, 1, 2, 0], 2).tolist()
    [0.0, -inf, 0.0]
    """
    if n < 1:
        raise ConfigError(f"no_repeat must be at least 1, not {n}.", "Leave it out to allow repetition.")
    ids = torch.as_tensor(text, dtype=torch.int64)
    if len(ids) < n:
        return logits
    grams = ids.unfold(0, n, 1)
    last = ids[len(ids) - n + 1 :]
    banned = grams[(grams[:, :-1] == last).all(1), -1]
    return logits.index_fill(0, _seen(banned.tolist(), logits.shape[-1]).to(logits.device), -torch.inf)
