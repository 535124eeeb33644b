"""Gated perceptrons (Shazeer 2020, "GLU variants improve transformer")."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from protea.nn.activations import gelu_tanh
from protea.nn.context import Context
from protea.nn.fused_layers import KINDS, GatedByHand, fuses


class GatedMLP(nn.Module):
    """W_d (a(W_g x) * W_u x): SwiGLU with a = silu, GeGLU with a = gelu.

    Args:
        d_model: width of x.
        d_ff: width inside; 8/3 d_model has the parameters of a plain MLP of 4 d_model.
        activation: a.

    >>> GatedMLP(8, 16)(torch.zeros(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, d_model: int, d_ff: int, activation: Callable[[Tensor], Tensor] = nn.functional.silu) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)
        self.activation = activation

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(..., d_model) to the same."""
        kind = KINDS.get(self.activation)
        if kind is not None and fuses(x, self.gate, self.up, self.down):
            out: Tensor = GatedByHand.apply(x, self.gate.weight, self.up.weight, self.down.weight, kind)
            return out
        return self.down(self.activation(self.gate(x)) * self.up(x))


def SwiGLU(d_model: int, d_ff: int) -> GatedMLP:
    """The gated perceptron of Llama.

    >>> sum(p.numel() for p in SwiGLU(8, 16).parameters())
    384
    """
    return GatedMLP(d_model, d_ff, torch.nn.functional.silu)


def GeGLU(d_model: int, d_ff: int) -> GatedMLP:
    """The gated perceptron of Gemma, with the tanh form of GELU."""
    return GatedMLP(d_model, d_ff, gelu_tanh)
