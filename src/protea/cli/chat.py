"""`protea chat RUN`: talk to a language model, or let it go on with a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protea.cli.options import Json, RunFolder, Seed
from protea.errors import ConfigError, ProteaError

if TYPE_CHECKING:
    from protea.serving.conversation import Conversation

HELP = "/reset forgets what was said, /exit ends, Ctrl-C stops an answer."


def chat(
    run: RunFolder,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Say this, print the answer, and end.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="Instructions (models with a chat template).")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top-k")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End the answer at this (repeatable).")] = None,
    regex: Annotated[str | None, typer.Option("--regex", help="Answers match this regular expression.")] = None,
    schema: Annotated[Path | None, typer.Option("--schema", help="Answers are JSON of this schema (a file).")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Talk to a language model.

    A model with a chat template answers messages; one without goes on with the text. Lines come from the terminal, from
    a pipe, or from --prompt.
    """
    from protea import api
    from protea.cli.console import print_error, print_json, stderr
    from protea.serving.conversation import Conversation
    from protea.serving.engine import Engine
    from protea.serving.requests import Request
    from protea.serving.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p)
    settings = Request(
        [0], max_new_tokens, sampling, seed, stop=tuple(stop or ()), constraint=_constraint(regex, schema)
    )
    model = api.load(run).model
    talk = Conversation(Engine(model, slots=1), settings, system)  # type: ignore[arg-type]
    if prompt is not None:
        if json:
            for _ in talk.say(prompt):
                pass
            print_json(_facts(talk, prompt))
        else:
            _answer(talk, prompt)
        return
    console, people = stderr(), sys.stdin.isatty()
    if people:
        console.print(HELP, style="dim")
    while True:
        try:
            line = input("> ") if people else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            break
        if not line or line.strip() == "/exit":
            break
        if not line.strip():
            continue
        if line.strip() == "/reset":
            talk.reset()
            continue
        try:
            _answer(talk, line.rstrip("\n"), show=not json)
            if json:
                print_json(_facts(talk, line.rstrip("\n")))
        except ProteaError as error:  # the conversation goes on
            print_error(error)


def _constraint(regex: str | None, schema: Path | None) -> Any:
    if regex is not None and schema is not None:
        raise ConfigError("Answers cannot follow --regex and --schema at once.", "Give one of them.")
    if regex is not None:
        from protea.serving.constrained.guidance import Regex

        return Regex(regex)
    if schema is not None:
        from protea.serving.constrained.guidance import JsonSchema
        from protea.training.files import read_json

        return JsonSchema(read_json(schema))
    return None


def _answer(talk: Conversation, said: str, show: bool = True) -> None:
    """Write the answer as it comes; Ctrl-C ends it and keeps what was said."""
    pieces = talk.say(said)
    try:
        for piece in pieces:
            if show:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
    if show:
        sys.stdout.write("\n")
        sys.stdout.flush()


def _facts(talk: Conversation, said: str) -> dict[str, Any]:
    handle = talk.handle
    assert handle is not None
    return {
        "prompt": said, "text": handle.text, "tokens": len(handle.tokens), "finish": handle.finish,
        "cached_tokens": handle.cached,
    }  # fmt: skip
