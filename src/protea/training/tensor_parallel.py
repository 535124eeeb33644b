r"""Tensor parallelism from outside the model (Shoeybi et al. 2019, "Megatron-LM"): ranks share every matrix product.

A pair of maps y = B a(A x) is cut along the hidden entries, which never meet in a: rank r holds rows A_r and columns
B_r, and y = sum_r B_r a(A_r x) costs one sum over ranks forwards and one backwards. What plays A and B in each kind
of layer is a `Plan`, keyed by the layer's type; models know nothing of it. Heads are the hidden entries of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from protea.errors import ConfigError
from protea.nn.attention import GQA
from protea.nn.mlp_gated import GatedMLP
from protea.training import parallel


@dataclass(frozen=True)
class Plan:
    """How a layer is cut.

    Args:
        maps: its `nn.Linear` children: "rows" of A (outputs are dealt out), "columns" of B (inputs are).
        within: children that see the parts of each rank, which lie along axis 1 (heads); their gradients are summed.
        units: how many parts there are at most, of a layer; ranks must divide it.
    """

    maps: Mapping[str, Literal["rows", "columns"]]
    within: tuple[str, ...]
    units: Callable[[Any], int]


def _key_heads(layer: GQA) -> int:
    return layer.k.out_features // layer.d_head


PLANS: dict[type[nn.Module], Plan] = {
    GQA: Plan({"q": "rows", "k": "rows", "v": "rows", "o": "columns"}, ("qk_norm.q", "qk_norm.k"), _key_heads),
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
            styles: dict[str, Any] = {child: ColwiseParallel() if cut == "rows" else RowwiseParallel()
                                      for child, cut in plan.maps.items()}  # fmt: skip
            held = dict(layer.named_modules())
            styles |= {child: SequenceParallel(sequence_dim=1, use_local_output=True) for child in plan.within
                       if child in held}  # fmt: skip
            parallelize_module(layer, grid["tensor"], styles)

    return prepare
