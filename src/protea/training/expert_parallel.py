r"""Expert parallelism from outside the model (Lepikhin et al. 2020, "GShard"): data ranks hold different experts.

Of E experts and W ranks, rank r holds the experts r E/W .. (r+1) E/W - 1. A token goes to the ranks that hold its
experts and its answers come back, by two `all_to_all_single`; the gradient takes the same way backwards. So an
expert's gradient is summed over all tokens already, and only its own rank needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.nn.moe import Experts
from protea.nn.router import Routing
from protea.training import parallel


class Exchange(torch.autograd.Function):
    """Rows (M, d) to the ranks: the first `give[0]` to rank 0, ...; `take[r]` rows come from rank r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, give: list[int], take: list[int], group: Any) -> Tensor:
        ctx.give, ctx.take, ctx.group = give, take, group
        out = x.new_empty(sum(take), *x.shape[1:])
        dist.all_to_all_single(out, x.contiguous(), take, give, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return Exchange.apply(grads[0], ctx.take, ctx.give, ctx.group), None, None, None


class _Dealt:
    """Sends a layer's tokens to their experts before it computes, and fetches the answers after; one layer's hooks."""

    def __init__(self, layer: Experts, ranks: int, group: Any) -> None:
        self.ranks, self.group = ranks, group
        self.each = len(layer.down) // ranks
        self.names = [name for name, _ in layer.named_parameters(recurse=False)]
        self.back: tuple[Tensor, Routing, list[int], list[int], int]

    def before(self, layer: Experts, inputs: tuple[Tensor, Routing]) -> tuple[Tensor, Routing]:
        x, routing = inputs
        order = routing.experts.argsort(stable=True)
        experts = routing.experts[order]
        give = torch.bincount(experts // self.each, minlength=self.ranks)
        take = torch.empty_like(give)
        dist.all_to_all_single(take, give, group=self.group)
        sizes = give.tolist(), take.tolist()
        rows = Exchange.apply(x[routing.tokens[order]], *sizes, self.group)
        here = Exchange.apply(experts, *sizes, self.group) % self.each
        self.back = (order, routing, *sizes, len(x))
        # The layer computes with this rank's experts: plain tensors for the time of the call.
        vars(layer).update({name: layer.get_parameter(name).to_local() for name in self.names})
        ones = torch.ones(len(rows), device=x.device)
        numbers = torch.arange(len(rows), device=x.device)
        return rows, routing._replace(tokens=numbers, experts=here, weights=ones)

    def after(self, layer: Experts, inputs: Any, answers: Tensor) -> Tensor:
        for name in self.names:
            vars(layer).pop(name)
        order, routing, give, take, n = self.back
        y = Exchange.apply(answers, take, give, self.group) * routing.weights[order][:, None].to(answers.dtype)
        return y.new_zeros(n, y.shape[1]).index_add(0, routing.tokens[order], y)


def expert_parallel() -> Callable[[nn.Module], None]:
    """A `prepare` for `Gradient`: deal the experts of every `Experts` layer out over the data ranks.

    With others: (tensor_parallel(2), expert_parallel(), fsdp(Block)), in this order.

    Raises:
        ConfigError: experts that the ranks do not divide.
    """

    def prepare(objective: nn.Module) -> None:
        if not parallel.active():
            return
        from torch.distributed.tensor import Shard, distribute_tensor

        grid = parallel.layout(parallel.tensor_world())["data"]
        ranks = grid.size()
        for name, layer in [(n, m) for n, m in objective.named_modules() if isinstance(m, Experts)]:
            if len(layer.down) % ranks:
                raise ConfigError(f"The {len(layer.down)} experts of {name} cannot be dealt out to {ranks} processes.",
                                  "Use a number of processes that divides them.")  # fmt: skip
            hooks = _Dealt(layer, ranks, grid.get_group())
            for part in hooks.names:
                held = nn.Parameter(distribute_tensor(layer.get_parameter(part).detach(), grid, [Shard(0)]))
                setattr(held, parallel.DEALT, True)
                setattr(layer, part, held)
            layer.register_forward_pre_hook(hooks.before)
            layer.register_forward_hook(hooks.after)

    return prepare
