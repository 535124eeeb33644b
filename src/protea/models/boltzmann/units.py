r"""Layers of units that are independent given the layer h they are coupled to: binomial, Gaussian, levels, labels.

    -E(u, h) = log m(u) + s(u) . (b + W h) - 1/2 lambda u^2,        p(u | h) of the exponential family

                 s(u)        log m(u)        log sum_u exp(...)                        p(u | h)
    Binomial     u           log C(n, u)     sum_i n log(1 + exp(b + W h))             Binomial(n, sigma(b + W h))
    Gaussian     u/sigma^2   0               sum_i (b + W h)^2 / 2 sigma^2 + ...       N(b + W h, sigma^2)
    Levels       one-hot u_i 0               sum_i log sum_l exp(b_il + (W h)_il)      Categorical(softmax_l(b + W h))
    Softmax      one-hot u   0               log sum_c exp(b + W h)                    Categorical(softmax(b + W h))

Binomial units of n = 1 are the usual binary ones; of n = L - 1 they give grey levels 0 .. L-1 an exact probability of
one narrow shape (the rate-coded units of Teh & Hinton 2001), where `Levels` can take any. Gaussian units have learnt
variances, log sigma^2 being the parameter (Cho, Ilin & Raiko 2011, "Improved learning of Gaussian-Bernoulli restricted
Boltzmann machines").

At inverse temperature beta the energy is (1 - beta) E_base(u) + beta E(u, h), with the base the independent marginals
of the data: the path of annealed importance sampling, tempering and annealed draws. beta is a number or (B, 1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protea.errors import ConfigError, DataError
from protea.models.boltzmann.products import Phase, columns, flip, outer, rows, total
from protea.rng import Streams, fold

Beta = float | Tensor
SPREAD = 0.01  # of initial weights (Hinton 2012, "A practical guide to training restricted Boltzmann machines")


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); torch's default gives up at x = 20, an error of 2e-9 that sums over states make visible."""
    return F.softplus(x, threshold=40.0)


def _check_levels(u: Tensor, most: int) -> None:
    wrong = ~((u >= 0) & (u <= most) & (u == u.round()))
    if bool(wrong.any()):
        row, place = (int(i) for i in wrong.nonzero()[0])
        raise DataError(
            f"Row {row}, unit {place} is {float(u[row, place]):g}; units take whole numbers 0 .. {most}.",
            "Binarise the data (Image of levels=2), or use Gaussian units.",
        )


class Units(nn.Module, ABC):
    """One layer of `size` units coupled by `weight` (size, centre) to a layer of `centre` units."""

    base: Tensor  # natural parameters of the base distribution, (size,)

    def __init__(self, size: int, centre: int, each: int = 1) -> None:
        super().__init__()
        if size < 1 or centre < 1:
            raise ConfigError(f"A Boltzmann machine with layers of {size} and {centre} units has nothing to couple.",
                              "Give every layer at least one unit.")  # fmt: skip
        self.size = size
        self.weight = nn.Parameter(SPREAD * Streams(0, size * each).normal(centre))
        self.bias = nn.Parameter(torch.zeros(size * each))
        self.register_buffer("base", torch.zeros(size * each))

    def pull(self, h: Tensor) -> Tensor:
        """W h, what the centre (B, centre) asks of these units, (B, size)."""
        return columns(h, self.weight)

    def push(self, u: Tensor) -> Tensor:
        """s(u) W, what these units (B, size) ask of the centre, (B, centre)."""
        return rows(self.seen(u), self.weight)

    def seen(self, u: Tensor) -> Tensor:
        """s(u), (B, size * each): as what the centre sees these units."""
        return u

    @abstractmethod
    def log_norm(self, pull: Tensor, beta: Beta = 1.0) -> Tensor:
        """log sum_u exp(-E_beta(u, h)), in parts (B, size or 1) whose sum over the last axis is meant."""

    @abstractmethod
    def draw(self, pull: Tensor, rng: Streams, beta: Beta = 1.0) -> Tensor:
        """u ~ p_beta(u | h), (B, size)."""

    @abstractmethod
    def mean(self, pull: Tensor) -> Tensor:
        """E[u | h], (B, size)."""

    @abstractmethod
    def own(self, u: Tensor, beta: Beta = 1.0) -> Tensor:
        """-E_beta of these units alone, without the coupling, (B,)."""

    @abstractmethod
    def check(self, u: Tensor) -> None:
        """Raise DataError where values (B, size) are outside the support."""

    @abstractmethod
    def fit_base(self, u: Tensor) -> None:
        """Set the base, and the biases, to the marginals of data (N, size)."""

    def sums(self, *phases: Phase) -> dict[str, Tensor]:
        """Sums over rows of -dE/d(parameter) by name, each row times its weight; u or h may be means."""
        phases = tuple((self.seen(u), h, weight) for u, h, weight in phases)
        return {"weight": outer(*phases), "bias": total(weight @ u for u, _, weight in phases)}

    def redraw(self, seed: int, tag: str) -> None:
        """New small random weights."""
        with torch.no_grad():
            self.weight.copy_(SPREAD * Streams(fold(seed, tag), len(self.weight)).normal(self.weight.shape[1]))


class Binomial(Units):
    """u_i in 0 .. trials, with u_i | h ~ Binomial(trials, sigmoid(b + W h)); binary units have one trial.

    >>> units = Binomial(3, 2, trials=4)
    >>> units.draw(units.pull(torch.ones(5, 2)), Streams(0, 5)).max() <= 4
    tensor(True)
    """

    def __init__(self, size: int, centre: int, trials: int = 1) -> None:
        super().__init__(size, centre)
        if trials < 1:
            raise ConfigError(f"Units of {trials} trials are constant.", "Give at least one.")
        self.trials = trials

    def logits(self, pull: Tensor, beta: Beta = 1.0) -> Tensor:
        if isinstance(beta, float) and beta == 1.0:
            return pull + self.bias
        return self.base + beta * (self.bias - self.base + pull)

    def log_norm(self, pull: Tensor, beta: Beta = 1.0) -> Tensor:
        return self.trials * softplus(self.logits(pull, beta))

    def draw(self, pull: Tensor, rng: Streams, beta: Beta = 1.0) -> Tensor:
        if self.trials == 1:
            return flip(self.logits(pull, beta), rng)[1]
        p = torch.sigmoid(self.logits(pull, beta))
        return rng.bernoulli(p[:, None].expand(-1, self.trials, -1)).sum(1)

    def mean(self, pull: Tensor) -> Tensor:
        return self.trials * torch.sigmoid(self.logits(pull))

    def own(self, u: Tensor, beta: Beta = 1.0) -> Tensor:
        bias = self.bias if isinstance(beta, float) and beta == 1.0 else self.base + beta * (self.bias - self.base)
        return (u * bias).sum(1) + self.log_count(u)

    def log_count(self, u: Tensor) -> Tensor:
        """log m(u) = sum_i log C(trials, u_i), (B,)."""
        if self.trials == 1:
            return u.new_zeros(len(u))
        n = u.new_tensor(self.trials)
        return (torch.lgamma(n + 1) - torch.lgamma(u + 1) - torch.lgamma(n - u + 1)).sum(1)

    def check(self, u: Tensor) -> None:
        _check_levels(u, self.trials)

    def fit_base(self, u: Tensor) -> None:
        mean = (u.double().sum(0) + 0.5 * self.trials) / (len(u) + 1) / self.trials  # Lidstone: no unit is certain
        with torch.no_grad():
            self.base.copy_(torch.logit(mean))
            self.bias.copy_(self.base)


class Gaussian(Units):
    """u_i real, u_i | h ~ N(b + W h, sigma_i^2); the centre sees u / sigma^2.

    All of this is meant of (u - origin) / spread, constants taken from the data, so that entries of any scale (the
    pixels that hardly vary) are of the same size to the hidden units; densities are those of u.

    >>> units = Gaussian(3, 2)
    >>> units.mean(units.pull(torch.zeros(5, 2))).tolist() == torch.zeros(5, 3).tolist()
    True
    """

    base_precision: Tensor
    origin: Tensor
    spread: Tensor

    def __init__(self, size: int, centre: int) -> None:
        super().__init__(size, centre)
        self.register_buffer("origin", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.log_variance = nn.Parameter(torch.zeros(size))
        self.register_buffer("base_precision", torch.ones(size))

    @property
    def precision(self) -> Tensor:
        return torch.exp(-self.log_variance)

    def seen(self, u: Tensor) -> Tensor:
        return self.standard(u) * self.precision

    def standard(self, u: Tensor) -> Tensor:
        return (u - self.origin) / self.spread

    def natural(self, pull: Tensor | float, beta: Beta) -> tuple[Tensor, Tensor]:
        """Coefficients of u and of -u^2/2."""
        precision = self.precision
        linear = (1 - beta) * self.base + beta * (precision * (self.bias + pull))
        return linear, ((1 - beta) * self.base_precision + beta * precision).expand_as(linear)

    def log_norm(self, pull: Tensor, beta: Beta = 1.0) -> Tensor:
        linear, precision = self.natural(pull, beta)
        return 0.5 * (linear.square() / precision - precision.log() + math.log(2 * math.pi)) + self.spread.log()

    def draw(self, pull: Tensor, rng: Streams, beta: Beta = 1.0) -> Tensor:
        linear, precision = self.natural(pull, beta)
        u = linear / precision + rng.normal(self.size, dtype=linear.dtype) * precision.rsqrt()
        return self.origin + self.spread * u

    def mean(self, pull: Tensor) -> Tensor:
        return self.origin + self.spread * (self.bias + pull)

    def own(self, u: Tensor, beta: Beta = 1.0) -> Tensor:
        linear, precision = self.natural(torch.zeros_like(u), beta)
        u = self.standard(u)
        return (linear * u - 0.5 * precision * u.square()).sum(1)

    def check(self, u: Tensor) -> None:
        if not bool(torch.isfinite(u).all()):
            row = int((~torch.isfinite(u)).any(1).nonzero()[0])
            raise DataError(f"Row {row} holds NaN or infinity.", "Gaussian units need numbers: fill or drop the row.")

    def fit_base(self, u: Tensor) -> None:
        spread = u.double().std(0, correction=0)
        with torch.no_grad():
            self.origin.copy_(u.double().mean(0))
            self.spread.copy_(torch.where(spread > 1e-12, spread, torch.ones_like(spread)))
            for zero in (self.base, self.bias, self.log_variance):
                zero.zero_()
            self.base_precision.fill_(1.0)

    def sums(self, *phases: Phase) -> dict[str, Tensor]:
        parts = []
        for u, h, weight in phases:
            rest = 0.5 * self.standard(u) - self.bias - self.pull(h)
            parts.append(weight @ (self.seen(u) * rest))
        return {**super().sums(*phases), "log_variance": total(parts)}


class Levels(Units):
    """u_i in 0 .. levels-1 with a weight for each level: u_i | h ~ Categorical(softmax_l(b_il + (W h)_il)).

    The visible units of Salakhutdinov, Mnih & Hinton 2007, "Restricted Boltzmann machines for collaborative
    filtering": any distribution of a pixel's levels, where binomial units know one shape only. Without couplings it is
    the data's own marginals. `weight` is (size * levels, centre).

    >>> units = Levels(3, 2, levels=5)
    >>> units.draw(units.pull(torch.ones(4, 2)), Streams(0, 4)).shape
    torch.Size([4, 3])
    """

    def __init__(self, size: int, centre: int, levels: int) -> None:
        if levels < 2:
            raise ConfigError(f"Units of {levels} levels are constant.", "Give at least two.")
        super().__init__(size, centre, levels)
        self.levels = levels

    def one_hot(self, u: Tensor) -> Tensor:
        """(B, size * levels)."""
        return F.one_hot(u.long(), self.levels).to(self.weight.dtype).flatten(1)

    def logits(self, pull: Tensor, beta: Beta = 1.0) -> Tensor:
        """(B, size, levels)."""
        return (self.base + beta * (self.bias - self.base + pull)).reshape(-1, self.size, self.levels)

    def seen(self, u: Tensor) -> Tensor:
        return self.one_hot(u)

    def log_norm(self, pull: Tensor, beta: Beta = 1.0) -> Tensor:
        return torch.logsumexp(self.logits(pull, beta), 2)

    def draw(self, pull: Tensor, rng: Streams, beta: Beta = 1.0) -> Tensor:
        below = self.logits(pull, beta).softmax(2).cumsum(2)[..., :-1]
        return (rng.coins(self.size).to(below.device)[..., None] >= below).sum(2).to(pull.dtype)

    def mean(self, pull: Tensor) -> Tensor:
        p = self.logits(pull).softmax(2)
        return p @ torch.arange(self.levels, device=p.device).to(p)

    def own(self, u: Tensor, beta: Beta = 1.0) -> Tensor:
        return self.one_hot(u) @ (self.base + beta * (self.bias - self.base))

    def check(self, u: Tensor) -> None:
        _check_levels(u, self.levels - 1)

    def fit_base(self, u: Tensor) -> None:
        counts = F.one_hot(u.long(), self.levels).sum(0).double() + 1.0
        with torch.no_grad():
            self.base.copy_((counts / counts.sum(1, keepdim=True)).log().flatten())
            self.bias.copy_(self.base)


class Softmax(Units):
    """One of `size` classes, as a one-hot row.

    >>> Softmax(3, 2).draw(torch.zeros(5, 3), Streams(0, 5)).sum(1).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def logits(self, pull: Tensor, beta: Beta = 1.0) -> Tensor:
        return self.base + beta * (self.bias - self.base + pull)

    def log_norm(self, pull: Tensor, beta: Beta = 1.0) -> Tensor:
        return torch.logsumexp(self.logits(pull, beta), 1, keepdim=True)

    def draw(self, pull: Tensor, rng: Streams, beta: Beta = 1.0) -> Tensor:
        return F.one_hot(rng.categorical(self.logits(pull, beta)), self.size).to(pull.dtype)

    def mean(self, pull: Tensor) -> Tensor:
        return self.logits(pull).softmax(1)

    def own(self, u: Tensor, beta: Beta = 1.0) -> Tensor:
        return (u * (self.base + beta * (self.bias - self.base))).sum(1)

    def check(self, u: Tensor) -> None:
        """One-hot rows are made by the machine itself."""

    def fit_base(self, u: Tensor) -> None:
        share = (u.double().sum(0) + 1.0) / (u.double().sum() + self.size)
        with torch.no_grad():
            self.base.copy_(share.log())
            self.bias.copy_(self.base)
