"""Chat: how messages become the text a model was taught, and at which tokens its answer ends.

A *template* is a Jinja program in the dialect of `transformers` (docs/tokenization.md). Template, special tokens and
stop ids belong to the model: served with others, it talks nonsense. Templates come from strangers, so they run in a
sandbox with bounds on steps and sizes (`chat_sandbox.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protea.errors import DataError
from protea.spaces.tokenizers import Tokenizer

MARK = "\ue9f1"  # private use: breaks what looks like a special token inside a message


@dataclass(frozen=True)
class Chat:
    """How a model chats.

    Args:
        template: Jinja; None for a model that has stop ids but no template.
        stop: ids that end an answer.
        variables: strings the template sees beside the messages, such as bos_token and eos_token.

    >>> chat = Chat("{% for m in messages %}<{{ m.role }}>{{ m.content }}\\n{% endfor %}")
    >>> chat.render([{"role": "user", "content": "Hello"}])
    '<user>Hello\\n'
    """

    template: str | None = None
    stop: tuple[int, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(int(i) for i in self.stop))
        object.__setattr__(self, "variables", tuple((str(k), str(v)) for k, v in self.variables))

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False, **variables: Any,
    ) -> str:  # fmt: skip
        """The text of a conversation.

        Args:
            messages: mappings with "role", "content" and whatever else the template reads.
            tools: JSON schemas of functions the model may call.
            add_generation_prompt: end with what opens the model's answer.
            variables: further names for the template.

        Raises:
            DataError: no template; one that is not Jinja, refuses the messages, tries to leave its sandbox, or
                exceeds its bounds; or messages of another form.
        """
        if self.template is None:
            raise DataError("The model has no chat template.", "Give one, or complete text instead of chatting.")
        if isinstance(messages, (str, bytes)) or not all(isinstance(m, Mapping) for m in messages):
            raise DataError(f"A conversation is a list of mappings, not {messages!r:.60}.", 'Use {"role", "content"}.')
        from protea.spaces.chat_sandbox import plain, render

        seen = {**dict(self.variables), **variables}
        seen |= {"messages": [dict(m) for m in messages], "tools": tools, "documents": variables.get("documents")}
        return render(self.template, {**plain(seen), "add_generation_prompt": add_generation_prompt})

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The ids of a conversation; takes the options of `render`.

        Only the template writes special tokens. What looks like one inside a message, a tool or a variable is text,
        so that a user cannot close his turn and speak as the system.
        """
        names = [name for name in tokenizer.specials.names if name]
        own = dict(self.variables)
        known = {k: v for k, v in options.items() if own.get(k) != v}
        marked = {k: _mark(v, names) for k, v in known.items()}
        text = self.render(_mark(list(messages), names), **{**options, **marked})
        if MARK not in text:
            return tokenizer.encode_marked(text)
        ids: list[int] = []
        for piece, special in _pieces(text, names):
            ids += [tokenizer.id(piece)] if special else tokenizer.encode(piece.replace(MARK, ""))
        return ids

    def to_json(self) -> dict[str, Any]:
        return {"template": self.template, "stop": list(self.stop), "variables": dict(self.variables)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Chat:
        """Rebuild what `to_json` wrote."""
        return cls(value["template"], tuple(value["stop"]), tuple(dict(value["variables"]).items()))


def _mark(value: Any, names: Sequence[str]) -> Any:
    """The value with a mark after the first character of everything that reads like a special token."""
    if isinstance(value, str):
        value = value.replace(MARK, "")
        for name in names:
            value = value.replace(name, name[0] + MARK + name[1:])
        return value
    if isinstance(value, Mapping):
        return {k: _mark(v, names) for k, v in value.items()}
    return [_mark(v, names) for v in value] if isinstance(value, (list, tuple)) else value


def _pieces(text: str, names: Sequence[str]) -> list[tuple[str, bool]]:
    """Text cut at special tokens, the longest first: (piece, whether it is one)."""
    import re

    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return [(piece, i % 2 == 1) for i, piece in enumerate(re.split(f"({pattern})", text)) if piece]
