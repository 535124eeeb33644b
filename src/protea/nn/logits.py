"""What is done to logits at the end: `finish` of a `Decoder`."""

from __future__ import annotations

from torch import Tensor, nn


class LogitCap(nn.Module):
    """c tanh(logit / c) (Gemma team 2024, "Gemma 2").

    >>> import torch
    >>> LogitCap(2.0)(torch.tensor([0.0, 100.0])).tolist()
    [0.0, 2.0]
    """

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: Tensor) -> Tensor:
        return self.cap * (logits / self.cap).tanh()


class LogitScale(nn.Module):
    """Logits times a constant (Cohere's models)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.scale
