"""classify, impute, anomaly and curve as a user meets them: a subprocess, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer

import protea
from protea.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140", "NO_COLOR": "1"}


def run_protea(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "protea.cli", *words], cwd=cwd, env=ENVIRONMENT, timeout=300,
                          capture_output=True, text=True)  # fmt: skip


def answer(*words: str, cwd: Path) -> dict:
    done = run_protea(*words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a mixture on measurements, a run of naive Bayes on a table, and files to ask them about."""
    folder = tmp_path_factory.mktemp("inference")
    bunch = load_breast_cancer()
    x = bunch.data[:, :8] + 1e-9 * np.arange(len(bunch.data))[:, None]
    np.savez(folder / "cells.npz", x=x, y=bunch.target, class_names=np.array(["malignant", "benign"]))
    holes = x[:30].copy()
    holes[np.arange(30), np.arange(30) % 8] = np.nan
    np.save(folder / "holes.npy", holes)
    np.save(folder / "strange.npy", np.concatenate((x[:40], x[:3] * 4)))
    rng = np.random.default_rng(0)
    kind = rng.choice(["cat", "dog"], 400)
    table = pd.DataFrame({
        "weight": rng.normal(np.where(kind == "cat", 4, 20), 3).round(1), "kind": kind,
        "coat": np.where(rng.uniform(size=400) < np.where(kind == "cat", 0.8, 0.2), "soft", "rough"),
        "grade": rng.choice([0.5, 1.5, 2.5], 400), "same": "x",
    })  # fmt: skip
    table.to_csv(folder / "pets.csv", index=False)
    table.head(12).drop(columns="kind").to_csv(folder / "unlabelled.csv", index=False)
    broken = table.head(12).copy()
    broken.loc[::2, "weight"] = np.nan
    broken.loc[1::3, "coat"] = None
    broken.to_csv(folder / "broken.csv", index=False)
    for model, data, *more in (("gmm", "cells.npz"), ("naive-bayes", "pets.csv", "--target", "kind")):
        done = run_protea("fit", model, data, *more, "--budget", "3s", "--out", f"{model}-run", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_classify_held_out_rows(folder: Path):
    done = run_protea("classify", "gmm-run", cwd=folder)
    assert done.returncode == 0 and "accuracy" in done.stdout and "exact" in done.stdout
    facts = answer("classify", "gmm-run", "cells.npz", "--out", "p.csv", cwd=folder)
    written = pd.read_csv(folder / "p.csv")
    truth = np.load(folder / "cells.npz")["y"]
    right = (written["class"] == np.array(["malignant", "benign"])[truth]).mean()
    assert abs(facts["figures"]["accuracy"]["value"] - right) < 1e-12 and right > 0.85
    np.testing.assert_allclose(written[["p(malignant)", "p(benign)"]].sum(axis=1), 1, atol=1e-12)


def test_classify_rows_without_the_target_column(folder: Path):
    facts = answer("classify", "naive-bayes-run", "unlabelled.csv", cwd=folder)
    truth = pd.read_csv(folder / "pets.csv")["kind"].head(12).tolist()
    assert facts["labelled"] == 0 and "figures" not in facts
    assert sum(a == b for a, b in zip(facts["class"], truth)) >= 11
    frame = protea.load(folder / "naive-bayes-run").classify(pd.read_csv(folder / "unlabelled.csv"))
    assert frame["class"].tolist() == facts["class"] and list(frame)[1:] == ["p(cat)", "p(dog)"]


def test_impute_a_table(folder: Path):
    facts = answer("impute", "naive-bayes-run", "broken.csv", "--out", "full.csv", cwd=folder)
    before, after = pd.read_csv(folder / "broken.csv"), pd.read_csv(folder / "full.csv")
    assert facts["holes"] == int(before.isna().sum().sum()) and not after.isna().any().any()
    kept = before.notna()
    assert (after[kept].fillna("") == before[kept].fillna("")).all().all()
    facts = answer("impute", "naive-bayes-run", "broken.csv", "--out", "m.csv", "--draws", "3", cwd=folder)
    copies = [pd.read_csv(folder / name) for name in facts["files"]]
    assert len(copies) == 3 and not copies[0].equals(copies[1])
    frames = protea.load(folder / "naive-bayes-run").impute(before, draws=3)
    pd.testing.assert_frame_equal(frames[1], copies[1], check_dtype=False)


def test_impute_reports_its_error_beside_the_usual_ways(folder: Path):
    errors = answer("impute", "gmm-run", cwd=folder)["errors"]
    assert set(errors) == {"this run", "column mean or mode", "KNNImputer", "IterativeImputer"}
    assert errors["this run"]["rmse"]["value"] < 0.7 * errors["column mean or mode"]["rmse"]["value"]


def test_rows_with_holes_are_scored_by_what_they_have(folder: Path):
    run = protea.load(folder / "gmm-run")
    scores = answer("score", "gmm-run", "holes.npy", cwd=folder)
    x = np.load(folder / "holes.npy")
    assert scores["n"] == 30 and np.isfinite(scores["nats"]).all()
    # p(x_o) >= p(x_o, x_u) p_max(x_u)^-1 gives no bound; the ratio p(x) / p(x_o) must be the conditional's density.
    first = np.where(np.isnan(x[:1]), 1.0, x[:1])
    seen = ~np.isnan(x[:1])
    given = run.model.given(torch.from_numpy(first), torch.from_numpy(seen))  # type: ignore[operator]
    ratio = float(run.score(first).nats[0]) - float(given.log_prob(torch.from_numpy(first))[0])
    assert abs(ratio - scores["nats"][0]) < 1e-3


@pytest.mark.parametrize("ending", ["csv", "npy"])
def test_numbers_with_holes_are_learnt_scored_and_filled(ending: str, tmp_path: Path):
    """From a file with holes to a full table: two clusters whose columns are equal but for noise."""
    rng = np.random.default_rng(0)
    truth = rng.normal(scale=0.3, size=(400, 4)) + 6.0 * rng.integers(0, 2, 400)[:, None]
    x = np.where(rng.uniform(size=truth.shape) < 0.1, np.nan, truth)
    pd.DataFrame(x, columns=list("abcd")).to_csv(tmp_path / "h.csv", index=False)
    np.save(tmp_path / "h.npy", x)
    data = f"h.{ending}"
    done = run_protea("fit", "mixture", data, "--budget", "3s", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = answer("score", "run", data, cwd=tmp_path)
    assert scores["exactness"] == "exact" and np.isfinite(scores["nats"]).all() and scores["n"] == 400
    done = run_protea("impute", "run", data, "--out", "full.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    full = pd.read_csv(tmp_path / "full.csv").to_numpy()
    few = np.isnan(x) & (np.isnan(x).sum(1) < 4)[:, None]
    assert not np.isnan(full).any() and np.abs(full - truth)[few].mean() < 0.5  # the columns' means are 3 away
    np.testing.assert_allclose(full[~np.isnan(x)], x[~np.isnan(x)])
    done = run_protea("fit", "gmm", data, "--budget", "3s", "--out", "gmm", cwd=tmp_path)
    assert done.returncode == 0 and "bound" in run_protea("score", "gmm", data, cwd=tmp_path).stdout
    done = run_protea("impute", "gmm", data, "--out", "no.csv", cwd=tmp_path)
    assert done.returncode == 2 and "mixture" in done.stderr and not (tmp_path / "no.csv").exists()


def test_anomaly_lists_strange_rows(folder: Path):
    facts = answer("anomaly", "gmm-run", "strange.npy", "--fdr", "0.3", cwd=folder)
    p = np.array([row["p"] for row in facts["rows"]])
    assert (p[40:] == 1 / (facts["calibration"] + 1)).all() and p[:40].mean() > 0.3
    assert set(facts["flagged"]) >= {40, 41, 42}
    run = protea.load(folder / "gmm-run")
    same = run.anomalies(np.load(folder / "strange.npy"))
    np.testing.assert_allclose(same.p.numpy(), p)
    both = run.anomalies(np.load(folder / "strange.npy"), statistic="typicality")
    assert float(both.p[40:].max()) < 0.05


def test_rows_with_holes_are_compared_with_rows_with_the_same_holes(folder: Path):
    """p-values of rows with one or all entries missing are as good as any: they count like against like."""
    run = protea.load(folder / "gmm-run")
    held = run.data().holdout.x.numpy()
    holes = held[:5].copy()
    holes[:, 2:] = np.nan
    holes[4] = np.nan  # nothing is known: every held-out row scores the same
    found = run.anomalies(holes)
    assert float(found.p[4]) == 1.0
    part = held.copy()
    part[:, 2:] = np.nan
    nats = run.score(part).nats
    want = [(1 + int((nats <= n).sum())) / (len(held) + 1) for n in run.score(holes[:4]).nats]
    np.testing.assert_allclose(found.p[:4].numpy(), want)


def test_curve_writes_figures_words_and_a_picture(folder: Path):
    words = ("curve", "pets.csv", "--target", "kind", "--sizes", "10,100", "--repeats", "3", "--unlabelled", "100")
    document = answer(*words, cwd=folder)
    names = [c["name"] for c in document["curves"]]
    assert names == ["naive-bayes", "logistic (L2)", "logistic (no penalty)", "naive-bayes + unlabelled"]
    assert len(document["words"]) == 3 and [p["n"] for p in document["curves"][0]["points"]] == [10, 100]
    assert json.loads((folder / "curves/pets/curve.json").read_text())["words"] == document["words"]
    assert (folder / "curves/pets/curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "data:image/png;base64" in (folder / "curves/pets/curve.html").read_text()
    again = answer(*words, cwd=folder)
    assert again["curves"] == document["curves"]  # a function of the data and the seed


def test_curve_says_whether_synthetic_rows_help(folder: Path):
    words = ("curve", "pets.csv", "--target", "kind", "--sizes", "20", "--repeats", "2", "--synthetic", "mixture:30")
    document = answer(*words, "-b", "1s", "-o", "fed", cwd=folder)
    names = [c["name"] for c in document["curves"]]
    assert names[-2:] == ["logistic (L2) on mixture rows", "logistic (L2) + mixture rows"]
    assert [a["first"] for a in document["augmentation"]] == names[-2:] and document["synthetic"] == "mixture:30"
    assert "synthetic rows" in document["words"][-1] or "undecided" in document["words"][-1]
    assert document["words"][-1].startswith("logistic (L2) + mixture rows against logistic (L2): 20 labels: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("curve", "pets.csv"), "names no column to predict"),
        (("curve", "pets.csv", "--target", "grade"), "holds decimal numbers, not classes"),
        (("curve", "pets.csv", "--target", "same"), "one class only"),
        (("curve", "pets.csv", "--target", "kind", "--sizes", "1,9"), "do not fit"),
        (("curve", "pets.csv", "--target", "kind", "--sizes", "ten"), "are not whole numbers"),
        (("curve", "pets.csv", "--target", "kind", "--models", "gnm"), "Did you mean"),
        (("curve", "pets.csv", "--target", "kind", "--synthetic", "gmm:x"), "is not a number of rows"),
        (("curve", "two-moons"), "no labels to predict"),
        (("classify", "gmm-run", "pets.csv"), "is not a vector"),
        (("anomaly", "gmm-run", "holes.npy", "--statistic", "odd"), "no statistic 'odd'"),
        (("impute", "naive-bayes-run", "nothing.csv"), "There is no file"),
    ],
)  # fmt: skip
def test_bad_requests_end_with_code_2_and_a_remedy(
    folder: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In this process: the same entry point, without the seconds of starting another interpreter."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(sys, "argv", ["protea", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr()
    assert stop.value.code == 2 and said in told.err and not told.out, told.err
