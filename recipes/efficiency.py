"""What each architecture costs at one number of parameters: weights, operations, memory of a text, time.

    python -m recipes.efficiency --parameters 300000 --context 256

prints, for each architecture, all parameters and those one token uses, counted operations of a training step a token
(matrix products, attention and grouped products; beside 6 N of the active ones), bytes remembered of a text of
`--context` tokens in float32, and milliseconds on this machine of a training step and of a decoded token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.models.autoregressive.decoder import Decoder
from protea.models.autoregressive.footprint import footprint
from protea.models.autoregressive.language import LanguageModel
from protea.spaces import Tokens
from recipes.architectures import sized

BATCH = 8


def _attention(q: list[int], k: list[int], v: list[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Two products, q k^T and p v, of the whole square: what causality would spare is computed and masked."""
    (b, h, t, d), s = q, k[2]
    return 2 * b * h * t * s * (d + v[3])


def _attention_backward(grad: list[int], q: list[int], k: list[int], v: list[int], *_: Any, **__: Any) -> int:
    """Five products for two: the scores are computed again."""
    (b, h, t, d), s = q, k[2]
    return 2 * b * h * t * s * (3 * d + 2 * v[3])


def _grouped(x: list[int], weight: list[int], *_: Any, **__: Any) -> int:
    """Rows times the matrix of their group; or, for the gradient of the matrices, columns of each group."""
    return 2 * x[0] * x[1] * weight[-1]


ATEN = torch.ops.aten
COUNTED = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    ATEN._grouped_mm: _grouped,
}


def operations(model: LanguageModel, tokens: Tensor) -> float:
    """Of a forward and a backward pass, for a token: multiplications and additions both count."""
    model.zero_grad()
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counted:
        loss(model, tokens).backward()
    return counted.get_total_flops() / tokens.numel()


def loss(model: LanguageModel, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model.logits(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())


def memory(model: LanguageModel, tokens: Tensor) -> int:
    """Bytes that a cache holds after reading a text (1, T), whatever kind its layers keep."""
    cache = model.new_cache(1, tokens.shape[1])
    with torch.no_grad():
        model.logits(tokens, cache)
    held: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for part in value.values():
                walk(part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                walk(part)
        elif hasattr(value, "__dict__"):
            walk(vars(value))

    walk(cache)
    return sum(held.values())


def milliseconds(work: Callable[[], object], times: int = 7) -> float:
    """Median of some calls, after one that warms up."""
    work()
    taken = []
    for _ in range(times):
        tick = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - tick))
    return statistics.median(taken)


def row(name: str, parameters: int, context: int) -> dict[str, Any]:
    """The figures of one architecture."""
    torch.manual_seed(0)
    space = Tokens(context)
    model = language_model(name, space, sized(name, space, parameters))
    tokens = torch.randint(256, (BATCH, context))
    counted = operations(model.train(), tokens)
    step = milliseconds(lambda: (model.zero_grad(), loss(model, tokens).backward()))
    model.eval()

    def decode(new: int = 16) -> None:
        cache = model.new_cache(1, context)
        with torch.inference_mode():
            for t in range(new):
                model.logits(tokens[:1, t : t + 1], cache)

    active = footprint(model.net).active if isinstance(model.net, Decoder) else None
    return {
        "model": name, "parameters": sum(p.numel() for p in model.parameters()), "active": active,
        "operations": counted, "over_6n": None if active is None else counted / (6 * active),
        "text_bytes": memory(model, tokens[:1]), "step_ms": step, "token_ms": milliseconds(decode) / 16,
    }  # fmt: skip


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--models", nargs="*", default=list(ARCHITECTURES))
    ask.add_argument("--parameters", type=int, default=300_000)
    ask.add_argument("--context", type=int, default=256)
    ask.add_argument("--out", type=Path, help="write the rows here, as JSON")
    a = ask.parse_args()
    rows = [row(name, a.parameters, a.context) for name in a.models]
    print("| model | parameters | of a token | operations a token | over 6 N | text, KB | step, ms | token, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        active, ratio = ("-", "-") if r["active"] is None else (f"{r['active']:,}", f"{r['over_6n']:.2f}")
        print(
            f"| {r['model']} | {r['parameters']:,} | {active} | {r['operations']:,.0f} | {ratio} "
            f"| {r['text_bytes'] / 1024:.0f} | {r['step_ms']:.0f} | {r['token_ms']:.2f} |"
        )
    if a.out:
        a.out.write_text(json.dumps({"parameters": a.parameters, "context": a.context, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
