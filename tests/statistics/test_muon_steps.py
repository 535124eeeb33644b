"""How many steps Muon saves: Shakespeare's characters, a network of two layers, every rate the best of a grid."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from protea.training.schedule import warmup_cosine

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # recipes/ lies beside src/

from recipes.speedrun import Rung, run

# Best of 3e-3, 6e-3, 1.2e-2, 2.4e-2 for AdamW's one rate, after 300 steps with seed 0; for Muon of 1e-2, 2e-2, 4e-2,
# 6e-2 (matrices) and 6e-3, 1.2e-2 (all else), after 240. Both rates fall along a cosine to zero.
ADAMW = Rung(300, layers=2, width=64, heads=2, matrices=1.2e-2, tables=1.2e-2, orthogonal=False,
             schedule=warmup_cosine(20, 0.0))  # fmt: skip
MUON = replace(ADAMW, steps=240, matrices=4e-2, tables=1.2e-2, orthogonal=True)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("seed", range(3))
def test_muon_needs_four_fifths_of_adamws_steps(seed: int, shared_data: Path, evidence) -> None:
    text = shared_data / "text" / "tinyshakespeare.txt"
    want, got = (run(rung, text, seed)["validation_loss"] for rung in (ADAMW, MUON))
    evidence(
        id="TS-09", system="Muon", claim=f"validation loss after {MUON.steps} steps, tinyshakespeare, seed {seed}",
        reference=f"AdamW's after {ADAMW.steps}: {want:.4f}", reached=got, tolerance=want, unit="nats per character",
    )  # fmt: skip
