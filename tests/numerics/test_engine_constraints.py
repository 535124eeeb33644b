"""Constrained texts meet their constraint or say that they were cut; what cannot be met is refused before decoding."""

from __future__ import annotations

import json
import re

import pytest
import torch

from protea.errors import ConfigError, ProteaError
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.serving.constrained import Grammar, JsonSchema, Regex
from protea.serving.constrained.productive import dead_rules
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


def accepts(grammar: str, text: str) -> bool:
    matcher = Grammar(grammar).start(Tokens(4).codec, frozenset())
    for byte in text.encode():
        if not matcher.allowed(256)[byte]:
            return False
        matcher.consume(byte)
    return matcher.accepting


@pytest.mark.parametrize(
    ("grammar", "inside", "outside"),
    [
        ('root ::= root "+" num | num\nnum ::= [0-9]', ["1", "1+2+3"], ["+1", "1+"]),
        ('start: start start | "a"', ["a", "aaa"], ["", "b"]),
        ('start: x start "a" | "b"\nx: "c"?', ["b", "baa", "cbaa"], ["ac", "bac"]),
    ],
)
def test_grammars_may_recur_on_the_left(grammar, inside, outside):
    """Also behind a part that may be empty: Earley's parser does not mind."""
    assert all(accepts(grammar, text) for text in inside) and not any(accepts(grammar, text) for text in outside)


def shortest(rules: dict[str, list[list[str]]], depth: int) -> set[str]:
    """Names that derive a text by a tree of at most this depth: the definition, by trying."""
    if depth == 0:
        return set()
    below = shortest(rules, depth - 1)
    return {n for n, body in rules.items() if any(all(s in below or s not in rules for s in alt) for alt in body)}


def test_dead_rules_are_those_without_a_finite_tree(evidence):
    """Against trees of at most as many levels as there are rules, which suffice; 300 random grammars."""
    u = torch.Generator().manual_seed(0)

    def draw(n: int) -> int:
        return int(torch.randint(n, (1,), generator=u))

    wrong, dead = 0, 0
    for _ in range(300):
        names = ["start", *"abcd"][: 2 + draw(4)]
        rules = {n: [[[*names, '"x"'][draw(len(names) + 1)] for _ in range(1 + draw(3))] for _ in range(1 + draw(2))]
                 for n in names}  # fmt: skip
        text = "\n".join(f"{n}: " + " | ".join(" ".join(alt) for alt in body) for n, body in rules.items())
        reached, todo = set(), ["start"]
        while todo:
            if (name := todo.pop()) not in reached:
                reached.add(name)
                todo += [s for alt in rules[name] for s in alt if s in rules]
        want = reached - shortest(rules, len(rules))
        wrong += set(dead_rules(text)) != want
        dead += bool(want)
    assert 50 < dead < 250
    evidence(id="AR-05", system="Constrained decoding", claim=f"endless rules, 300 grammars ({dead} have some)",
             reference="derivation trees by depth", reached=wrong, tolerance=0, unit="grammars")  # fmt: skip


@pytest.mark.parametrize(
    "grammar",
    [
        'start: ("a" | start)+ end?\nend: "x" | end',
        'start: "a" [end]\nend: "b"',
        'start: end{0,3} "a"\nend: "b"~2..4',
        'start[capture]: "a" -> x | %json {"type": "object", "properties": {"}": {}}} | <|end|>\n%ignore /\\s+/',
        'WORD.2: /[a-z]+/i "\\""\n?start: _list{WORD}',
        "what is this?",
    ],
)
def test_what_may_end_or_is_not_known_is_left_to_the_library(grammar):
    assert dead_rules(grammar) == []


@pytest.mark.parametrize("part", ["end?", "end*", "[end]", "end{0,2}", '(end | "b")', "end~1..2"])
def test_who_may_be_trapped_is_told(part):
    """Where a dead rule may be left out, a text that entered it could still never end."""
    assert dead_rules(f'start: "a" {part}\nend: "x" end') in (["end"], ["start", "end"])


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
        (lambda: Grammar('root ::= "a" root'), "no finite text is of the rule start"),
        (lambda: Grammar('root ::= "a"? root'), "no finite text"),
        (lambda: Grammar("start: start"), "no finite text"),
        (lambda: Grammar('start: a | "b"\na: "(" b+ ")"\nb: a "," | "x" b'), "of the rules a, b, which"),
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
