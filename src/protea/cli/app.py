"""The `protea` command: every verb, registered in the order a newcomer meets them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from protea.cli.anomaly import anomaly
from protea.cli.chat import chat
from protea.cli.classify import classify
from protea.cli.compare import compare
from protea.cli.curve import curve
from protea.cli.doctor import doctor
from protea.cli.eval import evaluate
from protea.cli.export import export
from protea.cli.fit import fit
from protea.cli.import_ import import_
from protea.cli.impute import impute
from protea.cli.inspect import inspect
from protea.cli.models import models
from protea.cli.plan import plan
from protea.cli.report import report
from protea.cli.resume import resume
from protea.cli.sample import sample
from protea.cli.score import score
from protea.cli.serve import serve
from protea.cli.version import version

PANELS = {
    "Start here": {"compare": compare, "inspect": inspect, "models": models},
    "One model": {"plan": plan, "fit": fit, "resume": resume, "sample": sample, "score": score, "eval": evaluate},
    "What a model is good for": {"classify": classify, "impute": impute, "anomaly": anomaly, "curve": curve},
    "Language models": {"chat": chat, "serve": serve, "import": import_, "export": export},
    "Housekeeping": {"report": report, "doctor": doctor, "version": version},
}


class Grouped(TyperGroup):
    """Lists the verbs under their headings, in the order above; plain text, because rich's help costs 0.3 s."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for verbs in PANELS.values() for name in verbs]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, verbs in PANELS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(90)) for name in verbs])


app = typer.Typer(
    cls=Grouped,
    name="protea",
    help="Which generative model should I use, is the result any good, may I release it?",
    epilog="Start with:  protea compare digits --budget 90s --open",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", help="Defaults of options, a TOML file. Default: protea.toml, if here.")
    ] = None,
) -> None:
    # No docstring: it would take the place of the help above.
    from protea.cli.settings import read_defaults

    assert isinstance(context.command, Grouped)
    context.default_map = read_defaults(config, context.command.commands)


for verbs in PANELS.values():
    for name, verb in verbs.items():
        app.command(name)(verb)
