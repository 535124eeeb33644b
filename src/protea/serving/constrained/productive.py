r"""Whether a grammar can come to an end: rules that no finite text meets are found before decoding.

A symbol is *productive* if it derives a finite text (Hopcroft and Ullman 1979, lemma 4.1): terminals are; a rule is if
all symbols of one of its alternatives are: the least fixed point over the rules. Where the start reaches a rule that is
not productive, a text that entered it could never end: `start: "a" start`.

Lark's form is read, in which llguidance wants its grammars (GBNF is translated first). Names that are defined nowhere,
and parts that llguidance has of its own (`%json {...}`, `<|token|>`), count as productive: it checks those itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# an alternative is a list of parts that all come; a part is a rule's name or a list of alternatives
Part = str | list["Alternative"]
Alternative = list[Part]

LEXEME = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|\#[^\n]*)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\\n])+/[a-z]*|<[^>\s]*>)
    |(?P<name>[!?]?[A-Za-z_][\w-]*)
    |(?P<sign>->|\.\.|[|:()\[\]{}*+?~,.=&%]|-?\d+)""",
    re.X,
)


def dead_rules(grammar: str) -> list[str]:
    """Rules (and "start" first, if it is one) that the start can reach and no finite text meets.

    An empty list, too, where the grammar is not of the form that is known: llguidance then has the last word.

    >>> dead_rules('start: "(" start ")" | DIGIT\\nDIGIT: /[0-9]/')
    []
    >>> dead_rules('start: "a" loop | "b"\\nloop: "x" loop')
    ['loop']
    """
    try:
        rules = _Reader(list(_lexemes(grammar))).rules()
    except ValueError:
        return []
    good: set[str] = set()
    while True:
        more = {name for name, body in rules.items() if name not in good and _meets(body, good, rules)}
        if not more:
            break
        good |= more
    reached, open_ = set[str](), ["start"] if "start" in rules else []
    while open_:
        name = open_.pop()
        if name not in reached:
            reached.add(name)
            open_ += [n for n in _names(rules[name]) if n in rules]
    return sorted(reached - good, key=lambda name: (name != "start", list(rules).index(name)))


def _meets(body: Sequence[Alternative], good: set[str], rules: dict[str, list[Alternative]]) -> bool:
    def part(p: Part) -> bool:
        return p in good or p not in rules if isinstance(p, str) else _meets(p, good, rules)

    return any(all(part(p) for p in alternative) for alternative in body)


def _names(body: Sequence[Alternative]) -> Iterator[str]:
    for alternative in body:
        for p in alternative:
            yield from (p,) if isinstance(p, str) else _names(p)


def _lexemes(grammar: str) -> Iterator[tuple[str, str]]:
    """(kind, text); directives of a whole line and the braces of llguidance's own parts are left out."""
    at = 0
    while at < len(grammar):
        if grammar[at] == "%":
            word = re.compile(r"%[a-z_]*\s*").match(grammar, at)
            assert word is not None
            at = word.end()
            if at < len(grammar) and grammar[at] == "{":
                at = _braces(grammar, at)
                yield "text", "%"
            else:
                end = grammar.find("\n", at)
                at = len(grammar) if end < 0 else end
            continue
        found = LEXEME.match(grammar, at)
        if found is None:
            raise ValueError(f"unknown sign at {at}")
        at = found.end()
        if found.lastgroup != "skip":
            yield str(found.lastgroup), found.group()


def _braces(text: str, at: int) -> int:
    """The place after the brace that closes the one at `at`; braces in strings do not count."""
    depth = 0
    for m in re.compile(r'"(?:\\.|[^"\\])*"|[{}]').finditer(text, at):
        depth += {"{": 1, "}": -1}.get(m.group(), 0)
        if depth == 0:
            return m.end()
    raise ValueError("a brace is not closed")


class _Reader:
    """Recursive descent over lexemes; `?`, `*`, `{0,n}` and `[...]` have an empty alternative."""

    def __init__(self, lexemes: list[tuple[str, str]]) -> None:
        self.lexemes, self.at = lexemes, 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        return self.lexemes[self.at + ahead] if self.at + ahead < len(self.lexemes) else ("end", "")

    def take(self, sign: str | None = None) -> str:
        kind, text = self.peek()
        if kind == "end" or (sign is not None and text != sign):
            raise ValueError(f"{sign} was expected, not {text!r}")
        self.at += 1
        return text

    def heads(self) -> bool:
        """Whether a rule begins here: name, perhaps [attributes] or .priority, and a colon."""
        if self.peek()[0] != "name":
            return False
        i = 1
        if self.peek(i)[1] == "[":
            while self.peek(i)[1] not in ("]", ""):
                i += 1
            i += 1
        if self.peek(i)[1] == ".":
            i += 2
        return self.peek(i)[1] == ":"

    def rules(self) -> dict[str, list[Alternative]]:
        out: dict[str, list[Alternative]] = {}
        while self.peek()[0] != "end":
            if self.peek() == ("text", "%"):  # settings of the whole grammar
                self.take()
                continue
            if not self.heads():
                raise ValueError(f"no rule begins with {self.peek()[1]!r}")
            name = self.take().lstrip("!?")
            while self.take() != ":":
                pass
            out[name] = self.body()
        return out

    def body(self) -> list[Alternative]:
        found = [self.alternative()]
        while self.peek()[1] == "|":
            self.take()
            found.append(self.alternative())
        return found

    def alternative(self) -> Alternative:
        parts: Alternative = []
        while True:
            kind, text = self.peek()
            if kind == "end" or text in ("|", ")", "]") or self.heads():
                return parts
            if text == "->":
                self.take()
                self.take()
            elif text in (".", "..", "&", "~", "=", ","):  # what terminals are made of beside texts and names
                self.take()
            else:
                p = self.part()
                parts.append(p if self.needed() else [[p], []])

    def part(self) -> Part:
        kind, text = self.peek()
        if text in ("(", "["):
            self.take()
            inner = self.body()
            self.take(")" if text == "(" else "]")
            return [*inner, []] if text == "[" else inner
        self.take()
        if kind == "name":
            return text.lstrip("!?")
        if kind == "text":
            return [[]]
        raise ValueError(f"{text!r} stands for no text")

    def needed(self) -> bool:
        """Read what says how often the last part comes; whether it must come at all."""
        sign = self.peek()[1]
        if sign in ("?", "*"):
            self.take()
            return False
        if sign == "+":
            self.take()
        elif sign == "{":
            self.take()
            first = self.peek()[1]
            while self.take() != "}":
                pass
            return first not in ("0", ",")
        elif sign == "~":
            self.take()
            first = self.take()
            if self.peek()[1] == "..":
                self.take()
                self.take()
            return first != "0"
        return True
