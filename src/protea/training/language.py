r"""Judging language models while they learn, in units that no tokenizer changes.

    bits per byte = sum_t -log p(x_t) / (ln 2 * bytes of text),

over all predicted tokens of held-out text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from protea.core import Model
from protea.errors import DataError
from protea.objectives.language import token_losses
from protea.training.batches import Source


class BitsPerByte:
    """A judge for `fit`: bits per byte of held-out rows of packed documents.

    Args:
        rows: of (T + 1) tokens, as `data.packing` makes them.
        begin: the id that begins a document.
        bytes_per_token: bytes of text that a predicted token stands for: 1 for bytes; for shards,
            `shards.bytes / (len(shards) - documents)`.
        limit: rows that are judged, spread evenly; None for all.
        batch: rows of one forward pass.
    """

    def __init__(
        self, rows: Source, begin: int, bytes_per_token: float = 1.0, *, limit: int | None = None, batch: int = 64
    ) -> None:
        if len(rows) == 0 or bytes_per_token <= 0:
            raise DataError(f"{len(rows)} rows of {bytes_per_token} bytes a token cannot be judged.",
                            "Hold some text out.")  # fmt: skip
        n = len(rows) if limit is None else min(limit, len(rows))
        self.index = torch.linspace(0, len(rows) - 1, n).round().long().split(batch)
        self.rows, self.begin, self.bytes_per_token = rows, begin, bytes_per_token

    @torch.no_grad()
    def __call__(self, model: Model) -> Mapping[str, float]:
        """{"bits_per_byte", "loss"}; the loss is nats per token."""
        device = next(model.parameters()).device
        parts = [token_losses(model, self.rows[index].x.to(device), self.begin) for index in self.index]
        nats = sum(float(total) for total, _ in parts) / sum(int(count) for _, count in parts)
        return {"bits_per_byte": nats / math.log(2) / self.bytes_per_token, "loss": nats}
