"""Answers in the shapes that OpenAI's clients read."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from protea.serving.http.bodies import Asked
from protea.serving.requests import Handle
from protea.serving.vocabulary import token_bytes
from protea.spaces.tokenizers import Tokenizer

FINISH = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "error", None: None}


class Shape(Protocol):
    """How one kind of call is answered."""

    whole: str  # what `object` says of a whole answer
    part: str  # and of a piece of one
    prefix: str

    def choice(self, handle: Handle, codec: Tokenizer) -> dict[str, Any]: ...
    def piece(self, text: str, first: bool) -> dict[str, Any]: ...


class Completion:
    """A text that goes on."""

    whole = part = "text_completion"
    prefix = "cmpl"

    def choice(self, handle: Handle, codec: Tokenizer) -> dict[str, Any]:
        if handle.request.log_probs is None:
            return {"text": handle.text, "logprobs": None}
        told = [(text, *p) for text, _, p in spoken(handle, codec)]
        return {"text": handle.text, "logprobs": {
            "tokens": [text for text, _, _ in told], "token_logprobs": [chosen for _, chosen, _ in told],
            "top_logprobs": [{readable(codec, i): nats for i, nats in top} for _, _, top in told],
        }}  # fmt: skip

    def piece(self, text: str, first: bool) -> dict[str, Any]:
        return {"text": text, "logprobs": None}


class Chat:
    """A message of the assistant."""

    whole, part, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, handle: Handle, codec: Tokenizer) -> dict[str, Any]:
        said = None
        if handle.request.log_probs is not None:
            said = {"content": [
                {"token": text, "bytes": list(raw), "logprob": p.chosen, "top_logprobs": [
                    {"token": readable(codec, i), "bytes": list(token_bytes(codec, [i])[0]), "logprob": nats}
                    for i, nats in p.top]}
                for text, raw, p in spoken(handle, codec)]}  # fmt: skip
        return {"message": {"role": "assistant", "content": handle.text}, "logprobs": said}

    def piece(self, text: str, first: bool) -> dict[str, Any]:
        return {"delta": ({"role": "assistant"} if first else {}) | {"content": text}, "logprobs": None}


def spoken(handle: Handle, codec: Tokenizer) -> list[tuple[str, bytes, Any]]:
    """(text, bytes, log-probabilities) of the new tokens, the one that only stops left out."""
    ids = handle.tokens[:-1] if handle.tokens and handle.tokens[-1] in handle.stop_ids else handle.tokens
    raw = token_bytes(codec, ids)
    return [(b.decode("utf-8", "replace"), b, p) for b, p in zip(raw, handle.log_probs, strict=False)]


def readable(codec: Tokenizer, token: int) -> str:
    """A token as text; bytes that are no character on their own as U+FFFD."""
    return token_bytes(codec, [token])[0].decode("utf-8", "replace")


def usage(handles: Sequence[Handle], n: int) -> dict[str, Any]:
    """Tokens read and written; each prompt counts once."""
    prompt, written = sum(len(h.request.prompt) for h in handles[::n]), sum(len(h.tokens) for h in handles)
    return {
        "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(h.cached for h in handles[::n])},
    }  # fmt: skip


class Answer:
    """One call's answer, whole or in pieces.

    Args:
        shape: of the kind of call.
        name: of the model.
        asked: what was asked.
    """

    def __init__(self, shape: Shape, name: str, asked: Asked) -> None:
        self.shape, self.asked = shape, asked
        self.head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}

    def whole(self, handles: Sequence[Handle], codec: Tokenizer) -> dict[str, Any]:
        choices = [
            {"index": i, "finish_reason": FINISH[h.finish], **self.shape.choice(h, codec)}
            for i, h in enumerate(handles)
        ]
        head = {"object": self.shape.whole, **self.head, "seed": self.asked.seed}
        return {**head, "choices": choices, "usage": usage(handles, self.asked.n)}

    def piece(self, index: int, text: str, first: bool) -> dict[str, Any]:
        choice = {"index": index, "finish_reason": None, **self.shape.piece(text, first)}
        return {"object": self.shape.part, **self.head, "seed": self.asked.seed, "choices": [choice]}

    def end(self, index: int, handle: Handle) -> dict[str, Any]:
        said = self.piece(index, "", False)
        said["choices"][0]["finish_reason"] = FINISH[handle.finish]
        return said

    def last(self, handles: Sequence[Handle]) -> dict[str, Any]:
        """What was used, after everything else."""
        return {"object": self.shape.part, **self.head, "choices": [], "usage": usage(handles, self.asked.n)}
