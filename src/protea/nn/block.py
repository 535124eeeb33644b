r"""A transformer block is a list of residual branches; a network is a list of blocks, each as it likes.

    x <- x + gate * post(mixer(modulate(norm(x))))

Pre-norm blocks leave `post` out, Gemma norms twice, diffusion transformers modulate and gate.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from protea.nn.context import Context


class Branch(nn.Module):
    """One residual branch, of constructed parts.

    Args:
        norm: of the residual stream.
        mixer: called as mixer(h, ctx): attention, a perceptron, a state-space layer.
        post: applied to what the mixer says, or None.
        modulate: called as modulate(h, ctx), gives modulated h and a gate that multiplies the branch; or None.
    """

    def __init__(
        self, norm: nn.Module, mixer: nn.Module, post: nn.Module | None = None, modulate: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm, self.mixer, self.post, self.modulate = norm, mixer, post, modulate

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        h, gate = self.norm(x), None
        if self.modulate is not None:
            h, gate = self.modulate(h, ctx)
        h = self.mixer(h, ctx)
        if self.post is not None:
            h = self.post(h)
        return x + h if gate is None else x + gate * h


class Block(nn.Module):
    """Branches in turn: `Branch`, or those of `branches.py`.

    >>> import torch
    >>> from protea.nn.context import plain_context
    >>> from protea.nn.mlp_gated import SwiGLU
    >>> from protea.nn.norm import RMSNorm
    >>> Block([Branch(RMSNorm(8), SwiGLU(8, 16))])(torch.zeros(1, 2, 8), plain_context(2)).shape
    torch.Size([1, 2, 8])
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        for branch in self.branches:
            x = branch(x, ctx)
        return x
