"""The command line as a user meets it: a subprocess, its output, its exit code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from protea.cli import main

VERBS = (
    "compare",
    "inspect",
    "models",
    "plan",
    "fit",
    "resume",
    "sample",
    "score",
    "eval",
    "classify",
    "impute",
    "anomaly",
    "curve",
    "report",
    "doctor",
    "version",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def protea(*words: str, cwd: Path) -> Done:
    """The command in this process: the same entry point, without the seconds of starting another interpreter."""
    out, err, argv, here = io.StringIO(), io.StringIO(), sys.argv, Path.cwd()
    sys.argv = ["protea", *words]
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "120")
            main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        os.chdir(here)
        sys.argv = argv
    return Done(code, out.getvalue(), err.getvalue())


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a Gaussian mixture on the digits."""
    folder = tmp_path_factory.mktemp("cli")
    done = protea("fit", "gmm", "digits", "--budget", "3s", "--out", "gmm", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "gmm"  # the folder, and nothing else, on standard output
    return folder / "gmm"


def test_import_and_help_are_instant() -> None:
    """They import neither torch nor numpy; the half second of the promise is then the interpreter's own."""
    heavy = "{'torch', 'numpy', 'pandas', 'scipy', 'sklearn', 'matplotlib', 'jinja2'}"
    for code in ("import protea", "import protea.cli.app; protea.cli.app.app(['--help'], standalone_mode=False)"):
        done = python(f"import sys\n{code}\nprint(sorted({heavy} & set(sys.modules)))")
        assert done.returncode == 0 and done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = python("import sys; sys.argv = ['protea', '--help']; import protea.cli; protea.cli.main()")
        seconds.append(time.perf_counter() - began)
    assert all(verb in done.stdout for verb in VERBS)
    assert min(seconds) < 2.0  # 0.2 s on an idle machine; the benchmark measures it


def test_the_public_names_resolve() -> None:
    code = "import protea; print([type(getattr(protea, n)).__name__ for n in protea.__all__], protea.__version__)"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert python("import protea; protea.nonsense").stderr.strip().endswith("has no attribute 'nonsense'")


def test_models_knows_every_entry(tmp_path: Path) -> None:
    from protea.models import MODELS

    rows = json.loads(protea("models", "--json", cwd=tmp_path).stdout)
    assert [row["name"] for row in rows] == list(MODELS)
    by_name = {row["name"]: row for row in rows}
    assert {"Normalised", "Countable"} <= set(by_name["gmm"]["capabilities"])
    assert all(row["capabilities"] == [] or "Model" not in row["capabilities"] for row in rows)
    assert all(row["source"] and row["suits"] for row in rows)


def test_inspect_tells_types_and_split(tmp_path: Path) -> None:
    facts = json.loads(protea("inspect", "iris", "--json", cwd=tmp_path).stdout)
    assert facts["space"]["kind"] == "table" and facts["n"] == 150
    assert sum(facts["split"][part] for part in ("train", "validation", "holdout")) == 150
    assert {c["name"]: c["kind"] for c in facts["preflight"]["columns"]}["species"] == "category"
    shown = protea("inspect", "iris", cwd=tmp_path).stdout
    assert "species" in shown and "repeat an earlier row" in shown


def test_samples_continue_and_repeat(run: Path) -> None:
    cwd = run.parent
    for words in (("-n", "8", "--out", "all"), ("-n", "4", "--start", "4", "--out", "rest")):
        assert protea("sample", "gmm", *words, cwd=cwd).returncode == 0
    assert sorted(p.name for p in (cwd / "all").iterdir()) == [
        "00000.png",
        *(f"0000{i}.png" for i in range(1, 8)),
        "grid.png",
    ]
    for i in range(4, 8):
        assert (cwd / "all" / f"0000{i}.png").read_bytes() == (cwd / "rest" / f"0000{i}.png").read_bytes()
    assert Pillow.open(cwd / "all" / "00000.png").size == (8, 8)
    done = protea("sample", "gmm", "-n", "3", "--out", "grid.png", "--json", cwd=cwd)
    assert json.loads(done.stdout)["files"] == ["grid.png"] and (cwd / "grid.png").exists()


def test_one_class_on_request(run: Path) -> None:
    """A nearest-class-mean classifier of scikit-learn's digits calls most samples of class 1 a one."""
    from sklearn.datasets import load_digits

    import protea as library

    digits = load_digits()
    means = np.stack([digits.images[digits.target == c].mean(0) for c in range(10)])
    images = library.load(run).sample(64, label="1")
    x = np.stack([np.asarray(i, dtype=float) for i in images]) * 16 / 255
    guess = ((x[:, None] - means) ** 2).sum((2, 3)).argmin(1)
    assert (guess == 1).mean() > 0.5
    done = protea("sample", "gmm", "--class", "eleven", cwd=run.parent)
    assert done.returncode == 2 and "no class 'eleven'" in done.stderr


def test_score_says_what_the_figure_is(run: Path) -> None:
    done = protea("score", "gmm", "digits", "-n", "50", "--out", "scores.csv", "--json", cwd=run.parent)
    facts = json.loads(done.stdout)
    assert facts["unit"] == "bits per dimension" and facts["exactness"] in ("exact", "bound") and facts["n"] == 50
    table = pd.read_csv(run.parent / "scores.csv")
    assert len(table) == 50 and table["value"].mean() == pytest.approx(facts["mean"])
    assert table["value"].mean() == pytest.approx(-table["nats"].mean() / (64 * np.log(2)))


def test_series_are_scored_by_the_series_and_by_the_step(tmp_path: Path) -> None:
    """Total nats over total steps, not the mean of ratios; the same figures in the judgement, with its protocol."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 200)
    x = np.where(np.arange(8)[None, :, None] < lengths[:, None, None], rng.normal(size=(200, 8, 2)), np.nan)
    np.savez(tmp_path / "s.npz", x=x, lengths=lengths)
    done = protea("fit", "hmm", "s.npz", "--budget", "5epochs", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(protea("score", "run", "s.npz", "--json", cwd=tmp_path).stdout)
    assert facts["unit"] == "nats per series" and facts["mean"] == pytest.approx(-np.mean(facts["nats"]))
    assert facts["per_step"] == pytest.approx(-np.sum(facts["nats"]) / lengths.sum(), rel=1e-6)
    assert "nats per step" in protea("score", "run", "s.npz", cwd=tmp_path).stdout
    row = json.loads(protea("eval", "run", "--json", cwd=tmp_path).stdout)
    told = row["likelihood"]
    steps, series = told["per_step"]["protocol"]["size"], told["per_step"]["protocol"]["n"]
    assert told["per_step"]["value"] == pytest.approx(told["value"] * series / steps, rel=1e-6)
    assert told["per_step"]["low"] < told["per_step"]["value"] < told["per_step"]["high"]
    assert told["per_step"]["protocol"]["unit"] == "nats per step" and told["unit"] == "nats per series"


@pytest.mark.parametrize(
    "words, message",
    [
        (("fit", "gmn", "digits"), "Did you mean gmm"),
        (("fit", "gmm", "digist"), "Did you mean digits"),
        (("fit", "gmm", "digits", "--budget", "0s"), "must be positive"),
        (("fit", "gmm", "digits", "--budget", "soon"), "not understood"),
        (("fit", "gmm", "digits", "--set", "width"), "not KEY=VALUE"),
        (("fit", "ngram", "digits"), "cannot model image data"),
        (("sample", "nowhere"), "config.json does not exist"),
        (("report", "nowhere"), "protea compare"),
        (("compare", "digits", "--budget", "30s", "--each", "3s"), "Give one of them"),
        (("compare", "digits", "--models", "gmm,nice"), "no model 'nice'"),
        (("models", "--suits", "sound"), "No model suits"),
        (("inspect", "weights.pkl"), "pickle"),
        (("inspect", "empty.csv"), "empty.csv"),
        (("fit",), "Missing argument"),
        (("fti",), "Did you mean 'fit'"),
    ],
)
def test_a_mistake_gets_a_message_and_exit_code_2(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x04.")
    (tmp_path / "empty.csv").write_text("")
    before = sorted(tmp_path.iterdir())
    done = protea(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before  # nothing written, nothing half written


def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "protea.cli", "fit", "gmn", "digits"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "" and "Did you mean gmm" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_text_is_not_markup(tmp_path: Path) -> None:
    done = protea("inspect", "[bold]no[/bold].csv", cwd=tmp_path)
    assert done.returncode == 2 and "[bold]no[/bold].csv" in done.stderr


def test_the_same_command_is_idempotent_and_another_is_refused(run: Path) -> None:
    weights = (run / "model.safetensors").read_bytes()
    assert protea("fit", "gmm", "digits", "--budget", "3s", "--out", "gmm", cwd=run.parent).returncode == 0
    assert (run / "model.safetensors").read_bytes() == weights
    done = protea("fit", "gmm", "digits", "--budget", "9s", "--out", "gmm", cwd=run.parent)
    assert done.returncode == 2 and "was begun with the budget 3s" in done.stderr
    done = protea("fit", "gmm", "digits", "--budget", "3s", "--seed", "1", "--out", "gmm", cwd=run.parent)
    assert done.returncode == 2 and (run / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_interrupt_then_the_same_command_continues(tmp_path: Path) -> None:
    """Ctrl-C leaves a run that the same command finishes, with the weights of a run that was never interrupted."""
    words = ("fit", "vae", "iris", "--budget", "1500steps", "--out")
    whole = protea(*words, "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    child = subprocess.Popen(
        [sys.executable, "-m", "protea.cli", *words, "broken"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "broken" / "metrics.jsonl"
    for _ in range(6000):
        if metrics.exists() and metrics.read_text().count("\n") > 5:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "repeat the same command" in said and "Traceback" not in said
    assert not (tmp_path / "broken" / "result.json").exists()
    assert protea(*words, "broken", cwd=tmp_path).returncode == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_tables_come_back_as_tables(tmp_path: Path) -> None:
    assert protea("fit", "gmm", "iris", "--budget", "3s", "--out", "run", cwd=tmp_path).returncode == 0
    for name in ("rows.csv", "rows.parquet", "rows.json", "rows.jsonl"):
        assert protea("sample", "run", "-n", "40", "--out", name, cwd=tmp_path).returncode == 0
    csv, parquet = pd.read_csv(tmp_path / "rows.csv"), pd.read_parquet(tmp_path / "rows.parquet")
    assert list(csv.columns) == list(parquet.columns) and len(csv) == len(parquet) == 40
    assert set(csv["species"]) <= {"setosa", "versicolor", "virginica"}
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 40
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 40
    done = protea("sample", "run", "--out", "rows.png", cwd=tmp_path)
    assert done.returncode == 2 and ".parquet" in done.stderr
    row = json.loads(protea("eval", "run", "--json", cwd=tmp_path).stdout)
    assert row["name"] == "gmm" and "c2st_accuracy" in row["metrics"] and row["verdict"]


@pytest.mark.slow
def test_text_and_points_come_back_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"the cat number {i} sat on the mat {i * i % 17}." for i in range(400)))
    assert (
        protea(
            "fit", "ngram", "a.txt", "--budget", "3s", "--out", "text", "--option", "block=32", cwd=tmp_path
        ).returncode
        == 0
    )
    assert protea("sample", "text", "-n", "3", "--out", "s.jsonl", cwd=tmp_path).returncode == 0
    assert all(json.loads(line)["text"] for line in (tmp_path / "s.jsonl").read_text().splitlines())
    words = ("fit", "gmm", "eight-gaussians", "--budget", "3s", "--out", "points", "--option", "n=1000")
    assert protea(*words, cwd=tmp_path).returncode == 0
    assert protea("sample", "points", "-n", "50", "--out", "p.npy", cwd=tmp_path).returncode == 0
    assert np.load(tmp_path / "p.npy", allow_pickle=False).shape == (50, 2)


# ---- defaults from a file ----


def test_what_is_typed_wins_over_the_file_and_the_file_over_what_is_built_in(tmp_path: Path) -> None:
    (tmp_path / "protea.toml").write_text('[fit]\nbudget = "7steps"\nset = ["k=2"]\nseed = 5\n')
    assert protea("fit", "gmm", "iris", "--out", "a", "--seed", "6", cwd=tmp_path).returncode == 0
    facts = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (facts["budget"], facts["seed"], facts["config"]["k"]) == ({"steps": 7}, 6, 2)
    (tmp_path / "other.toml").write_text("[fit]\nbudget = '3steps'\n")
    done = protea("--config", "other.toml", "fit", "gmm", "iris", "--out", "b", cwd=tmp_path)
    assert done.returncode == 0 and json.loads((tmp_path / "b" / "config.json").read_text())["budget"] == {"steps": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [("[fitt]\nseed = 1\n", "fit"), ("[fit]\nbudgett = '3s'\n", "budget"), ("[fit\n", "TOML")],
)
def test_a_wrong_file_of_defaults_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "protea.toml").write_text(text)
    done = protea("fit", "gmm", "iris", "--out", "a", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and not (tmp_path / "a").exists()
