"""Preflight: facts agree with pandas, warnings are said, near duplicates are found and not invented."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch

from protea.data import open_data

RNG = np.random.default_rng(0)
N = 1000
FRAME = pd.DataFrame(
    {
        "x": RNG.normal(size=N),
        "y": RNG.normal(size=N),
        "z": RNG.normal(size=N),
        "n": RNG.integers(0, 9, N),
        "same": 7,
        "name": [f"p{i % 700}" for i in range(N)],
        "row": np.arange(N),
        "rare": ["no"] * (N - 3) + ["yes"] * 3,
    }
)


def test_facts_and_warnings():
    frame = FRAME.assign(y=FRAME["y"].where(np.arange(N) % 10 > 0))
    facts = open_data(frame, target="rare").preflight
    columns = {c["name"]: c for c in facts.columns}
    assert columns["y"]["missing"] == 100
    assert columns["x"]["low"] == frame["x"].min() and columns["x"]["high"] == frame["x"].max()
    assert columns["n"]["distinct"] == frame["n"].nunique()
    assert facts.classes == {"no": 997, "yes": 3}
    said = "\n".join(facts.warnings)
    for words in (
        "'row' is left out: it counts the rows",
        "'y': 100 values (10.0 %) are missing",
        "'same' is constant",
        "'name' has 700 categories in 1000 rows",
        "yes has very few rows",
        "100 % of the rows are 'no'",
    ):
        assert words in said
    assert json.loads(json.dumps(facts.to_json())) == facts.to_json()


def test_near_duplicates_are_found_and_paired():
    frame = FRAME[["x", "y", "z", "n"]]
    copies = frame.iloc[:100] + np.array([1e-4, 1e-4, 1e-4, 0])
    found = open_data(pd.concat((frame, copies), ignore_index=True)).preflight
    near = found.near_duplicates
    assert near.searched == 1100
    assert 195 <= near.found <= 206
    assert all(abs(a - b) == 1000 for a, b in near.pairs)
    assert any("near duplicate" in w for w in found.warnings)
    assert 0 < near.straddling < near.found


def test_near_duplicates_are_not_invented():
    assert open_data(FRAME[["x", "y", "z", "n"]]).preflight.near_duplicates.found <= 5
    pictures = RNG.integers(0, 256, (400, 12, 12, 3), dtype=np.uint8)
    assert open_data(pictures).preflight.near_duplicates.found == 0


def test_near_duplicate_pictures():
    x = RNG.integers(0, 255, (300, 10, 10), dtype=np.uint8)
    x[200:220] = x[:20]
    x[200:220, 0, 0] += 1  # one pixel by one level
    near = open_data(torch.from_numpy(x)).preflight.near_duplicates
    assert near.found == 40
    assert {tuple(pair) for pair in near.pairs} <= {(i, i + 200) for i in range(20)}


def test_heavily_repeated_rows_and_dark_pictures():
    frame = pd.DataFrame({"a": np.arange(3000) % 5, "b": np.arange(3000) % 7, "c": np.arange(3000) % 2})
    assert any("only 70 of 3000 rows are distinct" in w for w in open_data(frame).preflight.warnings)
    dark = open_data(RNG.integers(0, 17, (50, 4, 4), dtype=np.uint8)).preflight
    assert dark.value_range == (0.0, 16.0)
    assert any("levels=17" in w for w in dark.warnings)
