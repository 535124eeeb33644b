"""Our language models under lm-evaluation-harness (Gao et al. 2021): `lm_eval.simple_evaluate(model=harness(run))`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from protea.errors import MissingExtra
from protea.models.autoregressive.language import LanguageModel
from protea.samplers.tokens import generate


@torch.no_grad()
def continuation_nats(model: LanguageModel, prefix: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """log p(continuation | prefix) in nats, and whether greedy decoding would have written it.

    A text longer than the model's context loses the oldest tokens of its prefix.

    Args:
        model: any language model.
        prefix: ids before it, begin-of-text included; at least one.
        continuation: ids that are scored, at least one and at most as many as the context holds.
    """
    text = torch.tensor([[*prefix, *continuation][-(model.context + 1) :]])
    logits = model.logits(text[:, :-1])[0, -len(continuation) :].double()
    said = torch.tensor(continuation)
    nats = logits.log_softmax(-1).gather(1, said[:, None]).sum()
    return float(nats), bool((logits.argmax(-1) == said).all())


def windows(ids: Sequence[int], begin: int, context: int) -> Iterator[tuple[list[int], list[int]]]:
    """A long text as (prefix, continuation) pairs that score every token once, each with half a context before it.

    >>> list(windows([1, 2, 3, 4, 5], 0, 4))
    [([0], [1, 2, 3, 4]), ([3, 4], [5])]
    """
    first = list(ids[:context])
    yield [begin], first
    step = max(1, context // 2)
    for i in range(len(first), len(ids), step):
        yield list(ids[max(0, i - (context - step)) : i]), list(ids[i : i + step])


def harness(model: LanguageModel) -> Any:
    """The model as an `lm_eval` LM: log-likelihoods of continuations and of whole texts, and greedy generation.

    Raises:
        MissingExtra: `lm-eval` is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except Exception as error:
        raise MissingExtra("lm-eval", "lm-eval", error) from None
    codec, begin = model.space.codec, model.begin

    class Harness(LM):
        """Texts are tokenised by the model's own tokenizer, after its begin-of-text."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            found = []
            for context, continuation in (r.args for r in requests):
                prefix, whole = codec.encode(context), codec.encode(context + continuation)
                cut = len(prefix) if whole[: len(prefix)] == prefix else len(whole) - len(codec.encode(continuation))
                found.append(continuation_nats(model, [begin, *whole[:cut]], whole[cut:]))
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            texts = [codec.encode(r.args[0]) for r in requests]
            return [sum(continuation_nats(model, *w)[0] for w in windows(ids, begin, model.context)) for ids in texts]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [self._write(context, dict(options)) for context, options in (r.args for r in requests)]

        def _write(self, context: str, options: dict[str, Any]) -> str:
            until = options.get("until") or []
            new = min(int(options.get("max_gen_toks", 128)), model.context // 2)
            ids = [begin, *codec.encode(context)][-(model.context - new) :]
            t = float(options.get("temperature", 0.0)) if options.get("do_sample", True) else 0.0
            said = generate(model, torch.tensor([ids]), new, temperature=t)[0].tolist()
            text = codec.decode([i for i in said if i < codec.vocabulary])
            for stop in [until] if isinstance(until, str) else until:
                text = text.partition(stop)[0] if stop else text
            return text

    return Harness()
