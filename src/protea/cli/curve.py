"""`protea curve DATA`: generative against discriminative classifiers as labels grow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protea.cli.options import Data, DataOption, Json, Seed, Target, pairs


def curve(
    data: Data,
    models: Annotated[
        str | None, typer.Option("--models", "-m", help="Generative models, with commas. Default: naive-bayes.")
    ] = None,
    sizes: Annotated[str | None, typer.Option("--sizes", help="Numbers of labels, with commas: 20,50,100.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=2, help="Draws of the labelled rows.")] = 10,
    unlabelled: Annotated[
        int | None,
        typer.Option("--unlabelled", min=1, help="Rows without labels that generative models also learn from."),
    ] = None,
    weight: Annotated[float, typer.Option("--weight", min=0.0, help="Of a row without a label (lambda).")] = 1.0,
    synthetic: Annotated[
        str | None,
        typer.Option("--synthetic", help="Model whose rows the regression also learns from: gmm, gmm:100 (a class)."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", "-b", help="Of one fit: 5s, 200epochs.")] = "5s",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder. Default: curves/DATA.")] = None,
    target: Target = None,
    option: DataOption = None,
    json: Json = False,
) -> None:
    """Which classifier, with how many labels?

    Learning curves of generative classifiers (Bayes' rule on a model's densities) against logistic regression, with and
    without a penalty, on the same draws of your labelled rows; with --unlabelled N, also what rows without labels add.
    Writes curve.json, curve.png and curve.html.
    """
    from protea.cli.console import print_json, stderr, stdout

    console = stderr()
    try:
        from protea.inference.curve_report import study

        document = study(
            data, models=models.split(",") if models else None, repeats=repeats, unlabelled=unlabelled,
            sizes=_numbers(sizes), weight=weight, budget=budget, seed=seed, out=out, target=target,
            synthetic=synthetic,
            tell=None if json else lambda line: console.print(line, style="dim", markup=False),
            **pairs(option, "--option"),
        )  # fmt: skip
    except KeyboardInterrupt:
        console.print("Interrupted; nothing was written.", style="yellow")
        raise typer.Exit(130) from None
    if json:
        print_json(document)
        return
    for line in document["words"]:
        stdout().print(line, markup=False, soft_wrap=True)
    stdout().print(document["files"][-1], markup=False, soft_wrap=True)


def _numbers(text: str | None) -> list[int] | None:
    from protea.errors import ConfigError

    if text is None:
        return None
    try:
        return sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise ConfigError(f"--sizes {text!r} are not whole numbers.", "For instance: --sizes 20,50,100.") from None
