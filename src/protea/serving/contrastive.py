r"""Contrastive search (Su et al. 2022, "A contrastive framework for neural text generation").

    x_t = argmax over the k most probable v of  (1 - alpha) p(v | x_<t)  -  alpha max_j cos(h_v, h_{x_j}),

h the normalised stream of the last layer: confident, and unlike what the text has said. alpha = 0 is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protea.errors import ConfigError
from protea.serving.beam import begin
from protea.serving.compute import Job
from protea.serving.engine import Engine


@torch.inference_mode()
def contrastive_search(
    engine: Engine, prompt: Sequence[int], max_new_tokens: int, k: int = 4, alpha: float = 0.6, *,
    stop_ids: Sequence[int] | None = None,
) -> list[int]:  # fmt: skip
    """New tokens, up to the first stop token (which is part of them).

    Args:
        engine: its model and memory are used; it must have nothing else to do.
        prompt: token ids.
        max_new_tokens: at most so many.
        k: candidates of a step.
        alpha: weight of the degeneration penalty, in [0, 1].
        stop_ids: None for the model's.

    Raises:
        ConfigError: settings out of range, a busy engine, or a model without hidden streams.
    """
    if k < 1 or not 0 <= alpha <= 1 or max_new_tokens < 0:
        raise ConfigError(
            f"k {k}, alpha {alpha} and {max_new_tokens} tokens make no search.", "k >= 1, alpha in [0, 1]."
        )
    stops = engine.stop_ids if stop_ids is None else frozenset(stop_ids)
    text, said = begin(engine, prompt, max_new_tokens, k + 1, wanted=True)
    if said.hidden is None:
        raise ConfigError(f"{type(engine.model).__name__} shows no hidden streams.", "Use another way of decoding.")
    logits, seen = said.logits[-1], _unit(said.hidden)
    tokens: list[int] = []
    while len(tokens) < max_new_tokens:
        p, ids = logits.softmax(-1).topk(min(k, len(logits)))
        copies = [engine.blocks.fork(text) for _ in ids]
        tried = engine.compute([Job(copy, [i], 1) for copy, i in zip(copies, ids.tolist(), strict=True)])
        h = _unit(torch.cat([t.hidden for t in tried if t.hidden is not None]))
        best = int(((1 - alpha) * p - alpha * (h @ seen.T).amax(-1)).argmax())
        for i, copy in enumerate(copies):
            engine.blocks.release(text if i == best else copy)
        text, logits, seen = copies[best], tried[best].logits[-1], torch.cat((seen, h[best : best + 1]))
        tokens.append(int(ids[best]))
        if tokens[-1] in stops:
            break
    engine.blocks.release(text)
    return tokens


def _unit(h: Tensor) -> Tensor:
    return h / h.norm(dim=-1, keepdim=True).clamp_min(1e-12)
