r"""One dial for a language model: its depth L sets all the rest (nanochat, Karpathy 2025, keeps one knob so).

    width       d = 64 L, heads of 64, or of 32 up to a width of 256;  d_ff = 8/3 d
    parameters  N = 12 L d^2 + the head's V d
    tokens      D = 20 N                                        (Hoffmann et al. 2022)
    batch       B = 2^19 (D / D_12)^0.383 tokens, a power of two  (Bergsma et al. 2025, "Power lines")
    steps       D / B
    rates       Muon 0.02, AdamW 6e-3 (d / 768)^(-1/2), both times (B / 2^19)^(1/2), at least 1/4
    decay       0.2 (12 / L)^2 of matrices, at most 0.2; warm-up-stable-decay, the last 40 % of the steps falling

with D_12 the tokens of L = 12. Muon's rate, of updates with unit spectral norm, does not change with the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from protea.errors import ConfigError
from protea.training.muon import muon
from protea.training.optim import OptimizerFactory
from protea.training.schedule import Schedule, warmup_stable_decay

REFERENCE_DEPTH, REFERENCE_BATCH = 12, 1 << 19


@dataclass(frozen=True)
class Dial:
    """What a depth stands for; see the module.

    Args:
        depth, d_model, n_heads, d_ff: of the network.
        context: tokens of a row.
        parameters: N, without the embedding.
        tokens: D.
        batch_tokens, rows: of a step; rows = batch_tokens / context.
        steps: of the run.
        matrix_rate, table_rate: learning rates of Muon and AdamW.
        weight_decay: of matrices.
    """

    depth: int
    d_model: int
    n_heads: int
    d_ff: int
    context: int
    parameters: int
    tokens: int
    batch_tokens: int
    rows: int
    steps: int
    matrix_rate: float
    table_rate: float
    weight_decay: float

    def optimizer(self) -> OptimizerFactory:
        """Muon and AdamW at the dial's rates."""
        return muon(self.matrix_rate, adam_lr=self.table_rate, weight_decay=self.weight_decay)

    def schedule(self) -> Schedule:
        """Warm-up, plateau, and a fall to zero."""
        return warmup_stable_decay(warmup=max(1, min(100, self.steps // 20)), decay=0.4)

    def shape(self) -> dict[str, Any]:
        """The fields of a Llama config."""
        names = ("d_model", "n_heads", "d_ff", "context")
        return {"n_layers": self.depth, "n_kv_heads": self.n_heads, **{n: getattr(self, n) for n in names}}


def dial(depth: int, vocabulary: int, *, context: int = 1024, tokens: int | None = None) -> Dial:
    """All settings of a language model of that depth.

    Args:
        depth: L, layers.
        vocabulary: V.
        context: tokens of a row.
        tokens: to train on; None for D.

    Raises:
        ConfigError: a depth, vocabulary, context or number of tokens that is not positive.

    >>> d = dial(12, 50304)
    >>> d.d_model, d.n_heads, d.batch_tokens, round(d.parameters / 1e6)
    (768, 12, 524288, 124)
    >>> dial(2, 65, context=64, tokens=10**6).rows
    64
    """
    if min(depth, vocabulary, context, 1 if tokens is None else tokens) < 1:
        raise ConfigError(f"Depth {depth}, {vocabulary} ids, context {context} and {tokens} tokens make no run.",
                          "All must be positive.")  # fmt: skip
    d = 64 * depth
    parameters = _parameters(depth, vocabulary)
    asked = 20 * parameters if tokens is None else tokens
    reference = 20 * _parameters(REFERENCE_DEPTH, vocabulary)
    size = REFERENCE_BATCH * (asked / reference) ** 0.383
    batch = max(context, 1 << round(math.log2(max(size, 1))))
    # Few steps teach little: at least 200, where the tokens allow it.
    while batch > context and asked // batch < 200:
        batch //= 2
    rows = max(1, batch // context)
    pace = (rows * context / REFERENCE_BATCH) ** 0.5
    return Dial(
        depth, d, d // (64 if d > 256 else 32), 16 * round(d / 6), context, parameters, asked, rows * context, rows,
        max(1, asked // (rows * context)), 0.02 * max(pace, 0.25), 6e-3 * (d / 768) ** -0.5 * max(pace, 0.25),
        0.2 * (REFERENCE_DEPTH / depth) ** 2 if depth >= REFERENCE_DEPTH else 0.2,
    )  # fmt: skip


def _parameters(depth: int, vocabulary: int) -> int:
    return 12 * depth * (64 * depth) ** 2 + vocabulary * 64 * depth
