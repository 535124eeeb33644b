r"""Hidden Markov models as members of a family, so that they can be mixed, or one learnt for each class.

    p(x) = sum_g w_g p(x | chain g)

A `Mixture` of this family clusters sequences by their dynamics (Smyth 1997, "Clustering sequences with hidden Markov
models"); with one member a class it is the classifier of isolated words (Rabiner 1989, section VI).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from protea.core import Stats
from protea.distributions.family import Density, Family
from protea.errors import ConfigError, NotSupported
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.packed import known
from protea.rng import Streams, fold
from protea.space import Rows


class MarkovFamily(Family):
    """Chains over sequences of one shape.

    Args:
        chains: the members, which need not be of one size.

    Raises:
        ConfigError: no members, or members over different sequences.
    """

    def __init__(self, chains: Sequence[HiddenMarkov]) -> None:
        super().__init__()
        if not chains or len({chain.event for chain in chains}) > 1:
            raise ConfigError(f"{len(chains)} chains do not share the shape of their sequences.",
                              "Give at least one, all of the same event.")  # fmt: skip
        self.chains, self.members, self.event = nn.ModuleList(chains), len(chains), chains[0].event
        # What ends a sequence is seen where lengths are modelled.
        self.nan_is_value = any(chain.lengths is not None or chain.chain.ends for chain in chains)
        self.width = self.event[0] * max(chain.states for chain in chains)

    def _own(self, own: slice | None) -> list[tuple[int, HiddenMarkov]]:
        every = range(self.members)[own or slice(None)]
        return [(i, self.chains[i]) for i in every]  # type: ignore[misc]

    def density(self, own: slice | None = None) -> Density:
        chains = [chain for _, chain in self._own(own)]

        def score(x: Tensor, observed: Tensor | None) -> Tensor:
            if observed is None:
                return torch.stack([chain.log_prob(x) for chain in chains], 1)
            return torch.stack([chain.given(x, observed).evidence for chain in chains], 1)

        return score

    def expect(self, x: Tensor, r: Tensor, own: slice | None = None, observed: Tensor | None = None) -> Stats:
        if observed is not None and not bool(observed.all()):
            raise NotSupported("Chains are learnt from whole sequences.", "Mark gaps as NaN, or as a negative code.")
        out: Stats = {}
        for name, chain in self.chains.named_children():
            assert isinstance(chain, HiddenMarkov)
            mine = [j for j, (i, _) in enumerate(self._own(own)) if i == int(name)]
            weights = r[:, mine[0]].double() if mine else r.new_zeros(0, dtype=torch.float64)
            part = chain.expect(x if mine else x[:0], weights=weights)
            out |= {f"{name}/{key}": value for key, value in part.items()}
        return out

    def _each(self, stats: Stats) -> list[tuple[HiddenMarkov, Stats]]:
        return [(chain, {key.removeprefix(f"{i}/"): v for key, v in stats.items() if key.startswith(f"{i}/")})
                for i, chain in self._own(None)]  # fmt: skip

    def maximise(self, stats: Stats) -> None:
        for chain, own in self._each(stats):
            if float(own["count"]) > 0:
                chain.maximise(own)

    def expected(self, stats: Stats) -> Tensor:
        return torch.stack([chain.expected(own) for chain, own in self._each(stats)]).sum()

    def initialise(self, x: Tensor, r: Tensor, observed: Tensor | None = None) -> None:
        """Each chain starts from the rows it has most of; one without any from all rows, and a seed of its own."""
        most = one_hot(r.argmax(1), self.members).bool()
        for i, chain in self._own(None):
            mine = most[:, i].nonzero()[:, 0]
            mine = mine if len(mine) else torch.arange(len(x), device=x.device)
            chain.initialise(Rows(x[mine], None, mine), fold(0, "chain", i))

    def coordinates(self, x: Tensor) -> Tensor:
        """Means and deviations over time, by which sequences are clustered at the start; of codes, their shares."""
        if not x.is_floating_point():
            x = one_hot(x.clamp(min=0)).double() * (x >= 0)[..., None]
        flat = x.reshape(len(x), x.shape[1], -1).double()
        seen = known(flat)
        n = seen.sum(1).clamp(min=1)
        mean = torch.where(seen, flat, 0.0).sum(1) / n
        spread = (torch.where(seen, flat - mean[:, None], 0.0).square().sum(1) / n).sqrt()
        return torch.cat((mean, spread), 1)

    def draw(self, rng: Streams, which: Tensor) -> Tensor:
        drawn = torch.stack([chain.draw(rng) for _, chain in self._own(None)], 1)
        return drawn[torch.arange(len(which), device=which.device), which]

    def complete(self, rng: Streams, x: Tensor, observed: Tensor, which: Tensor) -> Tensor:
        rows = torch.arange(len(x), device=x.device)
        drawn = torch.stack([chain.given(x, observed).complete(rng, rows) for _, chain in self._own(None)], 1)
        return drawn[torch.arange(len(which), device=which.device), which]

    def fill(self, x: Tensor, observed: Tensor) -> Tensor:
        return torch.stack([chain.given(x, observed).mean for _, chain in self._own(None)], 1)

    def free(self) -> int:
        return sum(chain.free_parameters() for _, chain in self._own(None))

    def log_prior(self) -> Tensor:
        return torch.stack([torch.as_tensor(chain.log_prior()).double() for _, chain in self._own(None)]).sum()
