r"""Learning rates that carry over from a narrow network to a wide one (Yang et al. 2022, "Tensor Programs V", muP).

With m = fan-in of a matrix over its fan-in in the base network, and AdamW:

    matrices between hidden states   rate / m,   decay * m   (so that rate * decay stays)
    the head                         rate / m,   and initial weights times m^(-1/2) beside 1 / sqrt(fan-in)
    embeddings, gains, biases        as they are

Then updates change hidden states by as much at every width, and the best rate of the base is that of all. Heads
must keep their width (else their scores want 1 / d_head).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from protea.errors import ConfigError
from protea.training.optim import AdamW, OptimizerFactory, embeddings_of


def widths(model: nn.Module) -> dict[str, int]:
    """The fan-in of every matrix that is no embedding, by name: what `mup_adamw` is told of the base network.

    >>> widths(nn.ModuleDict({"embed": nn.Embedding(9, 4), "up": nn.Linear(4, 8)}))
    {'up.weight': 4}
    """
    tables = embeddings_of(model)
    return {name: p.shape[-1] for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in tables}


@torch.no_grad()
def mup_init(model: nn.Module, base: Mapping[str, int], head: str = "head.weight") -> None:
    """Scale the initial head, which has variance 1 / fan-in, by m^(-1/2); `head` ends its name.

    Raises:
        ConfigError: no such parameter, or it is not in the base.
    """
    found = {name: p for name, p in model.named_parameters() if name.endswith(head)}
    if len(found) != 1 or not set(found) <= set(base):
        raise ConfigError(
            f"{len(found)} parameters end with {head!r}.", "Name the head's weights; they must be untied."
        )
    for name, p in found.items():
        p.mul_((p.shape[-1] / base[name]) ** -0.5)


def mup_adamw(
    lr: float, base: Mapping[str, int], *, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> OptimizerFactory:  # fmt: skip
    """AdamW with the rates of muP.

    Args:
        lr: the rate that is best for the base network.
        base: `widths` of it.
        weight_decay: of its matrices.
        betas, eps: of AdamW.

    Raises:
        ConfigError: parameters that the base does not have.

    >>> narrow, wide = nn.Linear(4, 4, bias=False), nn.Linear(8, 8, bias=False)
    >>> [g["lr"] for g in mup_adamw(0.1, widths(narrow))(wide, list(wide.parameters())).param_groups]
    [0.05]
    """

    def make(model: nn.Module, params: Sequence[nn.Parameter]) -> AdamW:
        names = {id(p): name for name, p in model.named_parameters()}
        tables = embeddings_of(model)
        kinds: dict[float, list[nn.Parameter]] = {}
        plain = []
        for p in params:
            name = names[id(p)]
            if p.ndim <= 1 or id(p) in tables:
                plain.append(p)
            elif name not in base:
                raise ConfigError(f"The base network has no {name!r}.", "Build it as the wide one, only narrower.")
            else:
                kinds.setdefault(p.shape[-1] / base[name], []).append(p)
        groups = [{"params": ps, "lr": lr / m, "weight_decay": weight_decay * m} for m, ps in sorted(kinds.items())]
        groups += [{"params": plain, "lr": lr, "weight_decay": 0.0}] if plain else []
        return AdamW(groups, lr, betas, eps)

    return make
