r"""Members that are themselves mixtures: G members, each a mixture of M members of another family.

    p(x | g) = sum_m w_{gm} q(x | g, m),        r_{bgm} = r_{bg} w_{gm} q(x_b | g, m) / p(x_b | g)

For the emissions of a hidden Markov model (a state emits from a mixture of Gaussians, as in speech recognition: Rabiner
1989, section IV.A) or for class-conditional densities. The inner family holds the G M members in the order (g, m).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from protea.core import Stats
from protea.distributions.family import Density, Family
from protea.errors import ConfigError
from protea.rng import Streams, fold

LLOYD = 10  # steps of the start within each member


class Nested(Family):
    """G members, each a mixture of M members of `inner`.

    Args:
        inner: a family of G * M members.
        members: G.
        prior: pseudo-counts of the weights within each member.

    Raises:
        ConfigError: members that do not divide those of `inner`, or a negative prior.

    >>> from protea.distributions.poisson import Poisson
    >>> family = Nested(Poisson(4), 2)
    >>> family.log_prob(torch.tensor([1.0])).shape, family.weights.shape
    (torch.Size([1, 2]), torch.Size([2, 2]))
    """

    def __init__(self, inner: Family, members: int, prior: float = 0.0) -> None:
        super().__init__()
        if members < 1 or inner.members % members or prior < 0:
            raise ConfigError(f"{inner.members} inner members cannot be shared by {members}, with a prior of {prior}.",
                              "Give a multiple, and a prior >= 0.")  # fmt: skip
        self.inner, self.members, self.event, self.prior = inner, members, inner.event, prior
        self.each = inner.members // members
        self.width = inner.width * self.each
        start = torch.full((members, self.each), -math.log(self.each), dtype=torch.float64)
        self.logits = nn.Parameter(start, requires_grad=False)

    @property
    def weights(self) -> Tensor:
        """w (G, M); settable."""
        return torch.softmax(self.logits, 1)

    @weights.setter
    def weights(self, value: Tensor) -> None:
        with torch.no_grad():
            self.logits.copy_(torch.as_tensor(value, dtype=torch.float64, device=self.logits.device).log())

    def _inside(self, own: slice | None) -> slice | None:
        return None if own is None else slice(own.start * self.each, own.stop * self.each)

    def _joint(self, own: slice | None) -> Density:
        """log w_{gm} q(x | g, m), (B, members, M)."""
        density = self.inner.density(self._inside(own))
        log_w = torch.log_softmax(self.logits, 1)
        log_w = log_w if own is None else log_w[own]
        return lambda x, observed: density(x, observed).view(len(x), *log_w.shape) + log_w

    def density(self, own: slice | None = None) -> Density:
        joint = self._joint(own)
        return lambda x, observed: torch.logsumexp(joint(x, observed), 2)

    def _shares(self, x: Tensor, r: Tensor, own: slice | None, observed: Tensor | None) -> Tensor:
        """r_{bgm}, (B, members, M)."""
        joint = self._joint(own)(x, observed)
        top = joint.amax(2, keepdim=True)
        share = (joint - torch.where(torch.isneginf(top), 0.0, top)).exp()
        return r.double()[:, :, None] * share / share.sum(2, keepdim=True).clamp(min=1e-300)

    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        share = self._shares(x, r, own, observed)
        weights = share.new_zeros(self.members, self.each)
        weights[own or slice(None)] = share.sum(0)
        part = self.inner.expect(x, share.flatten(1), self._inside(own), observed)
        return {"weights": weights} | {f"inner/{name}": value for name, value in part.items()}

    def _inner(self, stats: Stats) -> Stats:
        return {name.removeprefix("inner/"): v for name, v in stats.items() if name.startswith("inner/")}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        n = stats["weights"] + self.prior
        total = n.sum(1, keepdim=True)
        self.logits.copy_(torch.where(total > 0, (n / total).log(), self.logits))
        self.inner.maximise(self._inner(stats))

    def expected(self, stats: Stats) -> Tensor:
        n = stats["weights"]
        own = torch.where(n > 0, n * torch.log_softmax(self.logits, 1), 0.0).sum()
        return own + self.inner.expected(self._inner(stats))

    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """A few Lloyd steps within each member: centres start at rows drawn by their weight r."""
        flat = x.reshape(len(x), -1).double()
        seen = ~flat.isnan() if observed is None else observed.reshape(flat.shape) & ~flat.isnan()
        mean = torch.where(seen, flat, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        spread = torch.where(seen, flat - mean, 0.0).square().mean(0).sqrt().clamp(min=1e-12)
        z = torch.where(seen, (flat - mean) / spread, 0.0)
        logits = r.double().T.clamp(min=1e-300).log()  # (G, B)
        draw = Streams(fold(0, "nested"), self.members * self.each, x.device)
        centres = z[draw.categorical(logits.repeat_interleave(self.each, 0))].view(self.members, self.each, -1)
        nearest = torch.zeros(len(z), self.members, dtype=torch.int64, device=x.device)
        for _ in range(LLOYD):
            nearest = torch.cdist(z, centres.flatten(0, 1)).view(len(z), self.members, self.each).argmin(2)
            share = one_hot(nearest, self.each).double() * r.double()[:, :, None]
            mass = share.sum(0)
            moved = torch.einsum("bgm,bd->gmd", share, z) / mass.clamp(min=1e-12)[..., None]
            centres = torch.where(mass[..., None] > 0, moved, centres)
        share = one_hot(nearest, self.each).double() * r.double()[:, :, None]
        self.inner.initialise(x, share.flatten(1), observed)
        n = share.sum(0) + 1
        self.weights = n / n.sum(1, keepdim=True)

    def log_prior(self) -> Tensor:
        own = self.prior * torch.log_softmax(self.logits, 1).sum() if self.prior else self.logits.new_zeros(())
        return own + self.inner.log_prior()

    def free(self) -> int:
        return self.members * (self.each - 1) + self.inner.free()

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        inside = rng.child("member").categorical(self.logits[which])
        return self.inner.draw(rng, which * self.each + inside)

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        log_w = self._joint(None)(x, observed)[torch.arange(len(x), device=x.device), which]
        inside = rng.child("member").categorical(log_w)
        return self.inner.complete(rng, x, observed, which * self.each + inside)

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        share = torch.softmax(self._joint(None)(x, observed), 2)
        inside = self.inner.fill(x, observed).view(len(x), self.members, self.each, *self.event)
        return (inside * share.view(*share.shape, *(1,) * len(self.event))).sum(2)

    def blend(self, x: Tensor, observed: Tensor, r: Tensor) -> Tensor:
        share = self._joint(None)(x, observed).softmax(2) * r.double()[:, :, None]
        return self.inner.blend(x, observed, share.flatten(1))
