r"""A likelihood of a restricted Boltzmann machine that errs on the safe side.

Annealing from the base in K steps is itself a model: h_0 ~ p_0, h_k ~ T_k(. | h_{k-1}), v ~ p(v | h_{K-1}). Its density
p_ann is close to p where the chains mix, and can be estimated without knowing log Z: start at a row v, h ~ p(h | v),
and anneal back to the base along the same path,

    p_ann(v) = E[exp(log f(v) - log Z_0 - b)],    b = sum_k log f_k(h_{k-1}) - log f_{k-1}(h_{k-1}) of the way back.

So the mean of log f(v) - log Z_0 - b over rows is a stochastic *lower* bound of the mean log p_ann, where the usual
log f(v) - log Z errs upwards whenever the chains forward have missed a mode (RAISE: Burda, Grosse & Salakhutdinov 2015,
"Accurate and conservative estimates of MRF log-likelihood using reverse annealing").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protea.models.boltzmann.rbm import RBM
from protea.rng import Streams, fold
from protea.samplers.ais import ais, spacing


@torch.no_grad()
def conservative_log_prob(model: RBM, x: Tensor, *, steps: int = 1000, k: int = 1, seed: int = 0) -> Tensor:
    """log p_ann(x) of each row, low on average, (B,) float64 nats; tighter with more steps and with k chains a row.

    >>> from protea.models.boltzmann.units import Binomial
    >>> model = RBM((2,), Binomial(2, 1)); _ = torch.nn.init.zeros_(model.visible.weight)  # four equal states
    >>> conservative_log_prob(model, torch.zeros(3, 2), steps=4).exp()
    tensor([0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """
    machine, terms = model.machine, []
    log_f = -model.energy(x).double() - machine.log_base()
    for chain in range(k):
        rng = Streams(fold(seed, "conservative", chain), len(x), x.device)
        label = None if model.label is None else model.label.weight.new_zeros(len(x), model.label.size)
        state = model.infer(model.flat(x), label, rng)
        back, _ = ais(rng.bernoulli(state["mean"]), spacing(steps)[::-1], machine.annealing(rng))
        terms.append(log_f + back.log_w)
    return torch.logsumexp(torch.stack(terms), 0) - math.log(k)
