"""Fixtures for every test: development data, and the evidence ledger."""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch loads

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("PROTEA_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"development data sets are not at {folder} (set PROTEA_SHARED)")
    return folder


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Record a figure for docs/evidence.md, and fail if it misses its tolerance.

    Records are written under PROTEA_EVIDENCE (a folder) when it is set; `make evidence` sets it.
    """
    count = 0

    def record(
        *, id: str, system: str, claim: str, reference: str, reached: float, tolerance: float, unit: str = "",
        at_least: bool = False,
    ) -> None:  # fmt: skip
        nonlocal count
        reached = float(reached)
        passed = reached >= tolerance if at_least else reached <= tolerance
        if folder := os.environ.get("PROTEA_EVIDENCE"):
            node = request.node.nodeid
            name = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{node}-{count}")[-150:]
            command = f"pytest '{node}'"
            row = {
                "id": id, "system": system, "claim": claim, "reference": reference, "reached": reached,
                "tolerance": tolerance, "unit": unit, "at_least": at_least, "passed": passed, "command": command,
            }  # fmt: skip
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, f"{name}.json").write_text(json.dumps(row, indent=1))
        count += 1
        sign = ">=" if at_least else "<="
        assert passed, f"{system}: {claim}: {reached:.3g} {unit}, wanted {sign} {tolerance:.3g} ({reference})"

    return record


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # weights' initialisation in tests
