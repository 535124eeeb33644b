r"""A hidden Markov model given some entries of a sequence: smoothing, filling and prediction, exactly.

    gamma_t(k) = p(z_t = k | x_o),      E[x_t | x_o] = sum_k gamma_t(k) E[x_t | x_{t,o}, z_t = k]

Draws take a path from p(z | x_o) (forward filtering, backward sampling) and complete each step under its state.
Steps after the last observed one are predictions; nothing else sets them apart from gaps.

Where lengths are modelled, an observed entry without a value (NaN, a negative code) after the last known one says that
the sequence has ended there; earlier ones come back as they are. What is not observed may then be steps or the end:
lengths are drawn from p(L | x_o). A chain that ends by itself is followed by one more state, "ended", that stays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protea.errors import DataError
from protea.models.conditional import Conditional
from protea.models.labels import refuse_labels
from protea.models.markov import decode, emitted, scan
from protea.models.markov.dynamics import Dynamics
from protea.models.markov.packed import Packed, known
from protea.rng import Streams, fold

if TYPE_CHECKING:
    from protea.models.markov.hmm import HiddenMarkov


class ConditionalMarkov(Conditional):
    """p(x_u | x_o) for one sequence, or for B of them each with its own pattern of observed entries.

    Args:
        model: the joint distribution.
        x: (T, *event) or (B, T, *event); entries that are not observed are ignored.
        observed: boolean, shaped as x.

    Raises:
        DataError: shapes that do not fit, or observed entries of probability zero.
    """

    x: Tensor
    observed: Tensor
    log_b: Tensor
    log_length: Tensor
    log_evidence: Tensor
    gamma: Tensor

    def __init__(self, model: HiddenMarkov, x: Tensor, observed: Tensor) -> None:
        super().__init__()
        if x.shape != observed.shape or tuple(x.shape[-len(model.event) :]) != model.event:
            raise DataError(
                f"Observed entries of shape {tuple(observed.shape)} do not fit x {tuple(x.shape)} and {model.event}.",
                "Both must be (T, *event) or (B, T, *event).",
            )
        self.joint, self.event, self.block = [model], model.event, model.block  # a list: not a part, only a reference
        if hasattr(model, "space"):
            self.space = model.space
        x, observed = x.reshape(-1, *model.event), observed.reshape(-1, *model.event)
        self.register_buffer("x", x)
        self.register_buffer("observed", observed)
        seen = observed & known(x)
        self.count, steps = len(x), model.steps
        self.packed = Packed(torch.full((self.count,), steps, device=x.device), steps)
        self.dynamics = model.chain.dynamics()
        with torch.no_grad():
            log_b = model._log_b(self.packed.pack(x), self.packed.pack(seen)).double()
        low, high = self._bounds(seen)
        log_length = torch.zeros(self.count, 1, dtype=torch.float64, device=x.device)
        if model.chain.ends:
            log_b, self.dynamics = self._with_end(log_b, low, high)
        elif model.lengths is not None:
            every = torch.arange(steps + 1, device=x.device)
            possible = (every >= low[:, None]) & (every <= high[:, None])
            log_length = torch.where(possible, model.lengths.log_p, -math.inf)
        self.register_buffer("log_length", log_length)
        self.register_buffer("log_b", log_b)
        p = scan.smooth(log_b, self.dynamics, self.packed)
        if bool(torch.isneginf(p.log_prob).any()):
            row = int(torch.isneginf(p.log_prob).nonzero()[0])
            raise DataError(f"What is observed of row {row} has probability zero.",
                            "Smooth the emissions with a prior, or check the observed entries.")  # fmt: skip
        self.register_buffer("log_evidence", p.log_prob + torch.logsumexp(log_length, 1))
        self.register_buffer("gamma", self.packed.unpack(p.gamma))

    def _bounds(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the greatest length of each row, from what is observed."""
        steps = self.event[0]
        flat = (self.count, steps, math.prod(self.event[1:]))
        t = torch.arange(1, steps + 1, device=seen.device)
        low = (seen.reshape(flat).any(2) * t).amax(1)
        ended = (self.observed & ~seen).reshape(flat).any(2) & (t > low[:, None])
        high = torch.where(ended, t - 1, steps).amin(1)
        return low, high

    def _with_end(self, log_b: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Dynamics]:
        """One more state, which a sequence is in once it has ended."""
        d, empty = self.dynamics, self.joint[0].chain.empty()
        assert d.last is not None
        k = len(d.start)
        a = d.start.new_zeros(k + 1, k + 1)
        a[:k, :k], a[:k, k], a[k, k] = d.transition, d.last, 1.0
        t = torch.arange(self.event[0], device=log_b.device)
        before = self.packed.pack((t < low[:, None]).expand(self.count, -1))[:, None]
        after = self.packed.pack((t >= high[:, None]).expand(self.count, -1))[:, None]
        running = torch.where(after, -math.inf, log_b)
        ended = torch.where(before, -math.inf, log_b.new_zeros(len(log_b), 1))
        return torch.cat((running, ended), 1), Dynamics(torch.cat((d.start, empty[None])), a)

    @property
    def evidence(self) -> Tensor:
        return self.log_evidence

    @property
    def states(self) -> Tensor:
        """p(z_t = k | x_o) while the sequence runs, (B, T, K)."""
        return self.gamma[..., : self.joint[0].states]

    @property
    def length(self) -> Tensor:
        """p(L = l | x_o), (B, T + 1), where lengths are modelled; otherwise all sequences have T steps."""
        steps = self.event[0]
        if self.joint[0].chain.ends:
            over = self.gamma[..., -1]  # p(L <= t) at step t (from 0)
            cdf = torch.cat((over, torch.ones_like(over[:, :1])), 1)
            return torch.diff(cdf, dim=1, prepend=torch.zeros_like(cdf[:, :1]))
        if self.joint[0].lengths is not None:
            return torch.softmax(self.log_length, 1)
        return torch.nn.functional.one_hot(torch.full((self.count,), steps), steps + 1).double()

    @property
    def mean(self) -> Tensor:
        """E[x | x_o] up to the median length, and no value beyond it; observed entries unchanged."""
        model, rows = self.joint[0], self.packed.pack(self.observed)
        x = self.packed.pack(torch.where(self.observed, self.x, torch.zeros_like(self.x)))
        share = self.packed.pack(self.states)
        share = share / share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        with torch.no_grad():
            parts = [model.emission.blend(x[i], rows[i], share[i]) for i in emitted.chunks(model.emission, x)]
        out = self.packed.unpack(torch.cat(parts))
        median = (self.length.cumsum(1) < 0.5).sum(1)
        return self._cut(out, median)

    def _cut(self, x: Tensor, length: Tensor, row: Tensor | None = None) -> Tensor:
        """x without what lies beyond the length, and with the observed entries as they were."""
        t = torch.arange(self.event[0], device=x.device)
        over = (t >= length[:, None]).view(*x.shape[:2], *(1,) * (x.ndim - 2))
        x = x.masked_fill(over, math.nan if x.is_floating_point() else -1)
        row = torch.arange(len(x), device=x.device) % self.count if row is None else row
        return torch.where(self.observed[row], self.x[row].to(x.dtype), x)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        refuse_labels(cond)
        return self.complete(rng, (rng.ids % self.count).to(self.x.device))

    def complete(self, rng: Streams, row: Tensor) -> Tensor:
        """A draw of the conditional of `row` (n,) for each stream, (n, T, *event)."""
        model, steps = self.joint[0], self.event[0]
        u = rng.child("path").uniform(steps, dtype=torch.float64)
        packed = Packed(torch.full((len(rng),), steps, device=u.device), steps)
        log_b = packed.pack(self.packed.unpack(self.log_b)[row])
        z = packed.unpack(decode.sample_paths(packed.pack(u), log_b, self.dynamics, packed), -1)
        if model.chain.ends:
            length = (z < model.states).sum(1)
        else:
            length = rng.child("length").categorical(self.log_length[row])
            length = length if model.lengths is not None else torch.full_like(length, steps)
        ids = (rng.ids[:, None] * steps + torch.arange(steps)).flatten()
        streams = Streams(fold(rng.seed, "emission"), ids, rng.device)
        observed = self.observed[row].flatten(0, 1)
        x = torch.where(observed, self.x[row].flatten(0, 1), torch.zeros_like(observed, dtype=self.x.dtype))
        x = model.emission.complete(streams, x, observed, z.clamp(max=model.states - 1).flatten())
        return self._cut(x.reshape(len(rng), *self.event), length, row)

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        refuse_labels(cond)
        row = torch.arange(len(x), device=x.device) % self.count
        whole = torch.where(self.observed[row], self.x[row].to(x.dtype), x)
        return self.joint[0].log_prob(whole) - self.log_evidence[row]
