r"""A mixture of anything that can be counted, learnt by expectation-maximisation.

    p(x | y) = sum_k w_{y,k} p(x | theta_{y,k}),        p(x) = sum_y p(y) p(x | y)

    E-step   r_{b,k} = w_k p(x_b | theta_k) / p(x_b)
    M-step   w_k = (N_k + alpha - 1) / sum_j (N_j + alpha - 1),    theta = what the family's `maximise` gives

The members p(x | theta_k) come as one `Family` (`distributions/family.py`), which says what x is, what its unknown
entries mean, and how members are counted and maximised. Each class owns k of them. A labelled row is shared among its
class's members only; a row of unknown label (-1) among all of them, so semi-supervised learning needs nothing more.

What is guaranteed: the log-likelihood plus the log prior of the parameters never falls, at any step. A member that no
row uses any more is revived by splitting a heavy one into two, displaced by +-delta. By Jensen's inequality that
costs at most N |delta|^2 / 2 nats, and delta is chosen to spend at most half of what the M-step has provably just
gained; so the guarantee stands. With a prior on weights or members nothing is revived: no member is ever without
weight.

Dempster, Laird & Rubin 1977, "Maximum likelihood from incomplete data via the EM algorithm"; McLachlan & Peel 2000,
"Finite mixture models"; Schwarz 1978 (BIC); Biernacki, Celeux & Govaert 2000, "Assessing a mixture model for clustering
with the integrated completed likelihood" (ICL).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from protea.core import Conditionable, Countable, Normalised, Stats
from protea.distributions.covariance import CHUNK
from protea.distributions.family import Family, Linear
from protea.distributions.powers import LOG2E, softmax_
from protea.errors import ConfigError, DataError
from protea.models.classical.conditional import ConditionalMixture
from protea.models.classical.kmeans import kmeans
from protea.models.labels import refuse_labels
from protea.rng import Streams, fold, permutation
from protea.space import Rows

Joint = Callable[[Tensor, Tensor | None], Tensor]
EMPTY = 1e-10  # rows: a member with less is not used by any row
STARTING = 100_000  # rows that a start is made from
TRIAL_ROWS, TRIAL_STEPS = 10_000, 10  # of the run that judges a start
PREFIX = "member."  # of the family's statistics


class Mixture(Normalised, Countable, Conditionable):
    """k members of a family for each class, in float64.

    Args:
        family: classes * k members (k without classes); class c owns members c k .. (c + 1) k - 1.
        k: members for each class.
        classes: number of labels; 0 for none.
        weight_prior: alpha >= 1, the concentration of a symmetric Dirichlet prior of the weights; 1 is no prior.
        restarts: random starts that `initialise` tries; the one of highest posterior after a few EM steps is kept.

    Raises:
        ConfigError: k < 1, a family of another number of members, or alpha < 1, whose mode is no mixture.

    >>> from protea.distributions.gaussian import Gaussian
    >>> x = Streams(0, 400).normal(2, dtype=torch.float64)
    >>> model = Mixture(Gaussian(2, (2,), "diag"), k=2)
    >>> model.initialise(Rows(x, None, torch.arange(400)))
    >>> model.maximise(model.expect(x))
    >>> model.log_prob(x[:5]).shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 2]))
    """

    class_prior: Tensor

    def __init__(self, family: Family, k: int, classes: int = 0, weight_prior: float = 1.0, restarts: int = 1) -> None:
        super().__init__()
        self.groups = max(classes, 1)
        if k < 1 or restarts < 1 or family.members != self.groups * k:
            raise ConfigError(f"{self.groups} classes of k={k} members do not make the family's {family.members}.",
                              "k and restarts must be positive, and the family have classes * k members.")  # fmt: skip
        if not weight_prior >= 1:
            raise ConfigError(f"A weight prior of {weight_prior} has its mode where weights are 0.", "Give at least 1.")
        self.family, self.k, self.classes, self.weight_prior = family, k, classes, float(weight_prior)
        self.restarts = restarts
        self.event, self.dim = family.event, math.prod(family.event)
        self.block = 512 if self.dim <= 256 else 64
        weights = torch.full((self.groups, k), -math.log(k), dtype=torch.float64)
        self.log_weights = nn.Parameter(weights, requires_grad=False)  # of members within their class
        self.register_buffer("class_prior", torch.full((self.groups,), 1 / self.groups, dtype=torch.float64))

    # ---- density ----

    def _groups(self, x: Tensor, cond: Tensor | None) -> Iterator[tuple[Tensor | None, slice]]:
        """Rows that use the same members: (row numbers, None for all; members)."""
        everything = slice(0, self.groups * self.k)
        if cond is None or not self.classes:
            yield None, everything
            return
        cond = self._labels(cond)
        for c in cond.unique().tolist():
            yield (cond == c).nonzero()[:, 0], everything if c < 0 else slice(c * self.k, (c + 1) * self.k)

    def _chunks(self, x: Tensor, rows: Tensor | None, entries: int) -> Iterator[Tensor | slice]:
        """The rows, by `entries` of temporaries each, in parts that fit the cache of a core (or fill a GPU)."""
        size = CHUNK * torch.get_num_threads() if x.device.type == "cpu" else 1 << 24
        step = max(256, size // entries)
        count = len(x) if rows is None else len(rows)
        for i in range(0, count, step):
            yield slice(i, min(i + step, count)) if rows is None else rows[i : i + step]

    def _entries(self, own: slice) -> int:
        return max((own.stop - own.start) * self.family.width, self.dim)

    def _shares(self, x: Tensor, cond: Tensor | None) -> Iterator[tuple[Tensor | slice, Joint]]:
        """Rows in chunks, and the `_joint` of their members."""
        for rows, own in self._groups(x, cond):
            joint = self._joint(own)
            for part in self._chunks(x, rows, self._entries(own)):
                yield part, joint

    def _labels(self, cond: Tensor) -> Tensor:
        """Labels 0 .. classes - 1, all that are negative as -1."""
        if cond.is_floating_point():
            if bool((cond != cond.round()).any()):
                raise DataError(f"Labels of type {cond.dtype} are not whole numbers.",
                                f"Give integers 0 .. {self.classes - 1}, and -1 where unknown.")  # fmt: skip
            cond = cond.long()
        if len(cond) and int(cond.max()) >= self.classes:
            raise DataError(f"Label {int(cond.max())} is none of {self.classes} classes.",
                            f"Give integers 0 .. {self.classes - 1}, and -1 where unknown.")  # fmt: skip
        return cond.clamp(min=-1)

    def _joint(self, own: slice) -> Joint:
        """The function from rows to log w_k p(x | k) of some members, (B, members)."""
        density = self.family.density(own)
        log_w = self._log_weights(own)
        return lambda x, observed=None: density(x, observed) + log_w

    def _log_weights(self, own: slice) -> Tensor:
        """log w_k of some members; of all of them, times their class's frequency."""
        marginal = own.stop - own.start == self.groups * self.k
        log_w = self.log_weights + self.class_prior.log()[:, None] if marginal else self.log_weights
        return log_w.reshape(-1)[own]

    def _linear(self, own: slice) -> Linear | None:
        """log w_k p(x | k) = <eta_k, phi(x)> of some members, where the family has that form; phi ends in 1."""
        linear = self.family.linear(own)
        if linear is None:
            return None
        linear.eta[:, -1] += self._log_weights(own)
        return linear

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """log p(x | cond) in nats, (B,) float64; the marginal where cond is None or -1."""
        if not self.classes:
            refuse_labels(cond)
        out = self.log_weights.new_empty(len(x))
        for rows, own in self._groups(x, cond):
            fused = self.family.fused(x, own)
            if fused is not None:
                out[slice(None) if rows is None else rows], rows = fused.log_prob(x, self._log_weights(own), rows)
                if rows is None:
                    continue
            joint = self._joint(own)
            for part in self._chunks(x, rows, self._entries(own)):
                out[part] = torch.logsumexp(joint(x[part], None), 1)
        return out

    @torch.no_grad()
    def responsibilities(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """p(member | x), (B, classes, k): clusters, and the Bayes classifier p(y | x) when summed over k."""
        own = slice(0, self.groups * self.k)
        fused = self.family.fused(x, own) if observed is None else None
        if fused is None:
            r = torch.softmax(self._joint(own)(x, observed), 1)
        else:
            r, left = fused.shares(x, self._log_weights(own))
            if left is not None:
                r[left] = torch.softmax(self._joint(own)(x[left], None), 1)
        return r.view(-1, self.groups, self.k)

    # ---- EM ----

    @torch.no_grad()
    def expect(self, x: Tensor, cond: Tensor | None = None) -> Stats:
        """N_k and the family's statistics; labels of -1 are unknown."""
        total = self.groups * self.k
        n = self.log_weights.new_zeros(total)
        stats: Stats = {}
        log_prob = n.new_zeros(())

        def add(found: Stats) -> None:
            for name, value in found.items():
                stats[PREFIX + name] = stats[PREFIX + name].add_(value) if PREFIX + name in stats else value

        for rows, own in self._groups(x, cond):
            fused = self.family.fused(x, own)
            if fused is not None:
                found, reached, rows = fused.expect(x, self._log_weights(own), rows)
                log_prob += reached
                n += found["n"]
                add(found)
                if rows is None:
                    continue
            fast = self._linear(own)
            sums = None if fast is None else torch.zeros_like(fast.eta)
            eta = None if fast is None else LOG2E * fast.eta
            joint: Joint | None = None
            shares: Tensor | None = None
            for part in self._chunks(x, rows, self._entries(own) if fast is None else max(fast.eta.shape) // 2):
                part = x[part]
                phi = None if fast is None else fast.phi(part)
                if eta is not None and sums is not None and phi is not None:
                    if shares is None or shares.shape[1] != phi.shape[1]:  # fresh memory for each part costs a fifth
                        shares = phi.new_empty(len(eta), phi.shape[1])
                    torch.mm(eta, phi, out=shares)
                    log_prob += softmax_(shares, 0)
                    sums.addmm_(shares, phi.T)
                    continue
                joint = self._joint(own) if joint is None else joint
                r = joint(part, None)
                log_prob += softmax_(r.mul_(LOG2E), 1)
                n[own] += r.sum(0)
                add(self.family.expect(part, r, own))
            if sums is not None:
                n[own] += sums[:, -1]  # phi ends in 1
                add(self.family.gathered(sums, own))
        if not stats:
            empty = self.family.expect(x, n.new_zeros(len(x), total))
            stats = {PREFIX + name: value for name, value in empty.items()}
        return stats | {"n": n, "log_prob": log_prob, "count": n.new_tensor(float(len(x)))}

    @torch.no_grad()
    def maximise(self, stats: Stats) -> None:
        """The M-step; revives members that no row uses (see the module's docstring)."""
        n, own = stats["n"], self._family_stats(stats)
        live = n > EMPTY
        revive = self.weight_prior == 1 and bool(live.any()) and not bool(live.all())
        before = self._expected(n, own) if revive else None
        hold = n.view(self.groups, self.k) + self.weight_prior - 1
        seen = hold.sum(1) > EMPTY
        self.log_weights[seen] = (hold[seen] / hold[seen].sum(1, keepdim=True)).log()
        self.family.maximise(own)
        if before is not None:
            self._revive(n, live, float(self._expected(n, own) - before))

    @staticmethod
    def _family_stats(stats: Stats) -> Stats:
        return {name[len(PREFIX) :]: value for name, value in stats.items() if name.startswith(PREFIX)}

    def _expected(self, n: Tensor, own: Stats) -> Tensor:
        """The expected complete-data log-likelihood of the present parameters, up to a constant."""
        used = n > 0
        return (n[used] * self.log_weights.view(-1)[used]).sum() + self.family.expected(own)

    def _revive(self, n: Tensor, live: Tensor, gain: float) -> None:
        """Split heavy members into the places of empty ones, at the cost of at most half of `gain` nats."""
        length = min(0.5, math.sqrt(max(gain, 0.0) / float(n.sum())))
        if length < 1e-4:
            return  # converged: no split can be paid for
        log_w = self.log_weights.view(-1)
        for c in range(self.groups):
            own = torch.arange(c * self.k, (c + 1) * self.k, device=n.device)
            empty = own[~live[own]]
            heavy = own[n[own].argsort(descending=True)][: min(len(empty), int(live[own].sum()))]
            for e, h in zip(empty.tolist(), heavy.tolist()):
                if self.family.split(h, e, length):
                    log_w[h] -= math.log(2)
                    log_w[e] = log_w[h]

    def log_prior(self) -> Tensor:
        """log of the prior of weights (a normalised Dirichlet) and members."""
        alpha, k = self.weight_prior, self.k
        prior = self.family.log_prior()
        if alpha == 1:
            return prior
        constant = math.lgamma(k * alpha) - k * math.lgamma(alpha)
        return prior + self.groups * constant + (alpha - 1) * self.log_weights.sum()

    @torch.no_grad()
    def initialise(self, rows: Rows, seed: int = 0) -> None:
        """k-means++ centres and a few Lloyd steps for each class; the family starts from the hard assignment.

        With restarts, centres are chosen anew each time, and short runs of EM on at most 10,000 rows decide
        (Biernacki, Celeux & Govaert 2003, "Choosing starting values for the EM algorithm"). All are functions of the
        seed and the rows' numbers.
        """
        y = None if rows.y is None or not self.classes else self._labels(rows.y)
        if len(rows) == 0:
            raise DataError("A mixture cannot start from no rows.", "Give at least one row.")
        if y is not None:
            known = y[y >= 0]
            if len(known):
                self.class_prior.copy_(torch.bincount(known, minlength=self.classes).double() / len(known))
        if len(rows) > STARTING:
            rows = rows[permutation(len(rows), seed, "mixture start")[:STARTING]]
            y = None if rows.y is None or not self.classes else self._labels(rows.y)
        rows = Rows(rows.x, y, rows.ids)
        self._start(rows, seed)
        if self.restarts == 1:
            return
        trial = rows[permutation(len(rows), seed, "mixture trial")[:TRIAL_ROWS]]
        best, highest = {}, -math.inf
        for i in range(self.restarts):
            if i:
                self._start(rows, fold(seed, "restart", i))
            start = {name: t.clone() for name, t in self.state_dict().items()}
            for _ in range(TRIAL_STEPS):
                stats = self.expect(trial.x, trial.y)
                self.maximise(stats)
            reached = float(self.expect(trial.x, trial.y)["log_prob"] + self.log_prior())
            if reached > highest:
                best, highest = start, reached
        self.load_state_dict(best)

    def _start(self, rows: Rows, seed: int) -> None:
        x, y, ids = rows.x, rows.y, rows.ids
        points = self.family.coordinates(x)
        r = points.new_zeros(len(x), self.groups, self.k)
        for c in range(self.groups):
            mine = torch.arange(len(x), device=x.device) if y is None else (y == c).nonzero()[:, 0]
            if len(mine) == 0:  # a class without a row: as if it were all of them
                mine = torch.arange(len(x), device=x.device)
            for part, members in self._allowed(x, mine):
                _, label = kmeans(points[part], ids[part.cpu()], len(members), fold(seed, "kmeans", c))
                r[part, c, members[label]] = 1.0
        n = r.sum(0).clamp(min=1)
        self.log_weights.copy_((n / n.sum(1, keepdim=True)).log())
        self.family.initialise(x, r.view(len(x), -1))

    def _allowed(self, x: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows that the same members of a class may have made, and these members."""
        allowed = None if self.classes else self.family.allows(x[rows])
        if allowed is None:
            yield rows, torch.arange(self.k, device=x.device)
            return
        patterns, which = allowed.unique(dim=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            yield rows[which == i], pattern.nonzero()[:, 0]

    # ---- drawing and conditioning ----

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        if not self.classes:
            refuse_labels(cond)
        elif cond is None:
            cond = rng.child("label").categorical(self.class_prior.log().expand(len(rng), -1))
        group = torch.zeros(len(rng), dtype=torch.int64, device=self.log_weights.device) if cond is None else cond
        inside = rng.child("component").categorical(self.log_weights[group])
        return self.family.draw(rng, group * self.k + inside)

    def given(self, x: Tensor, observed: Tensor) -> ConditionalMixture:
        """The exact conditional p(. | x[observed]), a mixture again; see `ConditionalMixture`."""
        conditional = ConditionalMixture(
            self.family, self.log_weights, self.class_prior, self.classes, x, observed, self.block
        )
        if hasattr(self, "space"):
            conditional.space = self.space
        return conditional

    # ---- choice of k ----

    def free_parameters(self) -> int:
        """Number of free parameters (class frequencies are not counted)."""
        return self.groups * (self.k - 1) + self.family.free()

    def bic(self, x: Tensor, cond: Tensor | None = None) -> float:
        """Bayesian information criterion, free log B - 2 log p(x): lower is better."""
        return self.free_parameters() * math.log(len(x)) - 2 * float(self.log_prob(x, cond).sum())

    def aic(self, x: Tensor, cond: Tensor | None = None) -> float:
        """Akaike's information criterion, 2 free - 2 log p(x): lower is better."""
        return 2 * self.free_parameters() - 2 * float(self.log_prob(x, cond).sum())

    @torch.no_grad()
    def icl(self, x: Tensor, cond: Tensor | None = None) -> float:
        """Integrated completed likelihood, BIC + 2 sum_b H(r_b): it asks for clusters that do not overlap. Lower is
        better. (Biernacki, Celeux & Govaert 2000, with their entropy form.)"""
        entropy = 0.0
        for rows, joint in self._shares(x, cond):
            log_r = torch.log_softmax(joint(x[rows], None), 1)
            entropy -= float(torch.special.xlogy(log_r.exp(), log_r.exp()).sum())
        return self.bic(x, cond) + 2 * entropy
