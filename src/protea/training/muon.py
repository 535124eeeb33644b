r"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"): orthogonalised momentum.

For a matrix W (r, c) with gradient g,

    m <- beta m + (1 - beta) g,    n = (1 - beta) g + beta m                       (Nesterov)
    X_0 = n / |n|_F,   X <- a X + (b A + c A^2) X with A = X X^T, five times       (Newton-Schulz)
    W <- (1 - lr wd) W - lr s X,   s = sqrt(max(1, r / c))  or  0.2 sqrt(max(r, c)),

(a, b, c) = (3.4445, -4.7750, 2.0315): X has the singular vectors of n, and singular values between about
0.7 and 1.2, so every direction of the matrix moves alike. The second s gives an update the size of AdamW's
(Liu et al. 2025, "Muon is scalable for LLM training"). Embeddings, heads, gains and biases are no maps between
hidden states; AdamW moves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from protea.errors import ConfigError
from protea.training import parallel
from protea.training.optim import AdamW, OptimizerFactory, decay_groups

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: steep at zero, near one on (0.3, 1]
FUSED = {"qkv.weight": 3, "gate_up": 2, "gate_up.weight": 2}  # ends of names to the matrices they stack
Scale = Literal["spectral", "adamw"]
SCALES: dict[str, Callable[[int, int], float]] = {
    "spectral": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}


def newton_schulz(g: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = COEFFICIENTS) -> Tensor:
    """Matrices (..., r, c) of the singular vectors of g, with singular values near one; in the dtype of g.

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> values = torch.linalg.svdvals(newton_schulz(torch.randn(3, 8, 16)))
    >>> bool((values > 0.6).all() and (values < 1.3).all())
    True
    """
    a, b, c = coefficients
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    lead = x.shape[:-2]
    x = x.reshape(-1, *x.shape[-2:])
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.reshape(*lead, *x.shape[-2:])
    return x.mT if tall else x


class Muon:
    """Muon for hidden matrices and AdamW for all else, as one optimizer.

    A parameter of three dimensions is a stack of matrices (experts). Equal shapes are orthogonalised in one batch.
    Sharded matrices are gathered for that, and every rank keeps its part of the result.

    Args:
        hidden: groups of parameters for Muon, each {"params", "weight_decay", "lr", "cut"}; "cut" gives the number
            of equal blocks of rows that each parameter stacks (three for a fused q, k, v).
        others: the optimizer of the rest.
        momentum: beta.
        scale: s; "spectral" or "adamw".
        steps: of Newton-Schulz.
        products: dtype of Newton-Schulz; None for the parameters' own.
    """

    def __init__(
        self, hidden: list[dict[str, Any]], others: AdamW, *, momentum: float = 0.95, scale: Scale = "spectral",
        steps: int = 5, products: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        if scale not in SCALES:
            raise ConfigError(f"There is no scale {scale!r} of Muon's updates.", f"Known: {', '.join(SCALES)}.")
        self.hidden, self.others, self.momentum, self.steps, self.products = hidden, others, momentum, steps, products
        self.scale = SCALES[scale]
        self.param_groups = [*hidden, *others.param_groups]
        self.state = others.state

    @torch.no_grad()
    def step(self) -> None:
        self.others.step()
        batches: dict[tuple, list[tuple[nn.Parameter, int, Tensor, dict[str, Any]]]] = {}
        for group in self.hidden:
            learnt = [p for p in group["params"] if p.grad is not None]
            if not learnt:
                continue
            for p in learnt:
                if p not in self.state:
                    self.state[p] = {"momentum": torch.zeros_like(p)}
            grads = [parallel.local(p.grad) for p in learnt]
            kept = [parallel.local(self.state[p]["momentum"]) for p in learnt]
            torch._foreach_lerp_(kept, grads, 1 - self.momentum)
            for p, update in zip(learnt, torch._foreach_lerp(grads, kept, self.momentum)):
                whole = parallel.gather(update, p)
                for i, piece in enumerate(_matrices(whole, group["cut"].get(p, 1))):
                    wide = (*sorted(piece.shape), piece.device, self.products or piece.dtype)
                    batches.setdefault(wide, []).append((p, i, piece, group))
        found: dict[nn.Parameter, list[Tensor]] = {}
        for (*_, dtype), items in batches.items():
            tall = [piece.shape[0] > piece.shape[1] for *_, piece, _ in items]
            stack = torch.stack([piece.mT if t else piece for t, (*_, piece, _) in zip(tall, items)]).to(dtype)
            for t, x, (p, _, _, _) in zip(tall, newton_schulz(stack, self.steps), items):
                found.setdefault(p, []).append(x.mT if t else x)
        for group in self.hidden:
            learnt = [p for p in group["params"] if p in found]
            locals_ = [parallel.local(p) for p in learnt]
            if group["weight_decay"] and learnt:
                torch._foreach_mul_(locals_, 1 - group["lr"] * group["weight_decay"])
            for p, held in zip(learnt, locals_):
                pieces = found[p]
                update = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
                rate = group["lr"] * self.scale(*pieces[0].shape)
                held.add_(parallel.part(update.reshape(p.shape).to(held.dtype), p), alpha=-rate)


def _matrices(whole: Tensor, cut: int) -> list[Tensor]:
    if whole.ndim == 3:
        return [piece for matrix in whole for piece in matrix.chunk(cut)]
    return list(whole.chunk(cut))


def hidden_matrices(model: nn.Module, params: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that map hidden states to hidden states: weights of `nn.Linear` in a list of blocks, and
    stacks of matrices (three dimensions) there that are no convolution.

    >>> net = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)]), "head": nn.Linear(4, 9)})
    >>> [tuple(p.shape) for p in hidden_matrices(net, list(net.parameters()))]
    [(4, 4)]
    """
    asked, found = {id(p) for p in params}, {}
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    for module in (inner for held in lists for inner in held.modules()):
        for p in module.parameters(recurse=False):
            linear = isinstance(module, nn.Linear) and p.ndim == 2
            stack = p.ndim == 3 and not isinstance(module, nn.modules.conv._ConvNd)
            if id(p) in asked and (linear or stack):
                found[id(p)] = p
    return [p for p in params if id(p) in found]


def muon(
    lr: float = 0.02, *,
    adam_lr: float = 3e-3,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    cut: Mapping[str, int] = FUSED,
    scale: Scale = "spectral",
    steps: int = 5,
    products: torch.dtype | None = None,
    rates: Callable[[str], float] | None = None,
    hidden: Callable[[nn.Module, Sequence[nn.Parameter]], list[nn.Parameter]] = hidden_matrices,
) -> OptimizerFactory:  # fmt: skip
    """Muon for hidden matrices, AdamW for embeddings, heads, gains and biases.

    Args:
        lr: of Muon: with "spectral" the largest change of a matrix's output for an input of unit norm.
        adam_lr: of AdamW.
        weight_decay: of all matrices that AdamW would decay.
        momentum, scale, steps, products: see `Muon`.
        betas: of AdamW.
        cut: the end of a parameter's name to the number of equal blocks of rows it stacks (a fused q, k, v: 3).
        rates: a parameter's name to a multiple of its learning rate (for AdamW's parameters); None for 1.
        hidden: which parameters are Muon's.

    >>> net = nn.ModuleDict({"embed": nn.Embedding(5, 4), "blocks": nn.ModuleList([nn.Linear(4, 4)])})
    >>> made = muon()(net, list(net.parameters()))
    >>> [len(group["params"]) for group in made.param_groups]  # the matrix; the embedding and the bias
    [1, 2]
    """

    def make(model: nn.Module, params: Sequence[nn.Parameter]) -> Muon:
        mine = hidden(model, params)
        taken = {id(p) for p in mine}
        names = {id(p): name for name, p in model.named_parameters()}
        cuts = {p: n for p in mine for end, n in cut.items() if names.get(id(p), "").endswith(end)}
        bad = [names[id(p)] for p, n in cuts.items() if p.shape[-2] % n]
        if bad:
            raise ConfigError(f"The rows of {bad[0]} cannot be cut into equal blocks.", "Correct `cut`.")
        rest = decay_groups(model, [p for p in params if id(p) not in taken], weight_decay)
        if rates is not None:
            rest = [
                {**group, "params": [p], "lr": adam_lr * rates(names[id(p)])} for group in rest for p in group["params"]
            ]
        groups = [{"params": mine, "lr": lr, "weight_decay": weight_decay, "cut": cuts}] if mine else []
        return Muon(groups, AdamW(rest, adam_lr, betas, 1e-8), momentum=momentum, scale=scale, steps=steps,
                    products=products)  # fmt: skip

    return make
