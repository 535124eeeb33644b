"""Activations that torch has under no name of their own."""

from __future__ import annotations

from torch import Tensor, nn


def gelu_tanh(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), GPT's GELU (Hendrycks & Gimpel 2016)."""
    return nn.functional.gelu(x, approximate="tanh")


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, "Primer")."""
    return nn.functional.relu(x).square()
