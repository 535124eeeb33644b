"""The report: its contract, its page, and what hostile data can do to them."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from protea.errors import CheckpointError, ConfigError
from protea.evaluation import report, report_charts, report_exhibits, report_view
from protea.evaluation.schema import validate
from protea.spaces import Image, Tokens, Vector

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png>'


def figure(value: float, width: float = 0.03, **protocol: Any) -> dict[str, Any]:
    return {"value": value, "low": value - width, "high": value + width, "protocol": {"n": 270, **protocol}}


def row(name: str, kind: str = "model", rank: Any = None, accuracy: float = 0.6, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "family": "flow" if kind == "model" else "null", "rank": rank,
        "likelihood": {"value": 2.3, "low": 2.2, "high": 2.4, "unit": "bits per dimension", "exactness": "bound"},
        "metrics": {"c2st_accuracy": figure(accuracy), "recall": figure(0.8), "copies": figure(0.01, 0.005)},
        "audit": {"passed": True, "exact_copies": 0, "expected": 0.01},
        "cost": {"fit_s": 12.0, "samples_per_s": 1000.0, "parameters": 12345, "peak_mb": 400.0},
        "verdict": "good: hard to tell from real", "run": None,
        "reproduce": f"protea fit {name} digits" if kind == "model" else None, **changes,
    }  # fmt: skip


def document(*rows: dict[str, Any], space: str = "image", name: str = "digits") -> dict[str, Any]:
    return {
        "version": 1,
        "data": {"name": name, "space": space, "n": 1797, "fingerprint": "ab" * 32},
        "split": {"train": 1257, "validation": 270, "holdout": 270, "hash": "cd" * 32},
        "rows": list(rows),
        "environment": {"ranked_by": "c2st_accuracy", "budget": "20s", "seeds": 1, "protea": "0.1.0"},
    }


@pytest.fixture
def example() -> dict[str, Any]:
    return document(
        row("real held-out data", "null", accuracy=0.5),
        row("spline-flow", rank=[1, 2], accuracy=0.58),
        row("vae", rank=[1, 2], accuracy=0.60),
        row("wgan", rank=[3, 3], accuracy=0.9, likelihood=None, verdict="collapsing: 3 of 10 modes"),
        row("broken", metrics={}, audit={}, likelihood=None, verdict="failed: the loss is not finite"),
        row("shuffled marginals", "null", accuracy=0.97),
        row("copy of the training set", "null", accuracy=0.5, audit={"passed": False, "exact_copies": 270}),
    )


class Page(html.parser.HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page(
    doc: dict[str, Any], exhibits: dict[str, Any] | None = None, real: dict[str, Any] | None = None
) -> tuple[Page, str]:
    text = report.render(doc, {r["name"]: (exhibits or {}).get(r["name"], {}) for r in doc["rows"]}, real or {})
    return Page(text), text


def test_the_contract_holds_what_the_issue_names(example: dict[str, Any]) -> None:
    validate(example)
    for damage in (
        lambda d: d.pop("split"),
        lambda d: d["data"].update(space="sound"),
        lambda d: d["rows"][0].update(kind="mystery"),
        lambda d: d["rows"][0].pop("reproduce"),
        lambda d: d["rows"][0]["likelihood"].update(exactness="guess"),
        lambda d: d["rows"][1]["metrics"]["recall"].pop("protocol"),
        lambda d: d["rows"][1].update(extra=1),
        lambda d: d["rows"][1].update(rank=[0, 1]),
        lambda d: d.update(surprise=1),
    ):
        damaged = json.loads(json.dumps(example))
        damage(damaged)
        with pytest.raises(CheckpointError, match="not a Protea report"):
            validate(damaged)


def test_a_later_version_is_refused_with_the_remedy(example: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"version 2.*pip install -U"):
        validate({**example, "version": 2})


def test_written_whole_and_rebuilt_the_same(example: dict[str, Any], tmp_path: Path) -> None:
    example["rows"][1]["cost"]["samples_per_s"] = float("inf")  # strict JSON has no infinity
    written = report.write_report(example, tmp_path)
    text = written.html.read_text()
    loaded = report.read_report(tmp_path)
    assert loaded["rows"][1]["cost"]["samples_per_s"] is None
    assert report.write_html(loaded, tmp_path).read_text() == text
    assert not list(tmp_path.glob(".*part"))


def test_unwritable_folder_and_missing_report_are_user_errors(example: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        report.write_report(example, tmp_path / "file" / "folder")
    with pytest.raises(CheckpointError, match="protea compare"):
        report.read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        report.read_report(tmp_path)


def test_the_page_makes_no_request(example: dict[str, Any]) -> None:
    seen, text = page(example)
    for tag, attributes in seen.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\(|@import|https?://", text.replace("http-equiv", ""))
    policy = next(a["content"] for t, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_the_page_answers_the_three_questions(example: dict[str, Any]) -> None:
    text = page(example)[0].text
    assert "Shares first place with vae: their intervals overlap" in text
    assert "Is it any good? Good Hard to tell from real." in text
    assert "No copying found" in text
    assert "failed: the loss is not finite".capitalize() in text
    assert "Collapsing: 3 of 10 modes" in text and "fails the audit" in text
    assert "protea fit wgan digits" in text


def test_no_model_finished_still_makes_a_page() -> None:
    text = page(document(row("broken", metrics={}, audit={}, likelihood=None, verdict="failed: out of memory")))[0].text
    assert "None yet" in text and "Failed: out of memory" in text


def test_hostile_words_stay_words(example: dict[str, Any]) -> None:
    example["data"]["name"] = HOSTILE
    example["rows"][1].update(name=HOSTILE, verdict=HOSTILE, reproduce=HOSTILE, rank=[1, 1])
    example["environment"][HOSTILE] = HOSTILE
    shown = {"kind": "text", "texts": [HOSTILE]}
    table = {"kind": "rows", "columns": [HOSTILE], "rows": [[HOSTILE]]}
    curve = {"name": HOSTILE, "unit": HOSTILE, "x": [0, 1], "y": [1, 0]}
    exhibits = {
        HOSTILE: {"samples": shown, "pairs": [{"sample": table, "train": shown, "distance": 0.0}], "curves": [curve]}
    }
    warnings = {"warnings": [HOSTILE], "columns": [{HOSTILE: HOSTILE}]}
    seen, _ = page(example, exhibits, {"samples": {**table, "dots": [[0, 0], [1, 1]]}, "preflight": warnings})
    assert [t for t, _ in seen.tags].count("script") == 1
    assert not [a for t, a in seen.tags if t == "img" and not (a["src"] or "").startswith("data:")]
    assert seen.text.count(HOSTILE) > 8


def test_people_who_do_not_see_the_page_can_read_it(example: dict[str, Any]) -> None:
    space = Image(1, 8, 8, levels=17)
    shown = report_exhibits.show(
        space, torch.arange(64).reshape(1, 1, 8, 8).fmod(17).to(torch.uint8).repeat(50, 1, 1, 1)
    )
    seen, text = page(example, {"vae": {"samples": shown}}, {"samples": shown})
    assert next(a for t, a in seen.tags if t == "html")["lang"] == "en"
    assert all(a.get("alt") for t, a in seen.tags if t == "img")
    assert all(a.get("aria-label") or a.get("aria-hidden") for t, a in seen.tags if t == "svg")
    assert text.count("<caption") == text.count("<table")
    assert all(a.get("tabindex") == "0" for t, a in seen.tags if (a.get("class") or "") == "scroll")
    headings = [t for t, _ in seen.tags if re.fullmatch(r"h\d", t)]
    assert headings[0] == "h1" and set(headings[1:]) == {"h2"}


def test_pictures_are_the_samples_pixel_for_pixel() -> None:
    space = Image(1, 8, 8, levels=17)
    x = torch.randint(0, 17, (12, 1, 8, 8), dtype=torch.uint8)
    picture = Pillow.open(io.BytesIO(base64.b64decode(report_exhibits.show(space, x)["png"]))).convert("L")
    assert picture.size == (10 * 9 - 1, 2 * 9 - 1)
    for i in (0, 7, 11):
        left, top = (i % 10) * 9, (i // 10) * 9
        assert list(picture.crop((left, top, left + 8, top + 8)).get_flattened_data()) == list(
            space.decode(x[i : i + 1])[0].get_flattened_data()
        )


def test_dots_lie_on_the_principal_plane() -> None:
    """Against the eigenvectors of numpy's correlation matrix, up to the sign of each direction."""
    x = torch.randn(200, 5, dtype=torch.float64) @ torch.diag(torch.tensor([5.0, 1, 1, 1, 1], dtype=torch.float64))
    x[:, 1] = 0.7 * x[:, 0] + 0.3 * x[:, 1]
    space = Vector(tuple("abcde"))
    axes = report_exhibits.plane(space, x)
    assert axes is not None
    ours = report_exhibits.project(space, x, axes)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    vectors = np.linalg.eigh(np.corrcoef(x.numpy(), rowvar=False))[1][:, :-3:-1]
    theirs = z @ torch.from_numpy(vectors.copy())
    torch.testing.assert_close(ours.abs(), theirs.abs(), atol=1e-9, rtol=1e-9)


def test_generated_text_cannot_disturb_a_terminal_or_a_page() -> None:
    space = Tokens(8)
    shown = report_exhibits.show(space, torch.tensor([[0x1B, 0x5B, 0x33, 0x31, 0x6D, 0x41, 0x00, 0x0A]]))
    assert shown["texts"] == ["·[31mA·\n"]


def test_curves_of_a_killed_run_leave_the_torn_line_out(tmp_path: Path) -> None:
    lines = [json.dumps({"step": i, "seconds": 0.5 * i, "loss": 1 / (i + 1), "lr": 0.1}) for i in range(5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    (curve,) = report_exhibits.curves(tmp_path / "metrics.jsonl")
    assert curve["name"] == "loss" and curve["x"] == [0, 0.5, 1, 1.5, 2] and curve["y"][-1] == pytest.approx(0.2)


def test_the_frontier_joins_only_models_that_no_cheaper_one_matches() -> None:
    spots = [
        report_charts.Spot(n, c, v, v, v) for n, c, v in (("a", 1, 0.9), ("b", 2, 0.95), ("c", 4, 0.6), ("d", 8, 0.7))
    ]
    drawing = report_charts.frontier(spots, [], x_title="s", y_title="accuracy", best="low", width=800)
    front = re.search(r'class="front" d="M([^"]*)"', drawing)
    assert front is not None and front[1].count("L") == 1  # a and c
    assert drawing.count('class="dot dim"') == 2


@pytest.mark.parametrize(
    "low, high, log", [(0.0, 1.0, False), (0.51, 0.98, False), (3.2e-2, 48.0, True), (-7.0, 1e4, False)]
)
def test_ticks_are_round_and_inside(low: float, high: float, log: bool) -> None:
    ticks = report_charts.Axis(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 12 and all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    assert all(len(f"{t:.6g}".lstrip("-0.").replace(".", "").rstrip("0")) <= 3 for t in ticks)


@pytest.mark.parametrize(
    "verdict, tone",
    [("collapsing: 3 of 8 modes", "bad"), ("memorises: 12 % of samples", "bad"),
     ("budget-limited: still improving", "warn"), ("good: indistinguishable from real; budget-limited: more", "good"),
     ("memorises: 9 %; good: indistinguishable", "bad"), ("failed: out of memory", "bad"), ("something new", "plain")],
)  # fmt: skip
def test_the_colour_of_a_verdict(verdict: str, tone: str) -> None:
    assert report_view.tone(verdict) == tone
