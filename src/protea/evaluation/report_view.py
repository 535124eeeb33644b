"""From the contract's document to what the page says: plain words, cells and charts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from protea.evaluation import report_charts as charts


class Metric(NamedTuple):
    """How to read a figure: its short title, which end is good, and what it means in a sentence."""

    title: str
    better: str  # "low", "high", "half" (0.5 is perfect), "none"
    meaning: str


def _metrics() -> dict[str, Metric]:
    text = files("protea.evaluation").joinpath("report_metrics.json").read_text(encoding="utf-8")
    return {name: Metric(**facts) for name, facts in json.loads(text).items()}


METRICS = _metrics()
LEADING = {  # beside the ranking figure, the first three of these that were measured
    "image": ("c2st_accuracy", "frechet", "coverage"),
    "vector": ("c2st_accuracy", "mmd", "coverage"),
    "series": ("c2st_accuracy", "mmd", "coverage"),
    "table": ("c2st_accuracy", "tstr_accuracy", "tstr_r2", "association_error"),
    "tokens": ("c2st_accuracy", "bits_per_byte_ngram", "distinct_n"),
}
EXACTNESS = {
    "exact": ("=", "exact", "This model computes its likelihood exactly."),
    "bound": ("≤", "bound", "A bound: the model is at least this good. Never ranked against exact figures."),
    "estimate": ("≈", "estimate", "An estimate: it may err either way. Never ranked against exact figures."),
}


def number(value: float | None) -> str:
    """Three significant digits, as a person writes them.

    >>> number(0.51234), number(12345.6), number(None), number(1e-7)
    ('0.512', '12,346', '–', '1.0e-07')
    """
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and size < 1e-3:
        return f"{value:.1e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return (
        f"{value:.{max(0, 2 - max(0, math.floor(math.log10(size)) if size else 0))}f}" if size >= 1 else f"{value:.3f}"
    )


def interval_text(figure: dict[str, Any]) -> str:
    """The interval of a figure, or nothing where it has none."""
    low, high = figure.get("low"), figure.get("high")
    return "" if low is None or high is None else f"{number(low)} – {number(high)}"


def value_text(value: Any) -> str:
    """A fact of a protocol or an environment, in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {value_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(value_text(v) for v in value)
    return str(value)


def build(document: dict[str, Any], exhibits: dict[str, dict[str, Any]], real: dict[str, Any]) -> dict[str, Any]:
    """Everything the template needs."""
    rows, data = document["rows"], document["data"]
    models = [r for r in rows if r["kind"] == "model"]
    ranked = document["environment"].get("ranked_by") or "c2st_accuracy"
    names = metric_names(rows, data["space"], ranked)
    leading = [n for n in names if n in LEADING[data["space"]]][:3]
    return {
        "data": data,
        "split": document["split"],
        "environment": document["environment"],
        "title": data["name"],
        "lede": lede(document, models),
        "answers": answers(models),
        "ranked": ranked,
        "leading": leading,
        "metrics": {n: METRICS.get(n, Metric(n.replace("_", " "), "none", "")) for n in names},
        "board": [board_row(r, rows, ranked, leading) for r in sort_rows(rows)],
        "figures": [(r, [r["metrics"].get(n) for n in names]) for r in sort_rows(rows)],
        "names": names,
        "protocols": protocols(rows, names),
        "gallery": gallery(rows, exhibits, real),
        "curves": learning_curves(models, exhibits),
        "frontier": frontier(models, rows, ranked),
        "pairs": pairs(rows, exhibits),
        "preflight": preflight(real),
        "real": real.get("samples"),
    }


def metric_names(rows: Sequence[dict[str, Any]], space: str, ranked: str) -> list[str]:
    """Names of all figures met: the ranking one first, then the space's leading ones, then the others as registered."""
    met = dict.fromkeys(n for r in rows for n in r["metrics"])
    order = [ranked, *LEADING[space], *METRICS, *met]
    return [n for n in dict.fromkeys(order) if n in met]


def sort_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ceiling, models by rank, failures, and the other null rows."""
    ceiling = null_rows(rows).get("ceiling")

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        gap = row["metrics"].get("gap") or row["metrics"].get("c2st_accuracy") or {}
        value = gap.get("value")
        return (
            row is not ceiling,
            row["kind"] == "null",
            *(row["rank"] or (math.inf, math.inf)),
            math.inf if value is None else value,
        )

    return sorted(rows, key=place)


def lede(document: dict[str, Any], models: Sequence[dict[str, Any]]) -> str:
    """What was done, in a sentence."""
    split, environment = document["split"], document["environment"]
    families = len({m["family"] for m in models})
    budget = environment.get("budget")
    seeds = environment.get("seeds") or 1
    words = f"{len(models)} model{'s' * (len(models) != 1)} from {families} famil{'ies' if families != 1 else 'y'}"
    words += f", {budget} each" if budget else ""
    words += f", {seeds} seeds" if seeds > 1 else ""
    seen = (
        f"All saw the same {split['train']:,} training rows and are judged on {split['holdout']:,} that none has seen."
    )
    return f"{words}. {seen}"


def answers(models: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The three questions a user comes with, answered from the rows."""
    first = [m for m in sort_rows(models) if m["rank"] and m["rank"][0] == 1]
    if not first:
        none = {"answer": "None yet", "detail": "No model finished; the table says why."}
        return [{"question": "Which model?", "tone": "bad", **none}]
    best = first[0]
    names = [m["name"] for m in first]
    if len(first) == 1:
        alone = sum(m["rank"] is not None for m in models) == 1
        why = "The only model that was ranked." if alone else "Its interval lies clear of every other model's."
        which = {"answer": best["name"], "detail": why}
    else:
        cheapest = min(first, key=lambda m: m["cost"]["fit_s"] if m["cost"]["fit_s"] is not None else math.inf)
        which = {
            "answer": best["name"],
            "detail": f"Shares first place with {listing(names[1:])}: their intervals overlap. "
            f"The cheapest of them is {cheapest['name']}.",
        }
    return [
        {"question": "Which model?", "tone": "plain", **which},
        {"question": "Is it any good?", **quality(best)},
        {"question": "May it be released?", **release(best)},
    ]


def quality(best: dict[str, Any]) -> dict[str, str]:
    """The best model between floor and ceiling, in the verdict's words."""
    head, _, rest = best["verdict"].partition(":")
    said = [f"{sentence(rest.strip())}."] if rest.strip() else []
    figure = best["metrics"].get("gap")
    if figure and figure["value"] is not None:
        said.append(
            f"On a scale from 0 (real held-out data) to 1 (shuffled columns), {best['name']} stands at "
            f"{number(figure['value'])} ({interval_text(figure)})."
        )
    return {"tone": tone(best["verdict"]), "answer": sentence(head) or "No verdict", "detail": " ".join(said)}


def release(best: dict[str, Any]) -> dict[str, str]:
    """The copy audit of the best model."""
    audit = best["audit"]
    copies = best["metrics"].get("copies")
    passed = audit.get("passed")
    facts = []
    if copies and copies["value"] is not None:
        expected = audit.get("expected")
        usual = f" ({expected:.0%} is expected by chance)" if isinstance(expected, float) else ""
        facts.append(f"{copies['value']:.1%} of its samples lie suspiciously close to a training row{usual}.")
    exact = audit.get("exact_copies")
    if isinstance(exact, int):
        facts.append(
            f"{exact:,} exact cop{'ies' if exact != 1 else 'y'} of training rows."
            if exact
            else "No exact copy of a training row."
        )
    facts.append("This audit looks for copies; it is not a proof of privacy.")
    if passed is None:
        return {"tone": "plain", "answer": "Not audited", "detail": facts[-1]}
    if passed:
        return {"tone": "good", "answer": "No copying found", "detail": " ".join(facts)}
    return {"tone": "bad", "answer": "Not yet: it copies", "detail": " ".join(facts)}


def null_rows(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The null rows by what they mark: ceiling, floor, copier."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] == "null":
            words = f"{row['name']} {row['family']}".lower()
            kind = "copier" if "cop" in words else "floor" if "shuffl" in words or "floor" in words else "ceiling"
            found.setdefault(kind, row)
    return found


def board_row(
    row: dict[str, Any], rows: Sequence[dict[str, Any]], ranked: str, leading: Sequence[str]
) -> dict[str, Any]:
    """One row of the leaderboard."""
    figure = row["metrics"].get(ranked)
    nulls = null_rows(rows)
    kind = next((k for k, r in nulls.items() if r is row), "")
    shown = [f for r in rows if (f := r["metrics"].get(ranked)) and f["value"] is not None]
    drawing = ""
    if figure and figure["value"] is not None:
        marks = [
            (k, r["metrics"][ranked]["value"]) for k, r in nulls.items() if k != "copier" and ranked in r["metrics"]
        ]
        ends = [v for f in shown for v in (f["value"], f["low"], f["high"]) if v is not None]
        domain = (0.45, 1.0) if ranked == "c2st_accuracy" else charts.span([*ends, 0.0])
        low, high = (figure[k] if figure[k] is not None else math.nan for k in ("low", "high"))
        drawing = charts.interval(figure["value"], low, high, domain, [(k, v) for k, v in marks if v is not None])
    return {
        "row": row,
        "null": kind,
        "rank": rank_text(row["rank"]),
        "figure": figure,
        "interval": drawing,
        "leading": [row["metrics"].get(n) for n in leading],
        "copies": row["metrics"].get("copies"),
        "passed": row["audit"].get("passed"),
        "exactness": EXACTNESS[row["likelihood"]["exactness"]] if row["likelihood"] else None,
        "tone": tone(row["verdict"]),
        "verdict": clauses(row["verdict"]),
        "cost": cost_text(row["cost"]),
        "failed": row["verdict"].startswith("failed"),
    }


def rank_text(rank: Sequence[int] | None) -> str:
    """1, or 1-3 where intervals overlap."""
    if not rank:
        return "–"
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def cost_text(cost: dict[str, Any]) -> dict[str, str]:
    """Costs with their units."""
    fit, parameters, memory = cost["fit_s"], cost["parameters"], cost["peak_mb"]
    return {
        "fit": "–" if fit is None else duration(fit),
        "samples": number(cost["samples_per_s"]),
        "parameters": "–" if parameters is None else charts.label(float(parameters)),
        "memory": "–" if memory is None else f"{memory:,.0f} MB",
    }


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(0.042), duration(20.3), duration(240)
    ('0.04 s', '20 s', '4 min')
    """
    if seconds < 10:
        return f"{seconds:.{1 if seconds >= 1 else 2}f} s"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


TONES = {
    "good": "good", "ceiling": "good", "fair": "warn", "budget-limited": "warn",
    "poor": "bad", "memorises": "bad", "collapsing": "bad", "failed": "bad",
}  # fmt: skip


def tone(verdict: str) -> str:
    """The colour of a verdict, from the word it begins with: the worst finding comes first.

    >>> tone("memorises: 12 % of samples; good: indistinguishable"), tone("floor")
    ('bad', 'plain')
    """
    return TONES.get(verdict.partition(":")[0].strip().lower(), "plain")


def sentence(text: str) -> str:
    """The first letter raised."""
    return text[:1].upper() + text[1:]


def clauses(verdict: str) -> tuple[str, str]:
    """The worst finding, and the others."""
    first, _, rest = verdict.partition("; ")
    return sentence(first), sentence(rest)


def listing(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def title(name: str) -> str:
    """A metric's title."""
    return sentence(METRICS[name].title if name in METRICS else name.replace("_", " "))


def protocols(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each figure: its meaning, the protocol all rows share, and where rows differ."""
    found = []
    for name in ("likelihood", *names):
        figures = [(r["name"], r["likelihood"] if name == "likelihood" else r["metrics"].get(name)) for r in rows]
        named = [(who, f.get("protocol") or {}) for who, f in figures if f]
        if not named:
            continue
        keys = dict.fromkeys(k for _, p in named for k in p)
        shared = {k: named[0][1].get(k) for k in keys if all(p.get(k) == named[0][1].get(k) for _, p in named)}
        differ = [(k, [(who, p[k]) for who, p in named if k in p]) for k in keys if k not in shared]
        meaning = (
            "Mean negative log-likelihood of held-out rows in the user's units: lower is better."
            if name == "likelihood"
            else ""
        )
        metric = METRICS.get(name)
        found.append(
            {
                "name": name,
                "title": title(name),
                "meaning": metric.meaning if metric else meaning,
                "shared": shared,
                "differ": differ,
            }
        )
    return found


def gallery(
    rows: Sequence[dict[str, Any]], exhibits: dict[str, dict[str, Any]], real: dict[str, Any]
) -> list[dict[str, Any]]:
    """Generated samples of each model, each beside the real ones in the same form."""
    truth = real.get("samples") or {}
    found = []
    for row in sort_rows(rows):
        shown = exhibits.get(row["name"], {}).get("samples")
        if row["kind"] != "model" or not shown:
            continue
        drawing = None
        if truth.get("dots") and shown.get("dots"):
            drawing = charts.scatter(truth["dots"], shown["dots"], f"Samples of {row['name']} over the real rows")
        found.append(
            {
                "row": row,
                "shown": shown,
                "scatter": drawing,
                "tone": tone(row["verdict"]),
                "verdict": clauses(row["verdict"]),
            }
        )
    if truth.get("dots"):
        truth["scatter"] = charts.scatter(truth["dots"], None, "Real rows")
    return found


def learning_curves(models: Sequence[dict[str, Any]], exhibits: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One small chart a model that was trained in steps."""
    found = []
    for row in sort_rows(models):
        series = [(c["name"], c["x"], c["y"]) for c in exhibits.get(row["name"], {}).get("curves", ())][:4]
        if series:
            unit = exhibits[row["name"]]["curves"][0].get("unit", "step")
            alt = f"Learning curve of {row['name']}: " + ", ".join(f"{n} ends at {number(b[-1])}" for n, _, b in series)
            names = [n.replace("_", " ") for n, _, _ in series]
            found.append({"name": row["name"], "svg": charts.curve(series, alt, unit), "series": names})
    return found


def frontier(models: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], ranked: str) -> list[tuple[str, Any]]:
    """The quality-against-cost chart, drawn for a desk and for a phone."""
    spots = []
    for m in models:
        figure, seconds = m["metrics"].get(ranked), m["cost"]["fit_s"]
        if figure and figure["value"] is not None and seconds is not None:
            low, high = (figure[k] if figure[k] is not None else figure["value"] for k in ("low", "high"))
            spots.append(charts.Spot(m["name"], max(seconds, 0.01), figure["value"], low, high))
    if not spots:
        return []
    words = {"ceiling": "real data", "floor": "shuffled columns"}
    levels = [
        (k, words[k], f["value"])
        for k, r in null_rows(rows).items()
        if k in words and (f := r["metrics"].get(ranked)) and f["value"] is not None
    ]
    metric = METRICS.get(ranked)
    best = "high" if metric and metric.better == "high" else "low"
    named = {"x_title": "training time, seconds", "y_title": title(ranked), "best": best}
    return [
        (kind, charts.frontier(spots, levels, width=width, **named))
        for kind, width in (("wide", 1080), ("narrow", 380))
    ]


def pairs(rows: Sequence[dict[str, Any]], exhibits: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The closest generated-training pairs of each row that has them."""
    found = []
    for row in sort_rows(rows):
        shown = exhibits.get(row["name"], {}).get("pairs") or []
        if shown:
            found.append({"row": row, "pairs": shown[:4], "passed": row["audit"].get("passed")})
    return found


def preflight(real: dict[str, Any]) -> dict[str, Any] | None:
    """What was seen in the data before training."""
    facts = real.get("preflight")
    if not isinstance(facts, dict):
        return None
    columns = facts.get("columns")
    table = columns if isinstance(columns, list) and columns and isinstance(columns[0], dict) else []
    heads = list(dict.fromkeys(k for c in table for k, v in c.items() if not isinstance(v, (dict, list))))
    plain = {k: v for k, v in facts.items() if k not in ("warnings", "columns") and v not in (None, [], {})}
    return {
        "warnings": facts.get("warnings", []),
        "facts": plain,
        "heads": heads,
        "columns": table[:60],
        "more": max(0, len(table) - 60),
    }
