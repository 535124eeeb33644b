r"""Mixture of experts (Shazeer et al. 2017; DeepSeekMoE: Dai et al. 2024).

    y_t = shared(u_t) + sum_{i chosen for t} g_{t,i} expert_i(u_t),   expert_i(u) = D_i (silu(G_i u) * U_i u).

Nothing is dropped and nothing is padded: the pairs of a token and an expert are sorted by expert, every expert's rows
become one block, one *grouped* matrix product multiplies each block by its expert's weights, and the answers are
added up at their tokens. No loop over tokens or experts runs in Python.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from protea.nn.context import Context
from protea.nn.router import Router, Routing

GROUPED = (torch.float32, torch.bfloat16, torch.float16)


def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows of x times the transposed weights of their group.

    Args:
        x: (M, d), the rows of group 0, then those of group 1 ...
        weight: (E, f, d).
        ends: (E,) int32, where each group's rows end.

    Returns:
        (M, f).

    >>> x, weight = torch.ones(3, 4), torch.arange(2.0)[:, None, None].expand(2, 4, 4).contiguous()
    >>> grouped_product(x, weight, torch.tensor([1, 3], dtype=torch.int32))[:, 0].tolist()
    [0.0, 4.0, 4.0]
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    # The compiler knows the operation in bfloat16 alone; it leaves other products to the eager kernel.
    return _product(x, weight, ends) if x.dtype == torch.bfloat16 else _eager_product(x, weight, ends)


def _product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    aligned = all(width * x.element_size() % 16 == 0 for width in weight.shape[1:])
    old = x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0)
    if x.dtype in GROUPED and aligned and len(x) and not old:
        return nn.functional.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    # Float64 (checks of gradients) and odd widths: one product an expert.
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([part @ w.T for part, w in zip(x.split(sizes), weight, strict=True)])


_eager_product = torch.compiler.disable(_product)


class Experts(nn.Module):
    """E gated perceptrons side by side.

    Args:
        n_experts: E.
        d_model: width of the residual stream.
        d_ff: width inside one expert.
        activation: of the gate.
    """

    def __init__(
        self, n_experts: int, d_model: int, d_ff: int, activation: Callable[[Tensor], Tensor] = nn.functional.silu
    ) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_ff, d_model) * d_model**-0.5)  # G_i over U_i
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_ff) * d_ff**-0.5)
        self.activation = activation

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """(N, d_model) to the weighted sums of the experts' answers, (N, d_model); see the module."""
        if torch.compiler.is_exporting():
            return self.every(x, routing)
        order = routing.experts.argsort(stable=True)
        tokens = routing.tokens[order]
        ends = torch.bincount(routing.experts, minlength=len(self.down)).cumsum(0).to(torch.int32)
        gate, up = grouped_product(x.index_select(0, tokens), self.gate_up, ends).chunk(2, -1)
        y = grouped_product(self.activation(gate) * up, self.down, ends)
        y = y * routing.weights[order][:, None].to(y.dtype)
        return torch.zeros_like(x, dtype=y.dtype).index_add(0, tokens, y)

    def every(self, x: Tensor, routing: Routing) -> Tensor:
        """The same by asking every expert about every token: E / k times the work, in operations any format has."""
        weights = routing.weights.new_zeros(x.shape[0], self.down.shape[0])  # len() would fix the length of an export
        weights = weights.index_put((routing.tokens, routing.experts), routing.weights, accumulate=True)
        gate, up = (x @ self.gate_up.transpose(1, 2)).chunk(2, -1)  # (E, N, d_ff)
        y = (self.activation(gate) * up) @ self.down.transpose(1, 2)
        return (y * weights.T[..., None].to(y.dtype)).sum(0)


class GatedShared(nn.Module):
    """A shared expert behind a gate: sigmoid(w u) mlp(u) (Qwen2-MoE)."""

    def __init__(self, d_model: int, mlp: nn.Module) -> None:
        super().__init__()
        self.gate, self.mlp = nn.Linear(d_model, 1, bias=False), mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).sigmoid() * self.mlp(x)


class MoE(nn.Module):
    """A mixture of experts in place of a block's perceptron.

    Args:
        router: which experts a token goes to.
        experts: those it may go to.
        shared: an expert that sees every token, or None.

    >>> from protea.nn.context import plain_context
    >>> from protea.nn.mlp_gated import SwiGLU
    >>> from protea.nn.router import LearnedRouter
    >>> from protea.nn.router_choices import TopK
    >>> moe = MoE(LearnedRouter(8, 4, TopK(2)), Experts(4, 8, 16), shared=SwiGLU(8, 16))
    >>> moe(torch.zeros(2, 3, 8), plain_context(3)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, router: Router, experts: Experts, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.router, self.experts, self.shared = router, experts, shared

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        y = self.experts(x.flatten(0, 1), self.router(x, ctx)).view_as(x)
        return y if self.shared is None else y + self.shared(x)
