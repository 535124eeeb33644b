"""`protea plan` says what `protea fit` then takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = ("vae", "digits", "--budget", "60steps")


def protea(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "protea.cli", *words], cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_memory_and_disk_are_within_a_fifth(tmp_path: Path, evidence) -> None:
    planned = protea("plan", *WORDS, "--json", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert list(tmp_path.iterdir()) == []  # a rehearsal leaves nothing behind
    forecast = json.loads(planned.stdout)
    code = (
        "import sys; from protea.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "from protea.training.memory import high_water_mb; print('peak', high_water_mb())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "fit", *WORDS, "--out", "run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak = float(done.stdout.split("peak")[1])
    size = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file()) / 2**20
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (forecast["steps"], forecast["parameters"]) == (result["steps"], result["parameters"])
    for subject, guess, truth in (("peak memory", forecast["memory_mb"], peak), ("disk", forecast["disk_mb"], size)):
        evidence(
            id="plan", system="protea plan", claim=f"predicts {subject} of a fit within a fifth",
            reference="the fit itself", reached=abs(guess / truth - 1), tolerance=0.2, unit="relative",
        )  # fmt: skip
    assert result["seconds"] / 3 < forecast["seconds"] < 3 * result["seconds"] + 3  # a shared machine's pace wanders


def test_a_wrong_model_is_told_before_the_data_are_read(tmp_path: Path) -> None:
    done = protea("plan", "gnm", "nowhere.csv", cwd=tmp_path)
    assert done.returncode == 2 and "gmm" in done.stderr
