"""Every architecture of a language model on the same text, with the same number of parameters and the same time.

    python -m recipes.architectures CORPUS.txt --seconds 60 --parameters 300000 --tokenizer bytes

prints held-out bits per byte with their intervals, the parameters and the tokens seen, best first. One seed:
neighbours within each other's intervals are not told apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import protea
from protea.evaluation.likelihood import likelihood
from protea.models import MODELS
from protea.models.autoregressive.architectures import ARCHITECTURES
from protea.training.config import to_json

WIDTHS, DEPTHS = (32, 64, 96, 128, 192, 256, 384, 512), range(2, 13)  # widths that every architecture can share out


def parameters(name: str, space: Any, config: Any) -> int:
    """Of the network, counted without making it."""
    with torch.device("meta"):
        return sum(p.numel() for p in MODELS[name].build(space, config).parameters())


def sized(name: str, space: Any, wanted: int) -> Any:
    """The config of the depth and width whose network has about as many parameters as wanted."""
    sizes = {}
    for layers in DEPTHS:
        for width in WIDTHS:
            config = ARCHITECTURES[name].scaled(layers, width, space.length)
            count = parameters(name, space, config)
            sizes[count] = config
            if count > 2 * wanted:
                break
    return sizes[min(sizes, key=lambda n: abs(n - wanted))]


def table(
    corpus: str, names: list[str], *, seconds: float, wanted: int, seed: int, **opening: Any
) -> list[dict[str, Any]]:  # fmt: skip
    """One row an architecture, best first."""
    data = protea.open(corpus, **opening)
    rows = []
    for name in names:
        config = sized(name, data.space, wanted)
        with tempfile.TemporaryDirectory() as folder:
            run = protea.fit(
                name, data, budget=f"{seconds}s", seed=seed, out=Path(folder) / name, settings=to_json(config),
                progress="none",
            )  # fmt: skip
            found = likelihood(run.model, data.holdout, seed=seed)
            result = run.facts()["result"]
        assert found is not None
        row = {
            "model": name, "value": found.figure.value, "low": found.figure.low, "high": found.figure.high,
            "unit": found.unit, "parameters": parameters(name, data.space, config), "steps": result["steps"],
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    return sorted(rows, key=lambda r: r["value"])


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("corpus")
    ask.add_argument("--models", nargs="*", default=list(ARCHITECTURES))
    ask.add_argument("--seconds", type=float, default=60.0)
    ask.add_argument("--parameters", type=int, default=300_000)
    ask.add_argument("--tokenizer", default="bytes")
    ask.add_argument("--block", type=int, default=128)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--out", type=Path, help="write the rows here, as JSON")
    a = ask.parse_args()
    rows = table(
        a.corpus, a.models, seconds=a.seconds, wanted=a.parameters, seed=a.seed,
        tokenizer=a.tokenizer, block=a.block,
    )  # fmt: skip
    print(f"\n| model | {rows[0]['unit']} | 95 % | parameters | steps |\n|---|---|---|---|---|")
    for r in rows:
        interval = f"{r['low']:.3f} - {r['high']:.3f}"
        print(f"| {r['model']} | {r['value']:.3f} | {interval} | {r['parameters']:,} | {r['steps']:,} |")
    if a.out:
        facts = {name: value for name, value in vars(a).items() if name not in ("out", "corpus", "models")}
        a.out.write_text(json.dumps({"corpus": Path(a.corpus).name, **facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
