r"""Tensor parallelism from outside the model (Shoeybi et al. 2019, "Megatron-LM"): ranks share every matrix product.

A pair of maps y = B a(A x) is cut along the hidden entries, which never meet in a: rank r holds rows A_r and columns
B_r, and y = sum_r B_r a(A_r x) costs one sum over ranks forwards and one backwards. What plays A and B in each kind
of layer is a `Plan`, keyed by the layer's type; models know nothing of it. Heads are the hidden entries of attention.

In latent attention every rank makes the whole latent [c ; k^R], which is small, and its own heads' keys and values
of it. A is W_UK, W_UV and the last map to queries. All heads share k^R, so its gradient is summed over the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.nn.attention import GQA
from protea.nn.mla import MLA, Materialised
from protea.nn.mlp_gated import GatedMLP
from protea.training import parallel


@dataclass(frozen=True)
class Plan:
    """How a layer is cut.

    Args:
        maps: its `nn.Linear` children, those of them that it has: "rows" of A (outputs are dealt out), "columns" of B
            (inputs are).
        within: children that see the parts of each rank, which lie along axis 1 (heads); their gradients are summed.
        units: how many parts there are at most, of a layer; ranks must divide it.
        ready: what else is done to a layer, given the processes that share it.
    """

    maps: Mapping[str, Literal["rows", "columns"]]
    within: tuple[str, ...]
    units: Callable[[Any], int]
    ready: Callable[[Any, Any], None] = lambda layer, group: None


class SharedByHeads(torch.autograd.Function):
    """What every rank has whole and uses for its own heads: its gradient is the sum of the ranks'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _share_latent(layer: MLA, group: Any) -> None:
    """Keys and values are made, never absorbed: the absorbed form reads the weights of all heads."""
    layer.form = Materialised()

    def after(kv_down: nn.Module, inputs: Any, latent: Tensor) -> Tensor:
        c, k_rope = latent.split((layer.d_c, layer.d_rope), -1)
        return torch.cat((c, SharedByHeads.apply(k_rope, group)), -1)

    layer.kv_down.register_forward_hook(after)


def _key_heads(layer: GQA) -> int:
    return layer.k.out_features // layer.d_head


PLANS: dict[type[nn.Module], Plan] = {
    GQA: Plan({"q": "rows", "k": "rows", "v": "rows", "o": "columns"}, ("qk_norm.q", "qk_norm.k"), _key_heads),
    MLA: Plan(
        {"q": "rows", "q.expand": "rows", "kv_up": "rows", "o": "columns"},
        (),
        lambda layer: layer.n_heads,
        _share_latent,
    ),
    GatedMLP: Plan({"gate": "rows", "up": "rows", "down": "columns"}, (), lambda layer: layer.gate.out_features),
}


def tensor_parallel(
    ranks: int, plans: Mapping[type[nn.Module], Plan] | None = None
) -> Callable[[nn.Module], None]:  # fmt: skip
    """A `prepare` for `Gradient`: groups of `ranks` processes share the products of the layers that have a plan.

    Everything else (embeddings, norms, the head) is computed by every rank. To shard over the data ranks as well,
    prepare with (tensor_parallel(2), fsdp(Block)), in this order.

    Args:
        ranks: processes of a group; divides their number.
        plans: of types of layers; None for `PLANS`.

    Raises:
        ConfigError: heads or widths that `ranks` does not divide, or processes that it does not.
    """
    known = PLANS if plans is None else plans

    def prepare(objective: nn.Module) -> None:
        grid = parallel.layout(ranks)
        if grid is None or ranks == 1:
            return
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            SequenceParallel,
            parallelize_module,
        )

        found = [(name, module, known[type(module)]) for name, module in objective.named_modules()
                 if type(module) in known]  # fmt: skip
        for name, layer, plan in found:
            if plan.units(layer) % ranks:
                raise ConfigError(f"The {plan.units(layer)} parts of {name} cannot be shared by {ranks} processes.",
                                  "Use a number of processes that divides the heads and the widths.")  # fmt: skip
            held = dict(layer.named_modules())
            styles: dict[str, Any] = {child: ColwiseParallel() if cut == "rows" else RowwiseParallel()
                                      for child, cut in plan.maps.items()
                                      if isinstance(held.get(child), nn.Linear)}  # fmt: skip
            styles |= {child: SequenceParallel(sequence_dim=1, use_local_output=True) for child in plan.within
                       if child in held}  # fmt: skip
            parallelize_module(layer, grid["tensor"], styles)
            plan.ready(layer, grid["tensor"].get_group())

    return prepare
