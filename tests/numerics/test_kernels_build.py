"""Compiled kernels: had where there is a compiler, and done without, for a stated reason, where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protea.kernels import build

TELL = "from protea.kernels import compiled; found = compiled('decoder'); print(found.lib is not None, found.reason)"


def told(cache: Path, **more: str) -> str:
    env = os.environ | {"XDG_CACHE_HOME": str(cache)} | more
    run = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True, env=env)
    return run.stdout.strip()


@pytest.mark.parametrize(
    ("told_what", "why"),
    [
        ({"PROTEA_KERNELS": "off"}, "PROTEA_KERNELS is off"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler"),
        ({"CXX": shutil.which("false") or ""}, "failed"),
    ],
)
def test_without_kernels_there_is_a_reason(tmp_path: Path, told_what: dict[str, str], why: str) -> None:
    said = told(tmp_path, **told_what)
    assert said.startswith("False") and why in said
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_kernels_are_built_once_and_by_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    first = build._built("g++", source)
    made = first.stat().st_mtime_ns
    assert build._built("g++", source) == first and first.stat().st_mtime_ns == made
    source.write_text('extern "C" int one() { return 2; }')
    assert build._built("g++", source) != first
    assert sorted(p.suffix for p in first.parent.iterdir()) == [".so", ".so"]
