"""One setting of an architecture, several values, everything else equal: the same steps, seeds and text.

    python -m recipes.ablation CORPUS.txt deepseek-v3 n_dense 0 1 2 --steps 300 --seeds 3
    python -m recipes.ablation CORPUS.txt blt decoder '[1,64,2,2,176]' '[2,64,2,2,176]' --steps 300

prints held-out bits per byte for each value: the mean over seeds with its 95 % interval (Student's t), the parameters.
Values are JSON. What a value costs in parameters is shown, not held equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import protea
from protea.evaluation.likelihood import likelihood
from protea.models.autoregressive.architectures import ARCHITECTURES
from protea.training.config import to_json


def ablate(
    corpus: str, name: str, setting: str, values: list[Any], *, steps: int, seeds: int, layers: int = 3,
    width: int = 64, **opening: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row a value: {"value", "bits", "parameters"}, bits with one entry a seed."""
    data = protea.open(corpus, **opening)
    settings = to_json(ARCHITECTURES[name].scaled(layers, width, data.space.length))  # type: ignore[attr-defined]
    if setting not in settings:
        raise SystemExit(f"{name} has no setting {setting}. Known: {', '.join(settings)}.")
    rows = []
    for value in values:
        bits, parameters = [], 0
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                run = protea.fit(
                    name, data, budget=f"{steps}steps", seed=seed, out=Path(folder) / name,
                    settings=settings | {setting: value}, progress="none",
                )  # fmt: skip
                found = likelihood(run.model, data.holdout, seed=seed)
                assert found is not None
                bits.append(found.figure.value)
                parameters = run.facts()["result"]["parameters"]
        rows.append({"value": value, "bits": bits, "parameters": parameters})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; nan from one value."""
    from scipy import stats

    if len(values) < 2:
        return values[0], float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("corpus")
    ask.add_argument("model", choices=list(ARCHITECTURES))
    ask.add_argument("setting")
    ask.add_argument("values", nargs="+")
    ask.add_argument("--steps", type=int, default=300)
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--layers", type=int, default=3)
    ask.add_argument("--width", type=int, default=64)
    ask.add_argument("--block", type=int, default=128)
    a = ask.parse_args()
    rows = ablate(
        a.corpus, a.model, a.setting, [json.loads(v) for v in a.values], steps=a.steps, seeds=a.seeds,
        layers=a.layers, width=a.width, block=a.block,
    )  # fmt: skip
    print(f"\n| {a.setting} | bits per byte | 95 % | parameters |\n|---|---|---|---|")
    for r in rows:
        mean, half = interval(r["bits"])
        print(f"| {r['value']} | {mean:.3f} | +- {half:.3f} | {r['parameters']:,} |")


if __name__ == "__main__":
    main()
