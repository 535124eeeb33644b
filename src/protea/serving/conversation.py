"""A conversation with one model: what was said so far, and the next answer, piece by piece.

A model with a chat template gets messages in its template. One without, trained on plain text, continues what has been
written: what the user types is appended to the text, and the model goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from protea.errors import DataError, ProteaError
from protea.models.autoregressive.language import LanguageModel
from protea.serving.engine import Engine
from protea.serving.requests import Handle, Request


class Conversation:
    """Turns of a user and a model. The prompt cache of the engine keeps what earlier turns have computed.

    Args:
        engine: of the model.
        settings: of every answer; its prompt is replaced, and the seed grows by one a turn.
        system: instructions at the start, for models with a template.

    >>> from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    >>> from protea.spaces import Tokens
    >>> model = language_model("llama", Tokens(64), ARCHITECTURES["llama"].scaled(1, 16, 64))
    >>> talk = Conversation(Engine(model), Request([0], max_new_tokens=5))
    >>> answer = "".join(talk.say("to be"))
    >>> talk.handle.finish, len(talk.handle.tokens)
    ('length', 5)
    """

    def __init__(self, engine: Engine, settings: Request, system: str | None = None) -> None:
        model = engine.model
        if not isinstance(model, LanguageModel) or engine.codec is None:
            raise DataError("The model's tokens stand for no text: nobody can talk to it.", "Use `protea sample`.")
        self.engine, self.model, self.settings, self.system = engine, model, settings, system
        self.codec = engine.codec
        self.chat = model.space.chat if model.space.chat and model.space.chat.template else None
        if system is not None and self.chat is None:
            raise DataError("The model has no chat template: it knows no instructions.", "Leave --system out.")
        self.turn, self.handle = 0, None
        self.reset()

    handle: Handle | None

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.text = ""

    def say(self, said: str) -> Iterator[str]:
        """Pieces of the answer to what the user says.

        Raises:
            DataError: the conversation is longer than the context, or the template refuses it. What was said is
                forgotten then, and the conversation stands as before.
        """
        messages, text = [*self.messages, {"role": "user", "content": said}], self.text + said
        if self.chat is not None:
            ids = self.chat.encode(self.codec, messages, add_generation_prompt=True)
        else:
            ids = [self.model.begin, *self.codec.encode(text)]
        room = self.engine.longest - len(ids)
        if room < 1:
            raise DataError(
                f"The conversation of {len(ids)} tokens does not fit in the model's context of {self.engine.longest}.",
                "Say less, or forget what was said (/reset).",
            )
        wanted = self.settings.max_new_tokens
        new = room if wanted is None else min(wanted, room)
        handle = self.engine.submit(
            replace(self.settings, prompt=ids, max_new_tokens=new, seed=self.settings.seed + self.turn)
        )
        self.handle = handle
        try:
            yield from self.engine.stream(handle)
        except GeneratorExit:
            handle.cancel()
            self.engine.run([handle])
            raise
        finally:
            self.turn += 1
            self.messages = [*messages, {"role": "assistant", "content": handle.text}]
            self.text = text + handle.text
        if isinstance(handle.error, ProteaError):
            raise handle.error
