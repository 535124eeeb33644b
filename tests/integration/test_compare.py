"""`protea compare` end to end on embedded data: the contract, the reference rows, failures, continuing."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protea.data import open_data
from protea.errors import ConfigError
from protea.evaluation import compare_child
from protea.evaluation.compare import _Plan, suitable
from protea.evaluation.compare_rows import failed_row, ranked
from protea.evaluation.report import read_report
from protea.evaluation.schema import validate
from protea.training import Budget

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


def protea(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "protea.cli", *words]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def figure(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "protocol": {}}


def row(name: str, **metrics: dict[str, Any]) -> dict[str, Any]:
    return {**failed_row(name, "flow", "nothing", "run", "protea"), "metrics": metrics, "verdict": ""}


def test_overlapping_intervals_share_places() -> None:
    rows, by = ranked([row("a", gap=figure(0.1, 0.0, 0.2)), row("b", gap=figure(0.3, 0.15, 0.4)), row("c"),
                       row("d", gap=figure(0.9, 0.8, 1.0))])  # fmt: skip
    assert by == "gap"
    assert [r["rank"] for r in rows] == [[1, 2], [1, 2], None, [3, 3]]


def test_without_a_scale_the_two_sample_accuracy_ranks_and_luck_below_one_half_earns_nothing() -> None:
    rows, by = ranked([row("lucky", c2st_accuracy=figure(0.40, 0.35, 0.44)),
                       row("b", c2st_accuracy=figure(0.5, 0.45, 0.55)),
                       row("c", c2st_accuracy=figure(0.9, 0.85, 0.95))])  # fmt: skip
    assert by == "c2st_accuracy"
    assert [r["rank"] for r in rows] == [[1, 2], [1, 2], [3, 3]]


def test_models_that_suit_come_cheapest_first() -> None:
    dataset = open_data("eight-gaussians", n=500)
    found = suitable(dataset)
    assert {entry.name for entry, _ in found} >= {"gmm", "marginals", "vae", "flow"}
    counting = [cheap for _, cheap in found]
    assert counting == sorted(counting, reverse=True) and any(counting)
    assert all("vector" in entry.suits for entry, _ in found)
    with pytest.raises(ConfigError, match="cannot model vector data"):
        suitable(dataset, ["ngram"])


def test_a_total_budget_is_shared_fairly() -> None:
    import time

    plan = _Plan(None, 100.0, time.perf_counter() - 10.0, 5)
    plan.overheads = [4.0, 6.0]
    cheap = plan.budget(True, 5)
    assert cheap.seconds == pytest.approx((97 - 10) / 5 - 6.0, abs=0.6)  # the slowest overhead so far
    assert plan.affords(3)
    first = plan.budget(False, 3)
    plan.overheads.append(9.0)
    assert plan.budget(False, 2) == first  # all that learn by steps get the same
    assert _Plan(Budget(seconds=3), None, 0.0, 1).budget(False, 1) == Budget(seconds=3)


def test_a_budget_too_small_for_all_leaves_some_out_rather_than_starve_all() -> None:
    import time

    plan = _Plan(None, 100.0, time.perf_counter() - 40.0, 9)
    plan.overheads = [10.0, 12.0]
    # 57 s are left; a fit and its judging take 12 s and at least 2 s: four of six learners have time.
    assert [plan.affords(left) for left in (6, 5, 4, 3, 2, 1)] == [True] * 4 + [False] * 2
    assert plan.budget(False, 6).seconds == pytest.approx(57 / 4 - 12.0, abs=0.2)
    assert plan.budget(True, 6) == plan.budget(False, 6)  # fixed by the first learner
    counting = _Plan(None, 100.0, time.perf_counter() - 40.0, 9)
    assert counting.budget(True, 9).seconds == pytest.approx(10.0, abs=0.2)  # a tenth: most end long before


def test_the_command_of_a_row_is_one_a_user_can_paste() -> None:
    words = compare_child.fit_arguments("gmm", "my data.csv", budget="5s", seed=2, out=Path("r e/gmm"),
                                        opening={"target": "the label", "drop": ["id"], "n": None})  # fmt: skip
    text = compare_child.command(words)
    assert shlex.split(text) == ["protea", *words]
    assert "--target 'the label'" in text and "--option 'drop=[\"id\"]'" in text and "n=" not in text.split("drop")[1]


def test_a_child_tells_why_it_failed_and_how_much_it_used(tmp_path: Path) -> None:
    ended = compare_child.train(["fit", "gmm", "nowhere.csv"], tmp_path / "run", tmp_path / "a.log", seconds=1.0)
    assert ended.failed is not None and "nowhere.csv" in ended.failed and "Error" not in ended.failed
    ended = compare_child.train(["version"], tmp_path / "run", tmp_path / "b.log", seconds=1.0)
    assert ended.failed is None and ended.peak_mb is not None and 5 < ended.peak_mb < 350  # not the caller's


def test_metrics_are_followed_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = compare_child.Tail(path)
    assert tail.newest() is None
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert tail.newest() == {"step": 2}
    with open(path, "a") as file:
        file.write('ep": 3}\n')
    assert tail.newest() == {"step": 3} and tail.newest() is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two models on a toy, and one that fails on it."""
    folder = tmp_path_factory.mktemp("compare")
    done = protea("compare", "eight-gaussians", "--option", "n=1500", "--models", "gmm,marginals,vae", "--each", "6s",
                  "--out", "out", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == os.path.join("out", "report.html")
    assert "gmm" in done.stderr and "shuffled marginals" in done.stderr  # plain lines where there is no terminal
    return folder


@pytest.mark.slow
def test_the_report_keeps_the_contract(finished: Path) -> None:
    document = read_report(finished / "out")
    validate(document)
    rows = {r["name"]: r for r in document["rows"]}
    assert {n for n, r in rows.items() if r["kind"] == "model"} == {"gmm", "marginals", "vae"}
    assert sum(r["kind"] == "null" for r in rows.values()) == 3
    assert sum(document["split"][k] for k in ("train", "validation", "holdout")) == document["data"]["n"] == 1500
    for r in rows.values():
        for figure in r["metrics"].values():
            assert figure["protocol"] and figure["low"] <= figure["value"] <= figure["high"]
    gmm = rows["gmm"]
    assert gmm["likelihood"]["unit"] == "nats per row" and gmm["cost"]["parameters"] > 0
    assert 50 < gmm["cost"]["peak_mb"] < 5000 and gmm["cost"]["fit_s"] < 9


@pytest.mark.slow
def test_the_reference_rows_say_what_they_must(finished: Path) -> None:
    """On eight Gaussians a mixture of Gaussians is the truth; shuffled columns and independent columns are not."""
    rows = {r["name"]: r for r in read_report(finished / "out")["rows"]}
    assert rows["copy of the training set"]["audit"]["passed"] is False
    assert rows["real held-out data"]["audit"]["passed"] is True
    assert rows["gmm"]["audit"]["passed"] is True
    assert rows["gmm"]["rank"][0] == 1 and rows["marginals"]["rank"][0] > rows["gmm"]["rank"][1]
    accuracy = {n: r["metrics"]["c2st_accuracy"]["value"] for n, r in rows.items()}
    assert accuracy["gmm"] < 0.6 < accuracy["shuffled marginals"]


@pytest.mark.slow
def test_the_page_shows_samples_pairs_and_the_command(finished: Path) -> None:
    page = (finished / "out" / "report.html").read_text()
    assert 'class="dots fake"' in page and "Closest to the training data" in page and "Learning" in page
    document = read_report(finished / "out")
    command = next(r["reproduce"] for r in document["rows"] if r["name"] == "gmm")
    assert shlex.split(command)[:3] == ["protea", "fit", "gmm"]
    again = protea(*shlex.split(command.replace("out/runs/gmm", "again"))[1:], cwd=finished)
    assert again.returncode == 0, again.stderr
    weights = [(finished / p / "model.safetensors").read_bytes() for p in ("again", "out/runs/gmm")]
    assert weights[0] == weights[1]  # EM converges well within the budget


@pytest.mark.slow
def test_a_repeated_command_keeps_finished_rows_and_finishes_lost_ones(finished: Path) -> None:
    out = finished / "out"
    before = read_report(out)
    (out / "runs" / "gmm" / "judged.json").unlink()
    stamp = (out / "runs" / "vae" / "model.safetensors").stat().st_mtime_ns
    done = protea("compare", "eight-gaussians", "--option", "n=1500", "--models", "gmm,marginals,vae", "--each", "6s",
                  "--out", "out", "--json", cwd=finished)  # fmt: skip
    after = json.loads(done.stdout)
    assert (out / "runs" / "vae" / "model.safetensors").stat().st_mtime_ns == stamp
    for old, new in zip(before["rows"], after["rows"]):
        assert old["name"] == new["name"] and old["metrics"] == new["metrics"] and old["rank"] == new["rank"]


@pytest.mark.slow
def test_a_model_that_fails_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "out" / "runs").mkdir(parents=True)
    (tmp_path / "out" / "runs" / "gmm").write_text("in the way")
    words = ("compare", "two-moons", "--option", "n=600", "--models", "marginals,gmm", "--each", "2s", "--out", "out")
    done = protea(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {r["name"]: r for r in json.loads(done.stdout)["rows"]}
    assert rows["gmm"]["verdict"].startswith("failed: ") and rows["gmm"]["rank"] is None
    assert rows["marginals"]["rank"] == [1, 1]


@pytest.mark.slow
def test_seeds_are_pooled(tmp_path: Path) -> None:
    words = ("compare", "two-moons", "--option", "n=600", "--models", "vae", "--budget", "60steps", "--seeds", "2")
    done = protea(*words, "--out", "out", "--json", cwd=tmp_path)
    (vae,) = (r for r in json.loads(done.stdout)["rows"] if r["kind"] == "model")
    assert vae["metrics"]["c2st_accuracy"]["protocol"]["seeds"] == 2
    assert vae["reproduce"].count("protea fit vae") == 2 and "--seed 1" in vae["reproduce"]
    assert sorted(p.name for p in (tmp_path / "out" / "runs").iterdir() if p.is_dir()) == ["vae", "vae-seed1"]
