"""How Hugging Face folders spell mixtures of experts: one matrix an expert, where ours are stacked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protea.models.autoregressive.architecture import Weight

EXPERT = ("gate_proj", "up_proj", "down_proj")  # Mixtral calls them w1, w3 and w2


def experts(ours: str, theirs: str, n: int, names: Sequence[str] = EXPERT) -> Weight:
    """The n experts of a layer: gate_up (E, 2 d_ff, d_model) and down (E, d_model, d_ff) of ours."""

    def load(tensors: list[Tensor]) -> list[Tensor]:
        gates, ups, downs = tensors[:n], tensors[n : 2 * n], tensors[2 * n :]
        both = [torch.cat(pair) for pair in zip(gates, ups, strict=True)]
        return [torch.stack(both), torch.stack(downs)]

    def save(tensors: list[Tensor]) -> list[Tensor]:
        gate, up = tensors[0].chunk(2, 1)
        return [*gate.unbind(), *up.unbind(), *tensors[1].unbind()]

    spelled = tuple(f"{theirs}.{i}.{name}.weight" for name in names for i in range(n))
    return Weight((f"{ours}.gate_up", f"{ours}.down"), spelled, load, save)
