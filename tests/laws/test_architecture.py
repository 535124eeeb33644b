"""The walls of the house: imports point up the list of rooms, and `import protea` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import protea

SOURCE = Path(protea.__file__).parent
ROOMS = (
    "errors", "rng", "kernels", "space", "core", "spaces", "nn", "distributions", "transforms", "processes", "samplers",
    "objectives", "models", "training", "data", "evaluation", "inference", "interop", "serving", "sklearn",
    "api", "cli",
)  # fmt: skip
LEVEL = {room: level for level, room in enumerate(ROOMS)}
HEAVY = {"transformers", "diffusers", "torchvision", "torchaudio", "pyarrow", "tensorboard"}


def imports(path: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
            if node.module == "protea":
                found += [(node.lineno, f"protea.{alias.name}") for alias in node.names]
    return found


FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_up(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert room in LEVEL, f"{room} is not in the list of rooms (docs/architecture.md)"
    for line, module in imports(path):
        parts = module.split(".")
        if parts[0] == "protea" and len(parts) > 1 and parts[1] in LEVEL:
            assert LEVEL[parts[1]] <= LEVEL[room], f"{path.name}:{line}: {room} imports {module}, which is below it"


def test_core_is_short() -> None:
    assert len((SOURCE / "core.py").read_text().splitlines()) <= 235


def test_optional_packages_are_never_imported_at_the_top() -> None:
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {n.split(".")[0] for n in names} & HEAVY, f"{path}: {names}"


def test_import_is_light() -> None:
    code = "import sys, protea; print(sorted(m for m in ('torch', 'numpy', 'pandas', 'sklearn') if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_pickle_eval_or_exec() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                assert name not in {"eval", "exec"}, f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, f"{path}:{node.lineno}"
        assert not any(m.split(".")[0] in {"pickle", "joblib", "dill"} for _, m in imports(path)), path
