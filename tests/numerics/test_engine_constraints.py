"""Constrained texts meet their constraint or say that they were cut; what cannot be met is refused before decoding."""

from __future__ import annotations

import json
import re

import pytest
import torch

from protea.errors import ConfigError, ProteaError
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.serving.constrained import Grammar, JsonSchema, Regex
from protea.serving.drafters import Lookup
from protea.serving.engine import Engine
from protea.serving.requests import Request
from protea.serving.sampling import Sampling
from protea.spaces import Tokens

pytest.importorskip("llguidance")
NODE = {"type": "object", "properties": {"v": {"type": "boolean"}, "next": {"$ref": "#/$defs/node"}}}
HALVES = {"type": "number", "multipleOf": 0.5, "minimum": -1, "maximum": 1}
PERSON = {
    "name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
    "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
}  # fmt: skip
SCHEMAS = [
    {"type": "object", "properties": PERSON, "required": ["name", "age"], "additionalProperties": False},
    {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"const": [1, "x"]}]},
    {"type": "array", "items": HALVES, "minItems": 1, "maxItems": 2},
    {"$defs": {"node": NODE | {"required": ["v"], "additionalProperties": False}}, "$ref": "#/$defs/node"},
]


def subwords():
    tokenizers = pytest.importorskip("tokenizers")
    from protea.spaces.tokenizers import Subword

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(['{"name":"ab","age":12,"tags":["a","b"]}', "true false null"] * 5, trainer)
    return Subword(backend.to_str())


def model(tokenizer="bytes"):
    torch.manual_seed(0)
    space = Tokens(12, tokenizer=tokenizer)
    return language_model("llama", space, ARCHITECTURES["llama"].scaled(1, 32, 160)).eval().requires_grad_(False)


@pytest.mark.parametrize("tokenizer", ["bytes", "subwords"])
def test_json_always_validates_or_is_stated_cut(tokenizer, evidence):
    jsonschema = pytest.importorskip("jsonschema")
    engine = Engine(model("bytes" if tokenizer == "bytes" else subwords()))
    begin = engine.model.begin
    handles = [
        (schema, engine.submit(Request([begin], 120, Sampling(t), seed, constraint=JsonSchema(schema))))
        for schema in SCHEMAS
        for t, seed in ((0.0, 0), (1.0, 1), (1.5, 2), (1.0, 3))
    ]
    engine.run()
    invalid, whole = 0, 0
    for schema, handle in handles:
        assert handle.finish in ("stop", "length")
        if handle.finish == "stop":
            whole += 1
            try:
                jsonschema.validate(json.loads(handle.text), schema)
            except (ValueError, jsonschema.ValidationError):
                invalid += 1
        else:
            assert len(handle.tokens) == 120
    assert whole > len(handles) / 2
    evidence(id="AR-05", system="Constrained decoding", claim=f"{whole} JSON texts of an untrained model, {tokenizer}",
             reference="jsonschema", reached=invalid, tolerance=0, unit="invalid texts")  # fmt: skip


def test_regular_expressions_match_whole_texts():
    engine = Engine(model())
    for pattern in (r"(ab|c)+d{2,4}", r"[0-9]{4}-[0-9]{2}", r"[öäü]+!", r"x?"):
        for seed in range(3):
            handle = engine.submit(Request([256], 60, Sampling(1.0), seed, constraint=Regex(pattern)))
            engine.run()
            assert handle.finish == "length" or re.fullmatch(pattern, handle.text), (pattern, handle.text)


@pytest.mark.parametrize(
    "text",
    ['root ::= "(" root ")" | digit\ndigit ::= [0-9]', 'start: "(" start ")" | DIGIT\nDIGIT: /[0-9]/'],
)
def test_grammars_are_followed(text):
    engine = Engine(model())
    whole = 0
    for seed in range(6):
        handle = engine.submit(Request([256], 40, Sampling(1.0), seed, constraint=Grammar(text)))
        engine.run()
        assert re.fullmatch(r"\(*(\d\)*)?", handle.text)
        if handle.finish == "stop":
            whole += 1
            depth = handle.text.count("(")
            assert handle.text == "(" * depth + handle.text[depth] + ")" * depth
    assert whole


def test_stop_tokens_only_where_the_text_may_end():
    engine = Engine(model())
    stop = ord("c")
    for seed in range(8):
        asked = Request([256], 30, Sampling(1.0), seed, stop_ids=[stop], constraint=Regex("a{3}b*"))
        handle = engine.submit(asked)
        engine.run()
        said = bytes(handle.tokens)
        assert re.fullmatch(rb"aaab*c", said) or (handle.finish == "length" and re.fullmatch(rb"aaab*", said))


def test_constraints_and_drafts_go_together():
    net = model()
    constraint = Regex("(hello ){3,5}world")
    plain, fast = Engine(net), Engine(net, drafter=Lookup(most=6))
    texts = []
    for engine in (plain, fast):
        handle = engine.submit(Request([256], 60, constraint=constraint))
        engine.run()
        texts.append(handle.text)
    assert texts[0] == texts[1] and re.fullmatch("(hello ){3,5}world", texts[0]) and handle.accepted > 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: JsonSchema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum .5. is greater"),
        (lambda: JsonSchema({"allOf": [{"type": "string"}, {"type": "integer"}]}), "incompatible types"),
        (lambda: JsonSchema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "finite"),
        (lambda: JsonSchema({"type": "strng"}), "strng"),
        (lambda: JsonSchema("{"), "not JSON"),
        (lambda: JsonSchema("[]"), "object"),
        (lambda: Regex("(unclosed"), "unclosed group"),
        (lambda: Regex("a(?=b)"), "look-around"),
        (lambda: Regex(r"\u{1F642}{0}[a&&b]"), "cannot be met"),
        (lambda: Grammar('root ::= "a" nope'), "nope"),
        (lambda: Grammar("start: nope"), "nope"),
    ],
)
def test_what_cannot_be_met_is_refused_before_decoding(make, match):
    engine = Engine(model())
    with pytest.raises(ConfigError, match=match):
        engine.submit(Request([256], 5, constraint=make()))
    assert not engine.busy


def test_ids_without_text_cannot_be_constrained():
    space = Tokens(12, vocabulary=9, tokenizer="ids")
    net = language_model("llama", space, ARCHITECTURES["llama"].scaled(1, 16, 32))
    with pytest.raises(ProteaError, match="no text"):
        Engine(net).submit(Request([9], 5, constraint=Regex("a")))
