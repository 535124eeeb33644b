r"""A mixture given some of its entries: again a mixture, exactly, of the same family.

With o the observed and u the other entries,

    p(x_u | x_o) = sum_k w_{k|o} p(x_u | x_o, k),        w_{k|o} proportional to w_k p(x_o | k),

so the family's marginals p(x_o | k), its completions and its conditional means are all that is needed; the density is
a ratio, log p(x_u | x_o) = log p(x) - log p(x_o) (Bishop 2006, "Pattern recognition and machine learning", 2.3.1).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from protea.distributions.family import Family
from protea.errors import DataError, NotSupported
from protea.models.conditional import Conditional
from protea.rng import Streams


class ConditionalMixture(Conditional):
    """p(x_u | x_o) for one row, or for B rows each with its own pattern of observed entries; see `Conditional`.

    Args:
        family: the members; copied, so that later learning does not change what was conditioned.
        log_weights: (groups, k) of members within their class.
        class_prior: (groups,).
        classes: number of labels; 0 for none.
        x: (*event) or (B, *event); entries that are not observed are ignored (NaN is allowed there).
        observed: boolean, shaped as x.
        block: see `Model`.

    Raises:
        DataError: shapes that do not match, or an observed entry that is not finite.
    """

    x: Tensor
    seen: Tensor
    log_w: Tensor
    log_class: Tensor
    joint: Tensor

    def __init__(
        self,
        family: Family,
        log_weights: Tensor,
        class_prior: Tensor,
        classes: int,
        x: Tensor,
        observed: Tensor,
        block: int,
    ) -> None:
        super().__init__()
        event = family.event
        if x.shape != observed.shape or tuple(x.shape[x.ndim - len(event) :]) != event:
            raise DataError(
                f"Observed entries of shape {tuple(observed.shape)} do not fit x {tuple(x.shape)} and {event}.",
                "Both must be (*event) or (B, *event).",
            )
        x, observed = x.reshape(-1, *event), observed.reshape(-1, *event).bool()
        if x.is_floating_point():
            bad = x.isinf() if family.nan_is_value else ~torch.isfinite(x)
            if bool((bad & observed).any()):
                raise DataError("An observed entry is NaN or infinite.", "Mark missing entries as not observed.")
        self.family, self.classes, self.block = copy.deepcopy(family), classes, block
        with torch.no_grad():
            log_w = log_weights + self.family.log_prob(x, observed).view(len(x), *log_weights.shape)
            by_class = class_prior.log() + torch.logsumexp(log_w, 2)
        self.register_buffer("x", x)
        self.register_buffer("seen", observed)
        self.register_buffer("joint", (class_prior.log()[:, None] + log_weights).detach().clone())  # log p(y, k)
        self.register_buffer("log_class", by_class)  # log p(y, x_o), (B, groups)
        self.register_buffer("log_w", log_w + class_prior.log()[:, None])  # log p(y, k, x_o), (B, groups, k)

    @property
    def evidence(self) -> Tensor:
        return torch.logsumexp(self.log_class, 1)

    @property
    @torch.no_grad()
    def mean(self) -> Tensor:
        weights = torch.softmax(self.log_w.flatten(1), 1)
        return self.family.blend(self.x, self.seen, weights)

    @torch.no_grad()
    def mean_through(self, expected: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """E[g(x) | x_o] entry by entry, (B, *event), by expected(mean, std) = E[g(z)], z ~ N(mean, std^2).

        Only where members are normal given what is observed; entries that are observed come back without meaning.

        Raises:
            NotSupported: other members.
        """
        parts = []
        weights = torch.softmax(self.log_w.flatten(1), 1)
        for i in range(0, len(self.x), 64):  # rows whose members stay in the cache
            std = self.family.deviations(self.seen[i : i + 64])
            if std is None:
                raise NotSupported(
                    f"{type(self.family).__name__} has no mean through a change of units.", "Draw instead: draws=M."
                )
            means = self.family.fill(self.x[i : i + 64], self.seen[i : i + 64])
            w = weights[i : i + 64].view(*std.shape[:2], *(1,) * (std.ndim - 2))
            parts.append((w * expected(means, std.clamp(min=1e-12))).sum(1))
        return torch.cat(parts)

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        row = (rng.ids % len(self.x)).to(self.x.device)
        if cond is None:
            cond = rng.child("label").categorical(self.log_class[row])
        inside = rng.child("component").categorical(self.log_w[row, cond])
        return self.family.complete(rng, self.x[row], self.seen[row], cond * self.log_w.shape[2] + inside)

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """log p(x_u | x_o, cond) in nats of the entries that were not observed, (B,).

        Row i of x is scored under row i of the conditions, or under the only one. Observed entries of x are not read.
        """
        x = x.reshape(len(x), *self.family.event)
        row = torch.arange(len(x), device=x.device) % len(self.x)
        whole = torch.where(self.seen[row], self.x[row], x)
        joint = self.joint + self.family.log_prob(whole).view(len(x), *self.joint.shape)
        if cond is not None and self.classes:
            by_class = torch.logsumexp(joint, 2) - self.log_class[row]
            return by_class.gather(1, cond[:, None])[:, 0]
        return torch.logsumexp(joint.flatten(1), 1) - self.evidence[row]
