"""Several processes under `torchrun`: sums over ranks, and sharded parameters (FSDP2).

Ranks form a grid of *data* x *tensor* (`layout`): those of one data rank see the same rows and share every matrix
product (`tensor_parallel`). Without a layout all ranks are data ranks.

Data parallelism needs three facts: ranks hold the same weights, see disjoint rows (`r::world`), and add
gradients (or EM's statistics) before they act. Gradients are summed explicitly after the last
microbatch: one collective a step, and losses that differentiate twice are served as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from protea.errors import ConfigError


def setup(device: torch.device) -> None:
    """Join the process group that torchrun's environment describes; nothing without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


_grid: Any = None  # the device mesh (data, tensor), once `layout` made one


def layout(tensor: int = 1) -> Any:
    """The grid of ranks (data, tensor) as a device mesh, made on the first call; None for one process.

    Raises:
        ConfigError: the processes cannot be laid out so, or are laid out otherwise already.
    """
    global _grid
    if not active():
        return None
    if _grid is None:
        from torch.distributed.device_mesh import init_device_mesh

        processes = dist.get_world_size()
        if tensor < 1 or processes % tensor:
            raise ConfigError(f"{processes} processes cannot form groups of {tensor}.", "Choose a divisor.")
        _grid = init_device_mesh(_device().type, (processes // tensor, tensor), mesh_dim_names=("data", "tensor"))
    if _grid["tensor"].size() != max(tensor, 1):
        raise ConfigError(f"The ranks are laid out in groups of {_grid['tensor'].size()}, not {tensor}.",
                          "Call tensor_parallel before fsdp.")  # fmt: skip
    return _grid


def data_rank() -> int:
    """Which share of the rows this process sees."""
    return rank() if _grid is None else _grid["data"].get_local_rank()


def data_world() -> int:
    """How many shares of rows there are."""
    return world() if _grid is None else _grid["data"].size()


def tensor_world() -> int:
    """How many processes share each matrix product."""
    return 1 if _grid is None else _grid["tensor"].size()


def data_group() -> Any:
    """The processes that see different rows; None for all."""
    return None if _grid is None else _grid["data"].get_group()


def active() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if active() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if active() else 0


def barrier() -> None:
    if active():
        dist.barrier()


def add_(tensors: Iterable[Tensor], group: Any = None) -> None:
    """Sum each tensor over a group of ranks (None: those that see different rows), in place; one collective a dtype."""
    if not active():
        return
    group = data_group() if group is None else group
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_sparse:  # the union of the ranks' entries, added where they meet
            dist.all_reduce(tensor, group=group)
        else:
            kinds.setdefault(tensor.dtype, []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([t.reshape(-1) for t in same])
        dist.all_reduce(flat, group=group)
        for tensor, piece in zip(same, flat.split([t.numel() for t in same])):
            tensor.copy_(piece.view_as(tensor))


def concatenate(held: Tensor) -> Tensor:
    """The vectors (n_r,) of the ranks that see different rows, one after the other."""
    if not active():
        return held
    group, ranks = data_group(), data_world()
    sizes = [held.new_zeros((), dtype=torch.int64) for _ in range(ranks)]
    dist.all_gather(sizes, held.new_tensor(len(held), dtype=torch.int64), group=group)
    most = max(map(int, sizes))
    parts = [held.new_empty(most) for _ in range(ranks)]
    dist.all_gather(parts, torch.cat((held, held.new_zeros(most - len(held)))), group=group)
    return torch.cat([part[:n] for part, n in zip(parts, sizes)])


def largest(value: int) -> int:
    """The maximum over ranks."""
    if not active():
        return value
    held = torch.tensor(value, device=_device())
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def agree(value: float) -> float:
    """The first rank's value (a clock, for instance), on every rank."""
    if not active():
        return value
    held = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.broadcast(held, 0)
    return float(held)


def broadcast_(module: nn.Module) -> None:
    """Give every rank the first rank's weights and buffers."""
    if active():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)


def sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor (whose import takes seconds, so only where it can be one)."""
    if not active():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; detached, sharing its memory."""
    return tensor.detach().to_local() if sharded(tensor) else tensor.detach()


def local_grad(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter's gradient, which it has."""
    assert parameter.grad is not None
    return local(parameter.grad)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered where it is sharded; detached, on the CPU."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if sharded(tensor) else tensor).cpu()


def like(whole: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor laid out (device, shards) as another."""
    whole = whole.to(pattern.device)
    if sharded(pattern):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, pattern.device_mesh, pattern.placements)
    return whole.clone()


def gather(held: Tensor, pattern: Tensor) -> Tensor:
    """The whole of a tensor of which this rank holds what it holds of `pattern`."""
    if not sharded(pattern):
        return held
    from torch.distributed.tensor import DTensor

    layout = {"shape": pattern.shape, "stride": pattern.stride()}
    return DTensor.from_local(held, pattern.device_mesh, pattern.placements, run_check=False, **layout).full_tensor()


def part(whole: Tensor, pattern: Tensor) -> Tensor:
    """What this rank holds of `pattern`, of a whole tensor that every rank has: `gather` backwards."""
    if not sharded(pattern):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, pattern.device_mesh, pattern.placements, src_data_rank=None).to_local()


def fsdp(*blocks: type[nn.Module]) -> Callable[[nn.Module], None]:
    """A `prepare` for `Gradient`: shard parameters, gradients and optimizer state over the ranks (FSDP2).

    What is sharded is the learner's objective, whose `forward` computes the loss: so any method of the
    model may be used in a loss. Modules of the classes `blocks`, which must be used by calling them, are
    gathered one at a time; the rest of the model is gathered for a step as one.
    """

    def prepare(objective: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if not active():
            return
        mesh = init_device_mesh(_device().type, (world(),)) if _grid is None else _grid["data"]
        # Scalars cannot be sharded, and experts that were dealt out over these ranks already are.
        whole = {p for p in objective.parameters() if p.ndim == 0 or dealt(p)}
        for module in objective.modules():
            if blocks and isinstance(module, blocks):
                fully_shard(module, mesh=mesh, ignored_params=whole)
        fully_shard(objective, mesh=mesh, ignored_params=whole, reshard_after_forward=False)

    return prepare


DEALT = "_dealt"  # set on parameters of experts that live on one data rank each


def dealt(parameter: Tensor) -> bool:
    """Whether data ranks hold different experts of it, so that its gradient is summed already."""
    return getattr(parameter, DEALT, False)


@torch.no_grad()
def align_grad(parameter: nn.Parameter) -> None:
    """Lay a gradient out as its parameter (sums that are still spread over tensor ranks are added up)."""
    grad = parameter.grad
    if sharded(parameter) and grad.placements != parameter.placements:
        parameter.grad = grad.redistribute(placements=parameter.placements)


@torch.no_grad()
def squared_norm(parts: Iterable[tuple[nn.Parameter, float]], device: torch.device) -> Tensor:
    """Sum of squares of parameters' gradients, each times its scale; what ranks hold parts of is added up, float64."""
    kinds: dict[tuple, tuple[list[Tensor], list[float]]] = {}
    for p, scale in parts:
        key: tuple = ()
        if sharded(p):
            mesh, placements = p.device_mesh, p.placements
            key = tuple(mesh.get_group(i) for i, placed in enumerate(placements) if not placed.is_replicate())
        held, scales = kinds.setdefault(key, ([], []))
        held.append(local_grad(p))
        scales.append(scale)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for groups, (held, scales) in kinds.items():
        norms = torch.stack(torch._foreach_norm(held)).double()
        squares = (norms * torch.tensor(scales, dtype=torch.float64, device=device)).square().sum()
        for group in groups:
            dist.all_reduce(squares, group=group)
        total += squares
    return total


def shards(module: nn.Module) -> list[Any]:
    """The modules whose parameters FSDP shards."""
    if not active():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [m for m in module.modules() if isinstance(m, FSDPModule)]


def shard_parameters(module: nn.Module) -> set[int]:
    """The ids of the parameters that FSDP shards."""
    found: set[int] = set()
    for held in shards(module):
        group = held._get_fsdp_state()._fsdp_param_group
        if group is not None:
            found |= {id(p.sharded_param) for p in group.fsdp_params}
    return found


def _device() -> torch.device:
    backend = dist.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
