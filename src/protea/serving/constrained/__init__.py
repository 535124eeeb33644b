"""Constrained decoding: texts that match a regular expression, a JSON schema or a grammar, by construction."""

from protea.serving.constrained.constraint import Constraint, Matcher
from protea.serving.constrained.guidance import Grammar, JsonSchema, Regex

__all__ = ["Constraint", "Grammar", "JsonSchema", "Matcher", "Regex"]
