r"""Residual branches beside the pre-norm one of `block.py`.

parallel   x <- x + sum_i mixer_i(norm(x))      one norm, mixers side by side (Wang & Komatsuzaki 2021, "GPT-J")
post-norm  x <- norm(x + mixer(x))              as in the first transformer (Vaswani et al. 2017) and GPT-1
"""

from __future__ import annotations

from torch import Tensor, nn

from protea.nn.context import Context


class Parallel(nn.Module):
    """A mixer that is the sum of mixers of the same input.

    >>> import torch
    >>> from protea.nn.context import plain_context
    >>> from protea.nn.mlp_gated import SwiGLU
    >>> Parallel(SwiGLU(8, 16), SwiGLU(8, 24))(torch.zeros(1, 2, 8), plain_context(2)).shape
    torch.Size([1, 2, 8])
    """

    def __init__(self, *mixers: nn.Module) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        first, *rest = [mixer(h, ctx) for mixer in self.mixers]
        for more in rest:
            first = first + more
        return first


class PostNorm(nn.Module):
    """norm(x + mixer(x)), in the place of a `Branch`."""

    def __init__(self, mixer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.mixer, self.norm = mixer, norm

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.norm(x + self.mixer(x, ctx))
