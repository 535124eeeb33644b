"""Constraints by llguidance (Moskal et al., Microsoft): an Earley parser over a lexer of derivatives of regular
expressions, which finds the tokens that may follow by a walk through a trie of the tokenizer's byte strings.

A text under a constraint is a beginning of one that meets it at every step, and it can stop only where it meets it: so
it meets it, unless it was cut at its most tokens.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protea.errors import ConfigError, MissingExtra
from protea.serving.constrained.constraint import Constraint, Matcher
from protea.serving.constrained.productive import dead_rules
from protea.serving.constrained.schema import finite
from protea.serving.vocabulary import token_bytes
from protea.spaces.tokenizers import Tokenizer


def _library() -> Any:
    try:
        import llguidance
    except Exception as error:
        raise MissingExtra("llguidance", "serve", error) from None
    return llguidance


class _Vocabulary:
    """What llguidance wants to know of a tokenizer; its end-of-text is an id of its own after all others."""

    def __init__(self, codec: Tokenizer) -> None:
        n = codec.vocabulary
        special = set(codec.special_ids().values())
        found = token_bytes(codec, range(n))
        self.tokens = [b"<|%d|>" % i if i in special or not piece else piece for i, piece in enumerate(found)]
        self.tokens.append(b"<|end|>")
        self.special_token_ids = [i for i, piece in enumerate(found) if i in special or not piece] + [n]
        self.eos_token_id, self.bos_token_id, self.codec = n, None, codec

    def __call__(self, text: bytes | str) -> list[int]:
        return self.codec.encode(text)


@lru_cache(maxsize=8)
def _compiled(digest: str, codec: Tokenizer) -> Any:
    llguidance = _library()
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(codec)))


class _Guided(Matcher):
    def __init__(self, matcher: Any, end: int) -> None:
        self.matcher, self.end = matcher, end

    def allowed(self, size: int) -> Tensor:
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        found = torch.zeros(size, dtype=torch.bool)
        n = min(size, self.end)  # ids past the tokenizer's stand for no text
        found[:n] = torch.from_numpy(bits[:n].astype(bool))
        return found

    def consume(self, token: int) -> None:
        if not self.matcher.consume_token(token):
            raise ConfigError(f"Token {token} breaks the constraint.", self.matcher.get_error())

    @property
    def accepting(self) -> bool:
        return bool(self.matcher.is_accepting())

    @property
    def finished(self) -> bool:
        if self.matcher.is_stopped():
            return True
        return self.accepting and not bool(self.allowed(self.end).any())


class _Guide(Constraint):
    """A constraint that llguidance compiles."""

    @abstractmethod
    def grammar(self) -> str:
        """The grammar in llguidance's form."""

    def start(self, codec: Tokenizer, stop_ids: frozenset[int]) -> Matcher:
        llguidance = _library()
        matcher = llguidance.LLMatcher(_compiled(codec.digest, codec), self.grammar(), log_level=0)
        if matcher.is_error():
            raise ConfigError(f"{self} cannot be met or read: {_first(matcher.get_error())}.", self.remedy)
        found = _Guided(matcher, codec.vocabulary)
        if not found.accepting and not bool(found.allowed(codec.vocabulary).any()):
            raise ConfigError(f"{self} cannot be met by the tokens of this model.", self.remedy)
        return found

    remedy = "Check it."


class Regex(_Guide):
    """The whole text matches a regular expression (Rust's syntax: no look-around, no back references).

    >>> from protea.spaces.tokenizers import Bytes
    >>> matcher = Regex("[ab]c").start(Bytes(), frozenset())
    >>> matcher.allowed(256).nonzero()[:, 0].tolist(), matcher.accepting
    ([97, 98], False)
    >>> matcher.consume(97); matcher.consume(99); matcher.accepting, matcher.finished
    (True, True)
    """

    remedy = "See docs/serving.md for what a regular expression may hold."

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def grammar(self) -> str:
        return _library().LLMatcher.grammar_from_regex(self.pattern)

    def __str__(self) -> str:
        return f"The regular expression {self.pattern!r}"


class JsonSchema(_Guide):
    """The text is JSON, without spaces to spare, that a schema accepts.

    Args:
        schema: as a mapping, as text, or True for any JSON object.

    Raises:
        ConfigError: it is not a schema.
    """

    remedy = "Mend the schema (json-schema.org, draft 2020-12)."

    def __init__(self, schema: Mapping[str, Any] | str | bool) -> None:
        import jsonschema

        try:
            value = json.loads(schema) if isinstance(schema, str) else schema
        except ValueError as error:
            raise ConfigError(f"The JSON schema is not JSON ({error}).", self.remedy) from None
        if value is True:
            value = {"type": "object"}
        if not isinstance(value, Mapping):
            raise ConfigError(f"A JSON schema is an object, not {value!r}.", self.remedy)
        try:
            jsonschema.validators.validator_for(value).check_schema(value)
        except jsonschema.SchemaError as error:
            raise ConfigError(f"The JSON schema is wrong: {error.message}.", self.remedy) from None
        self.schema = dict(value)
        if not finite(self.schema, self.schema):
            raise ConfigError(f"{self} cannot be met: no finite text would.", self.remedy)

    def grammar(self) -> str:
        options = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
        return _library().LLMatcher.grammar_from_json_schema(json.dumps(self.schema), defaults=options)

    def __str__(self) -> str:
        said = json.dumps(self.schema)
        return f"The JSON schema {said if len(said) < 120 else said[:117] + '...'}"


class Grammar(_Guide):
    """The text is a sentence of a context-free grammar.

    Args:
        text: rules in llama.cpp's GBNF (`root ::= "a" root | "b"`) or in Lark's form (`start: "a" start | "b"`).
            They may recur on the left.

    Raises:
        ConfigError: at the start of a text: the grammar cannot be read, or it has a rule that no finite text meets.
    """

    remedy = "See docs/serving.md for how grammars are written."

    def __init__(self, text: str) -> None:
        self.text = text

    def grammar(self) -> str:
        text = self.text
        if re.search(r"::=", text) is not None:
            _library()
            from llguidance.gbnf_to_lark import gbnf_to_lark

            try:
                text = gbnf_to_lark(text)
            except Exception as error:  # it raises bare Exception for an unknown rule
                raise ConfigError(f"The grammar cannot be read: {error}.", self.remedy) from None
        if dead := dead_rules(text):
            shown = ", ".join(dead[:5]) + (", ..." if len(dead) > 5 else "")
            raise ConfigError(
                f"The grammar cannot be met: no finite text is of the rule{'s' * (len(dead) > 1)} {shown}, which only "
                "lead back to themselves.",
                'Give each an alternative that ends: start: "a" start | "a".',
            )
        return _library().LLMatcher.grammar_from_lark(text)

    def __str__(self) -> str:
        return "The grammar"


def _first(message: str) -> str:
    lines = message.strip().split("\n")
    said = [line.strip() for line in lines if line.strip().startswith("error:")]
    return " ".join([lines[0].rstrip(".:"), *said])[:300]
