"""The learning-curve study of a data set: curves, paired comparisons, words, a picture."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protea.data import open_data
from protea.errors import ConfigError
from protea.inference.augment import Augmented, OnGenerated, verdicts
from protea.inference.contenders import Contender, Discriminative, Generative
from protea.inference.labelling import labelling
from protea.inference.learning_curve import (
    Comparison,
    Curve,
    Draws,
    Told,
    compare_curves,
    default_sizes,
    estimate,
    learning_curves,
)
from protea.models import MODELS
from protea.training import Budget
from protea.training import files as disk

COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#8f5db7", "#b08900", "#4a4a4a")


def study(
    data: Any, *, models: Sequence[str] | None = None, sizes: Sequence[int] | None = None, repeats: int = 10,
    unlabelled: int | None = None, weight: float = 1.0, budget: str = "5s", seed: int = 0,
    out: Path | str | None = None, tell: Told | None = None, synthetic: str | None = None, **opening: Any,
) -> dict[str, Any]:  # fmt: skip
    """Generative against discriminative classifiers on labelled data; writes curve.json, curve.png and curve.html.

    Args:
        data: what `protea.open` takes, with `opening` (target ...).
        models: names of generative models; None for naive Bayes.
        sizes: numbers of labels; None for 1, 2, 5, 10 ... (`default_sizes`).
        repeats: draws of the labelled rows.
        unlabelled: rows without labels that every generative model also learns from; None for none.
        weight: of one of them.
        budget: of one fit.
        out: folder; None: curves/NAME.
        tell: is told progress.
        synthetic: name of a generative model that learns from the same labelled rows; logistic regression then also
            learns from rows drawn from it, alone and with the real ones: 100 of each class, or "NAME:ROWS". None: none.

    Raises:
        NotSupported: no labels, or a model that cannot use what it is given. DataError: one class, labels that are
        numbers. ConfigError: unknown models, sizes that do not fit.
    """
    default = ["naive-bayes"] if "naive-bayes" in MODELS else ["gmm"]
    made = [Generative(name.strip(), None, Budget.parse(budget), weight) for name in models or default]
    dataset = open_data(data, seed=seed, **opening)
    draws = Draws(dataset, seed)
    chosen = list(sizes) if sizes else default_sizes(len(draws.pool), len(draws.labels.unique()))
    plain: list[Contender] = [Discriminative(1.0, "logistic (L2)"), Discriminative(1e-6, "logistic (no penalty)")]
    fed: list[Contender] = []
    if synthetic is not None:
        name, _, rows = synthetic.partition(":")
        if rows and not rows.isdecimal():
            raise ConfigError(f"{rows!r} in {synthetic!r} is not a number of rows.", "For instance: gmm:100.")
        source = Generative(name.strip(), None, Budget.parse(budget))
        fed = [made_of(plain[0], source, int(rows or 100)) for made_of in (OnGenerated, Augmented)]
    curves = learning_curves(draws, [*made, *plain], chosen, repeats, unlabelled, tell)
    more = learning_curves(draws, fed, chosen, repeats, None, tell)
    kinds = {kind: [c for c in curves if c.kind == kind and "+ unlabelled" not in c.name]
             for kind in ("generative", "discriminative")}  # fmt: skip
    pairs = [compare_curves(a, b, chosen) for a in kinds["generative"] for b in kinds["discriminative"]]
    gains = [compare_curves(c, next(p for p in kinds["generative"] if f"{p.name} + unlabelled" == c.name), chosen)
             for c in curves if c.name.endswith("+ unlabelled")]  # fmt: skip
    added = [compare_curves(c, kinds["discriminative"][0], chosen) for c in more]
    said = words(pairs, gains)
    said += [f"{a.first} against {a.second}: {verdicts(chosen, a.points)}" for a in added[1:]]
    curves = [*curves, *more]
    folder = Path(out) if out is not None else Path("curves") / dataset.name
    document: dict[str, Any] = {
        "data": dataset.name, "source": dataset.source, "fingerprint": dataset.fingerprint,
        "split_hash": dataset.split_hash, "target": dataset.target, "classes": list(labelling(dataset.space).names),
        "sizes": chosen, "repeats": repeats, "seed": seed, "pool": len(draws.pool), "test_rows": len(draws.test),
        "unlabelled": unlabelled, "weight": weight, "budget": budget,
        "synthetic": synthetic,
        "interval": "95 %, over draws of the training rows and over held-out rows",
        "curves": [c.to_json(chosen) for c in curves], "comparisons": [p.to_json(chosen) for p in pairs],
        "gains": [g.to_json(chosen) for g in gains], "words": said,
        "augmentation": [a.to_json(chosen) for a in added],
    }  # fmt: skip
    files = [folder / name for name in ("curve.json", "curve.png", "curve.html")]
    document["files"] = [str(f) for f in files]
    folder.mkdir(parents=True, exist_ok=True)
    draw(curves, chosen, f"{dataset.name}: {len(draws.test):,} held-out rows, {repeats} draws", files[1])
    disk.write_json(files[0], document)
    page = _page(document, files[1].read_bytes())
    disk.write(files[2], lambda partial: partial.write_text(page, encoding="utf-8"))
    return document


def words(pairs: Sequence[Comparison], gains: Sequence[Comparison]) -> list[str]:
    """What the comparisons say, a line each."""
    said = [f"{p.first} against {p.second}: {p.words}" for p in pairs]
    for g in gains:
        first = g.points[0]
        said.append(f"Rows without labels, {g.second}: {g.words} (Gain at the fewest labels: {first.value:+.3f}, "
                    f"{first.low:+.3f} .. {first.high:+.3f}.)")  # fmt: skip
    return said


def draw(curves: Sequence[Curve], sizes: Sequence[int], title: str, path: Path) -> None:
    """Accuracy and log loss against the number of labels, with 95 % bands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, what, label in zip(figure.subplots(1, 2), ("correct", "loss"), ("accuracy", "log loss (nats)")):
        for i, curve in enumerate(curves):
            points = [estimate(values) for values in getattr(curve, what)]
            colour = COLOURS[i % len(COLOURS)]
            style = "-" if curve.kind == "generative" else "--"
            style = ":" if curve.name.endswith("+ unlabelled") else style
            axis.plot(sizes, [p.value for p in points], style, color=colour, label=curve.name, marker="o", markersize=3)
            low = [max(p.low, 0.5 * p.value) for p in points]  # a log axis has no place for 0
            axis.fill_between(sizes, low, [p.high for p in points], color=colour, alpha=0.12, lw=0)
        axis.set_xscale("log")
        axis.set_xticks(list(sizes), [f"{n:,}" for n in sizes], fontsize=7)
        axis.minorticks_off()
        axis.set_xlabel("labels")
        axis.set_ylabel(label)
        axis.grid(alpha=0.2)
    axis.set_yscale("log")
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=9)
    disk.write(path, lambda partial: figure.savefig(partial, format="png", dpi=90))


def _page(document: dict[str, Any], png: bytes) -> str:
    """One self-contained page: the picture, the words, the figures."""
    head = "".join(f"<th>{n:,}</th>" for n in document["sizes"])
    rows = "".join(
        f"<tr><td>{html.escape(c['name'])}</td>"
        + "".join(
            f"<td>{p['accuracy']['value']:.3f}<br><small>{p['accuracy']['low']:.3f} .. {p['accuracy']['high']:.3f}"
            "</small></td>"
            for p in c["points"]
        )
        + "</tr>"
        for c in document["curves"]
    )
    said = "".join(f"<p>{html.escape(line)}</p>" for line in document["words"])
    title = html.escape(f"Learning curves of {document['data']}")
    facts = {
        k: document[k] for k in ("data", "target", "pool", "test_rows", "repeats", "seed", "interval", "split_hash")
    }
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>body{{font:15px/1.5 system-ui;max-width:60em;"
        "margin:2em auto;padding:0 1em}td,th{padding:.2em .8em;text-align:left}small{color:#777}img{max-width:100%}"
        f"</style><h1>{title}</h1>{said}<img alt='learning curves' src='data:image/png;base64,"
        f"{base64.b64encode(png).decode()}'><h2>Accuracy against labels</h2><table><tr><th></th>{head}</tr>{rows}"
        f"</table><pre>{html.escape(json.dumps(facts, indent=1))}</pre>\n"
    )
