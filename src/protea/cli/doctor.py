"""`protea doctor`: what works on this machine, and the command that repairs what does not."""

from __future__ import annotations

from typing import Any

import typer

from protea.cli.options import Json

CORE = (
    "torch",
    "numpy",
    "scipy",
    "sklearn",
    "pandas",
    "safetensors",
    "PIL",
    "matplotlib",
    "typer",
    "rich",
    "jinja2",
    "jsonschema",
    "tokenizers",
)
EXTRAS = {
    "parquet": ("pyarrow",),
    "track": ("tensorboard",),
    "gguf": ("gguf",),
    "llama-cpp": ("llama_cpp",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "serve": ("llguidance", "starlette", "uvicorn"),
    "lm-eval": ("lm_eval",),
}
PIP_NAME = {"sklearn": "scikit-learn", "PIL": "pillow", "llama_cpp": "llama-cpp-python"}


def doctor(json: Json = False) -> None:
    """Check this machine; print repair commands.

    Device, versions, and each optional extra, imported under guard.
    """
    from protea.cli.console import print_json, stdout

    checks = [_python(), *(_package(name, None) for name in CORE)]
    checks += [_package(name, extra) for extra, names in EXTRAS.items() for name in names]
    checks += [_device(), _disk(), _browser()]
    broken = [check for check in checks if check["state"] == "broken"]
    if json:
        print_json({"ok": not broken, "checks": checks})
    else:
        _show(checks)
        out = stdout()
        repairs = [check["repair"] for check in checks if check["repair"]]
        out.print()
        if broken:
            out.print(f"{len(broken)} problem{'s' * (len(broken) > 1)}. Repair with:", style="bold red")
        elif repairs:
            out.print("Everything needed works. Optional:", style="green")
        else:
            out.print("Everything works.", style="green")
        for repair in dict.fromkeys(repairs):
            out.print(f"  {repair}", markup=False)
    if broken:
        raise typer.Exit(1)


def _check(name: str, state: str, detail: str, repair: str = "") -> dict[str, Any]:
    return {"name": name, "state": state, "detail": detail, "repair": repair}


def _python() -> dict[str, Any]:
    import platform
    import sys

    ok = sys.version_info >= (3, 11)
    return _check(
        "python", "ok" if ok else "broken", platform.python_version(), "" if ok else "install Python 3.11 or newer"
    )


def _package(name: str, extra: str | None) -> dict[str, Any]:
    """Import under guard: an installed but broken package must not take the others down."""
    from importlib import import_module, metadata

    pip_name = PIP_NAME.get(name, name)
    repair = f"pip install 'protea[{extra}]'" if extra else f"pip install --force-reinstall {pip_name}"
    label = pip_name if extra is None else f"{pip_name} ({extra})"
    try:
        import_module(name)
        return _check(label, "ok", metadata.version(pip_name))
    except ModuleNotFoundError as error:
        if error.name == name:
            return _check(label, "absent" if extra else "broken", "not installed", repair)
        return _check(label, "broken", f"{error}", repair)
    except Exception as error:
        return _check(label, "broken", f"{type(error).__name__}: {error}".splitlines()[0], repair)


def _device() -> dict[str, Any]:
    try:
        import torch

        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            return _check("device", "ok", f"cuda: {torch.cuda.get_device_name()} (compute {major}.{minor})")
        why = "this torch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        return _check("device", "ok", f"cpu, {torch.get_num_threads()} threads ({why})")
    except Exception as error:
        return _check("device", "broken", str(error).splitlines()[0], "pip install --force-reinstall torch")


def _disk() -> dict[str, Any]:
    import os
    import shutil

    here = os.getcwd()
    free = shutil.disk_usage(here).free / 2**30
    if not os.access(here, os.W_OK):
        return _check("folder", "broken", f"{here} cannot be written", "choose another folder with --out")
    return _check(
        "folder", "ok" if free > 1 else "broken", f"{free:.1f} GiB free", "" if free > 1 else "free some disk space"
    )


def _browser() -> dict[str, Any]:
    """Only `compare --open` needs one."""
    import webbrowser

    try:
        return _check("browser", "ok", webbrowser.get().__class__.__name__)
    except webbrowser.Error:
        return _check("browser", "absent", "none found: open report.html yourself", "")


def _show(checks: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from protea.cli.console import stdout

    mark = {"ok": ("ok", "green"), "absent": ("absent", "yellow"), "broken": ("BROKEN", "bold red")}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in checks:
        table.add_row(Text(*mark[check["state"]]), check["name"], Text(check["detail"], "dim"))
    stdout().print(table)
