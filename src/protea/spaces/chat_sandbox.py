"""The sandbox in which a chat template runs: no way out, bounded steps, bounded sizes.

Templates are programs from strangers. Jinja's immutable sandbox keeps them from Python's internals; it does not keep
them from running for ever or filling the memory. So every turn of a loop and every call of a macro is counted, and
whatever can make a long string out of short ones (+, *, ~, %, padding, joining, replacing) is measured beforehand.

What templates may use is what `transformers` gives them: loop controls, `{% generation %}`, `raise_exception`,
`strftime_now`, and a `tojson` that does not escape HTML.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from threading import local
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from protea.errors import DataError

SIZE = 2_000_000  # characters of any text made on the way, and items of any list
STEPS = 200_000  # turns of loops and calls of macros
NARROW = (
    "center",
    "ljust",
    "rjust",
    "zfill",
    "expandtabs",
    "indent",
    "wordwrap",
    "truncate",
    "round",
    "batch",
    "slice",
)


class TooMuch(SecurityError):
    """A bound was exceeded."""


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text of a template.

    Raises:
        DataError: no Jinja, an error that the template raises, an escape, or too many steps or characters.

    >>> render("{{ a }}{{ ().__class__.__base__ }}", {"a": 1})
    Traceback (most recent call last):
    protea.errors.DataError: The chat template tried to leave its sandbox (access to attribute '__class__' of 'tuple' \
object is unsafe.). Do not use it.
    """
    try:
        environment, compiled = _compile(template)
        environment.count.steps = 0
        parts, size = [], 0
        for part in compiled.generate(dict(variables)):
            size += len(part)
            _bounded(size)
            parts.append(part)
        return "".join(parts)
    except TooMuch as error:
        raise DataError(f"The chat template does too much ({error}).", "Correct it.") from None
    except SecurityError as error:
        raise DataError(f"The chat template tried to leave its sandbox ({error}).", "Do not use it.") from None
    except TemplateError as error:
        raise DataError(f"The chat template fails: {error}.", "Correct the messages or the template.") from None
    except (RecursionError, MemoryError) as error:
        raise DataError(f"The chat template does too much ({type(error).__name__}).", "Correct it.") from None
    except Exception as error:  # a template can raise whatever Python raises
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"The chat template fails ({said}).", "Correct the messages or the template.") from None


def plain(value: Any) -> Any:
    """A value rebuilt from plain JSON types; of anything else a template sees only the name of its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the model's words; its content is written as it is."""

    tags = {"generation"}  # noqa: RUF012 (as the base class)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Bounds(NodeTransformer):
    """Counts the turns of loops and the calls of macros; measures what `~` joins."""

    def _counted(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", [], node.lineno)))
        return node

    visit_For = visit_Macro = visit_CallBlock = _counted

    def visit_Concat(self, node: Any) -> Any:
        self.generic_visit(node)
        return _call("concat", node.nodes, node.lineno)


def _call(name: str, args: list[Any], line: int) -> nodes.Call:
    """A call of the environment's own function, which no name in a template can hide."""
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.count, self.concat = local(), _concat
        for name in ("join", "replace", "format", *NARROW):
            if name in self.filters:
                self.filters[name] = _guarded(name, self.filters[name])
        self.filters["tojson"] = _tojson
        self.globals |= {
            "raise_exception": _raise, "strftime_now": lambda how: datetime.now().strftime(str(how)[:100]),
            "namespace": _Namespace, "lipsum": None, "cycler": None, "joiner": None,
        }  # fmt: skip

    def tick(self) -> None:
        """One step of the template that runs in this thread."""
        self.count.steps += 1
        if self.count.steps > STEPS:
            raise TooMuch(f"more than {STEPS:,} steps")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = [v for v in (left, right) if isinstance(v, (str, bytes, list, tuple))]
        if operator == "+" and len(sized) == 2:
            _bounded(len(left) + len(right))
        elif operator == "*" and sized:
            count = right if sized[0] is left else left
            _bounded(len(sized[0]) * (count if isinstance(count, int) else 0))
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = (
                max(left.bit_length(), 1) * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            )
            _bounded(bits)
        elif operator == "%" and isinstance(left, (str, bytes)):
            raise SecurityError("formatting with % is not offered to chat templates")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, (str, bytes)):
            if name in ("format", "format_map"):
                raise SecurityError("str.format is not offered to chat templates")
            if name in ("join", "replace", "translate", *NARROW):
                _measure(name, args[0] if name == "join" and args else owner, [owner, *args], kwargs)
        return super().call(__context, __obj, *args, **kwargs)


@lru_cache(maxsize=16)
def _compile(template: str) -> tuple[_Environment, Any]:
    if len(template) > SIZE:
        raise TooMuch(f"a template of {len(template):,} characters")
    environment = _Environment()
    tree = _Bounds().visit(environment.parse(template))
    code = environment.compile(tree)
    return environment, environment.template_class.from_code(environment, code, environment.make_globals(None))


class _Namespace(Namespace):
    """Namespaces whose attributes cannot begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _public(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"namespace attribute {name!r}")


def _raise(message: str) -> None:
    raise TemplateError(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if (indent is not None and not 0 <= int(indent) <= 16) or any(len(str(s)) > 16 for s in separators or ()):
        raise SecurityError(f"tojson with an indent of {indent} and separators {separators!r:.60}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _concat(*parts: Any) -> str:
    texts = [str(p) for p in parts]
    _bounded(sum(map(len, texts)))
    return "".join(texts)


def _guarded(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is measured before it runs. Jinja may pass its environment first."""

    @wraps(made)  # keeps the mark by which Jinja knows what to pass
    def run(*args: Any, **kwargs: Any) -> Any:
        own = args[1:] if hasattr(made, "jinja_pass_arg") else args
        if name == "format":
            raise SecurityError("the filter format is not offered to chat templates")
        if name == "join" and not isinstance(own[0], (str, list, tuple)):
            own = (list(own[0]), *own[1:])
            args = (*args[: len(args) - len(own)], *own)
        text = own[0] if name == "join" else str(own[0])
        _measure(name, text, [own[1] if len(own) > 1 else kwargs.get("d", "")] if name == "join" else own, kwargs)
        return made(*args, **kwargs)

    return run


def _measure(name: str, what: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse what would make a text beyond the bound. `what`: the parts of a join, else the text."""
    if name == "join":
        parts = list(what)
        _bounded(sum(len(str(p)) for p in parts) + len(parts) * len(str(args[0])))
    elif name == "replace":
        old, new = (*args[1:3], *kwargs.values(), "", "")[:2]
        _bounded(len(what) + what.count(old if isinstance(old, type(what)) else str(old)) * len(str(new)))
    elif name == "translate":
        raise SecurityError("str.translate is not offered to chat templates")
    else:
        numbers = [abs(a) for a in (*args[1:], *kwargs.values()) if isinstance(a, int)]
        texts = [len(a) for a in (*args[1:], *kwargs.values()) if isinstance(a, str)]
        lines = len(what) if name in ("expandtabs", "indent", "wordwrap", "batch", "slice") else 1
        _bounded(len(what) + lines * max([*numbers, *texts, 0]))


def _bounded(size: int) -> None:
    if size > SIZE:
        raise TooMuch(f"more than {SIZE:,} characters")
