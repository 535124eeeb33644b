"""A scaling law from a ladder of tiny models, and what it says of a larger one.

    python -m recipes.scaling tinyshakespeare.txt

Each rung is a network of two layers with 20 characters of training text a parameter (Hoffmann et al. 2022), so that
its compute is C = 6 N D. The law L(C) = E + A / C^alpha is fitted to all rungs but the last, and must foretell that,
which no fit has seen.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import torch

from protea.training.scaling import fit_scaling_law
from recipes.speedrun import CONTEXT, RUNGS, Rung, build, characters, run

WIDTHS = (16, 24, 32, 48, 64)
TOKENS_PER_PARAMETER = 20


def rung(width: int, vocabulary: int, tokens_per_parameter: float = TOKENS_PER_PARAMETER) -> tuple[Rung, int, int]:
    """A run of that width, its parameters without the embedding (the head's among them), and its tokens."""
    made = replace(RUNGS["shallow"], width=width, heads=max(1, width // 16), steps=1)
    model = build(made, vocabulary)
    n = sum(p.numel() for p in model.parameters()) - model.net.embed.weight.numel()
    steps = max(1, round(tokens_per_parameter * n / (made.batch * CONTEXT)))
    return replace(made, steps=steps), n, steps * made.batch * CONTEXT


def ladder(path: str, widths: tuple[int, ...] = WIDTHS, tokens_per_parameter: float = TOKENS_PER_PARAMETER,
           seed: int = 0) -> dict:  # fmt: skip
    """Run all widths, fit all but the last, foretell the last."""
    vocabulary = characters(path)[2]
    rows = []
    for width in widths:
        made, n, tokens = rung(width, vocabulary, tokens_per_parameter)
        found = run(made, path, seed)
        rows.append({"width": width, "parameters": n, "tokens": tokens, "compute": 6 * n * tokens,
                     "loss": found["validation_loss"], "seconds": found["seconds"]})  # fmt: skip
        print(f"width {width}: {n:,} parameters, {tokens:,} characters, {rows[-1]['loss']:.4f} nats", flush=True)
    law = fit_scaling_law([[r["compute"]] for r in rows[:-1]], [r["loss"] for r in rows[:-1]])
    foretold, met = law(rows[-1]["compute"]), rows[-1]["loss"]
    return {"rows": rows, "E": law.irreducible, "A": law.factors[0], "alpha": law.exponents[0], "error": law.error,
            "foretold": foretold, "met": met, "off": abs(foretold / met - 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="a text file")
    parser.add_argument("--out", help="write JSON here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = ladder(given.text, seed=given.seed)
    print(f"L(C) = {found['E']:.3f} + {found['A']:.3g} / C^{found['alpha']:.3f}; the last rung: foretold "
          f"{found['foretold']:.4f}, met {found['met']:.4f}, off by {100 * found['off']:.1f} %")  # fmt: skip
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
