"""Fixtures of the parity tests: `hf`, the shared harness against transformers, and `parity`, its main call."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def hf() -> ModuleType:
    """tests/parity/hf.py."""
    if "parity_hf" not in sys.modules:
        spec = importlib.util.spec_from_file_location("parity_hf", Path(__file__).with_name("hf.py"))
        assert spec is not None and spec.loader is not None
        sys.modules["parity_hf"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["parity_hf"]


@pytest.fixture
def parity(hf: ModuleType, tmp_path: Path, evidence: Callable[..., None]) -> Callable[..., Any]:
    """parity(config, id=, system=, note=, **options): see `check` of tests/parity/hf.py."""

    def run(config: Any, **options: Any) -> Any:
        return hf.check(config, tmp_path, evidence, **options)

    return run
