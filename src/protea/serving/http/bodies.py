"""What a client may ask, checked by schema: a field that would be ignored is an error that names it."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

import jsonschema

from protea.errors import ConfigError, DataError, nearest
from protea.models.autoregressive.language import LanguageModel
from protea.serving.constrained.constraint import Constraint
from protea.serving.requests import Request
from protea.serving.sampling import Sampling
from protea.serving.vocabulary import codec_of, encode_prompt

MOST = 64  # answers to one call
SHARED: dict[str, Any] = {
    "model": {"type": "string"}, "max_tokens": {"type": ["integer", "null"]}, "temperature": {"type": "number"},
    "top_p": {"type": ["number", "null"]}, "top_k": {"type": ["integer", "null"]},
    "min_p": {"type": ["number", "null"]}, "typical_p": {"type": ["number", "null"]},
    "repetition_penalty": {"type": "number"}, "frequency_penalty": {"type": "number"},
    "presence_penalty": {"type": "number"}, "n": {"type": "integer", "minimum": 1, "maximum": MOST},
    "stop": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}, "maxItems": 16}]},
    "seed": {"type": ["integer", "null"]}, "stream": {"type": "boolean"},
    "stream_options": {
        "type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}, "additionalProperties": False,
    },
    "user": {"type": "string"}, "regex": {"type": "string"}, "grammar": {"type": "string"},
    "response_format": {"type": "object", "required": ["type"], "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"}}},
}  # fmt: skip
IDS = {"type": "array", "items": {"type": "integer"}}
COMPLETION = {
    "prompt": {"anyOf": [
        {"type": "string"}, IDS, {"type": "array", "items": {"type": "string"}}, {"type": "array", "items": IDS}]},
    "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
}  # fmt: skip
CHAT = {
    "messages": {"type": "array", "minItems": 1, "items": {
        "type": "object", "required": ["role", "content"], "additionalProperties": False,
        "properties": {k: {"type": "string"} for k in ("role", "content", "name")}}},
    "max_completion_tokens": {"type": ["integer", "null"]}, "logprobs": {"type": ["boolean", "null"]},
    "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A call: its requests (prompts x n, in that order), and how to answer."""

    requests: list[Request]
    n: int
    seed: int
    stream: bool
    usage: bool


def parse(raw: bytes) -> Any:
    """JSON of a body.

    Raises:
        DataError: it is not UTF-8, or not JSON (NaN is not).
    """
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_not_json)
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"The body is not JSON in UTF-8 ({error}).", "Send a JSON object.") from None


def completion(body: Any, model: LanguageModel) -> Asked:
    """The requests of a call of /v1/completions."""
    _check(body, COMPLETION, "prompt")
    given = body["prompt"]
    several = isinstance(given, list) and bool(given) and isinstance(given[0], (str, list))
    prompts = [encode_prompt(model, p) if isinstance(p, str) else p for p in (given if several else [given])]
    return _asked(body, prompts, body.get("logprobs"))


def chat(body: Any, model: LanguageModel) -> Asked:
    """The requests of a call of /v1/chat/completions.

    Raises:
        ConfigError: the model has no chat template.
    """
    _check(body, CHAT, "messages")
    template = model.space.chat if model.space.chat and model.space.chat.template else None
    codec = codec_of(model)
    if template is None or codec is None:
        raise ConfigError("The model has no chat template.", "Post its text to /v1/completions.")
    ids = template.encode(codec, body["messages"], add_generation_prompt=True)
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise ConfigError("top_logprobs without logprobs.", "Set logprobs to true.")
    return _asked(body, [ids], (body.get("top_logprobs") or 0) if body.get("logprobs") else None)


def _asked(body: dict[str, Any], prompts: list[list[int]], log_probs: int | None) -> Asked:
    n = body.get("n", 1)
    if n * len(prompts) > MOST:
        raise ConfigError(f"{len(prompts)} prompts of {n} answers are too many.", f"Ask for {MOST} answers at most.")
    seed = body["seed"] if body.get("seed") is not None else secrets.randbits(31)
    top_p = body.get("top_p")
    sampling = Sampling(
        body.get("temperature", 1.0), body.get("top_k"), None if top_p == 1 else top_p, body.get("min_p"),
        body.get("typical_p"), body.get("repetition_penalty", 1.0), body.get("frequency_penalty", 0.0),
        body.get("presence_penalty", 0.0),
    )  # fmt: skip
    most = next((body[k] for k in ("max_completion_tokens", "max_tokens") if body.get(k) is not None), None)
    stop, constraint = body.get("stop") or (), _constraint(body)
    requests = [
        Request(prompt, most, sampling, seed, i, stop, log_probs=log_probs, constraint=constraint)
        for prompt in prompts
        for i in range(n)
    ]
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    return Asked(requests, n, seed, body.get("stream", False), usage)


def _constraint(body: dict[str, Any]) -> Constraint | None:
    from protea.serving.constrained.guidance import Grammar, JsonSchema, Regex

    shape = body.get("response_format", {"type": "text"})
    given = [k for k in ("regex", "grammar") if k in body] + ["response_format"] * (shape["type"] != "text")
    if len(given) > 1:
        raise ConfigError(f"An answer cannot follow {' and '.join(given)} at once.", "Give one of them.")
    if "regex" in body:
        return Regex(body["regex"])
    if "grammar" in body:
        return Grammar(body["grammar"])
    if shape["type"] == "json_schema":
        if "schema" not in shape.get("json_schema", {}):
            raise ConfigError("response_format.json_schema has no schema.", "Put the schema under json_schema.schema.")
        return JsonSchema(shape["json_schema"]["schema"])
    return JsonSchema(True) if shape["type"] == "json_object" else None


def _check(body: Any, own: dict[str, Any], needed: str) -> None:
    known = SHARED | own
    if not isinstance(body, dict):
        raise DataError(f"The body is {type(body).__name__}, not an object.", "Send a JSON object.")
    for name in body.keys() - known.keys():
        raise ConfigError(f"There is no field {name!r}.", nearest(name, known))
    schema = {"type": "object", "properties": known, "required": [needed]}
    wrong = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(body))
    if wrong is not None:
        where = ".".join(str(p) for p in wrong.absolute_path)
        raise DataError(f"{where + ': ' if where else ''}{wrong.message[:300]}.", "Mend the request.")


def _not_json(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
