"""`protea export RUN --to hf|gguf|onnx|onnx-past`: a language model in the form others open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protea.cli.options import Json, RunFolder


def export(
    run: RunFolder,
    to: Annotated[str, typer.Option("--to", help="hf (a folder), gguf (llama.cpp), onnx (a graph) or onnx-past.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder or file. Default: beside the run.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. Default: as it is.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a language model for other programs, and check what they make of it.

    The export is opened by the program it is for (transformers, llama.cpp, onnxruntime; where installed), and kept
    only if its logits and its greedy text are the model's own.
    """
    from protea import api
    from protea.cli.console import print_json, stderr, stdout
    from protea.interop.export import FORMS
    from protea.interop.export import export as write

    suffix = FORMS[to].suffix if to in FORMS else ""
    model = api.load(run).model
    done = write(model, to, out or Path(f"{run}-{to}{suffix}"), dtype=dtype)  # type: ignore[arg-type]
    if json:
        print_json(done.to_json())
        return
    stdout().print(str(done.path), markup=False, soft_wrap=True)
    console = stderr()
    if done.agreement is None:
        console.print(f"Not checked: {done.unchecked}", style="yellow", markup=False)
        return
    a = done.agreement
    console.print(
        f"{a.reader} opened it and wrote the same {a.tokens} tokens after {a.prompts} prompts "
        f"(logits within {a.gap:.1e}).",
        style="dim",
        markup=False,
    )
