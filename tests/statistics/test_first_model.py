"""What `compare` ranks first is worth being first: a line with little noise comes back as a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from protea import api


@pytest.mark.slow
def test_the_first_model_keeps_a_line(tmp_path: Path, evidence) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=500)
    frame = pd.DataFrame({"x": x, "y": 2 * x + 0.01 * rng.normal(size=500), "c": rng.choice(["a", "b", "c"], 500)})
    frame.to_csv(tmp_path / "line.csv", index=False)
    words = ["compare", "line.csv", "--each", "4s", "--models", "marginals,mixture,gmm,flow,vae", "--out", "out"]
    done = subprocess.run([sys.executable, "-m", "protea.cli", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    models = [row for row in rows if row["kind"] == "model" and row["rank"]]
    first = min(models, key=lambda row: (row["rank"][0], row["metrics"]["gap"]["value"]))
    drawn = api.load(tmp_path / first["run"]).sample(2000)
    evidence(
        id="EV-01", system="protea compare", claim="the model ranked first keeps y = 2x + 0.01 noise (correlation)",
        reference="the line itself", reached=drawn["x"].corr(drawn["y"]), tolerance=0.99, at_least=True,
    )  # fmt: skip
