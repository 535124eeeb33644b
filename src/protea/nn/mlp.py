"""Perceptrons: the plain one of a transformer, and a residual one that knows about class labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from protea.nn.activations import gelu_tanh
from protea.nn.context import Context
from protea.nn.dropout import Dropout


class MLP(nn.Module):
    """W_d a(W_u x + b_u) + b_d.

    Args:
        d_model: width of x.
        d_ff: width inside, often 4 d_model.
        activation: a.
        bias: whether there are b_u and b_d.

    >>> MLP(8, 32)(torch.zeros(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(
        self, d_model: int, d_ff: int, activation: Callable[[Tensor], Tensor] = gelu_tanh, bias: bool = True
    ) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(..., d_model) to the same."""
        return self.down(self.activation(self.up(x)))


class ResidualMLP(nn.Module):
    """h = W x + E[y];  h = h + W_2 a(W_1 a(h)), `depth` times;  out = V a(h).

    Residual blocks with activation first (He et al. 2016, "Identity mappings in deep residual networks").

    Args:
        inputs: entries of x; 0 is allowed, and gives a learned constant for each label.
        outputs: entries of the result.
        width: of the hidden layers.
        depth: residual blocks; 0 leaves one hidden layer.
        classes: labels that y takes; 0 for none.
        activation: makes the activation a.
        dropout: probability of zeroing a hidden unit of a block while training.
        gain: multiplies the last layer's initial weights; a small one starts near zero output
            and still lets gradients through.

    >>> net = ResidualMLP(3, 5, width=16, depth=2, classes=4)
    >>> net(torch.zeros(7, 3), torch.zeros(7, dtype=torch.int64)).shape
    torch.Size([7, 5])
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int = 128, depth: int = 2, classes: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU, dropout: float = 0.0, gain: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first = nn.Linear(inputs, width) if inputs else None
        self.constant = None if inputs else nn.Parameter(torch.randn(width))
        self.embed = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                activation(), nn.Linear(width, width), activation(), Dropout(dropout), nn.Linear(width, width)
            )
            for _ in range(depth)
        )
        self.last = nn.Sequential(activation(), nn.Linear(width, outputs))
        with torch.no_grad():
            for p in self.last[1].parameters():
                p.mul_(gain)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, outputs) of x (B, ...), flattened, and labels y (B,) where the net has classes."""
        h = self.constant.expand(len(x), -1) if self.first is None else self.first(x.flatten(1))
        if self.embed is not None:
            h = h + self.embed(y)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)
