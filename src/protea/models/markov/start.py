r"""Where Baum-Welch starts from: weights r (N, K) of the states for each step, and one M-step from them.

- Chains that only move on (left to right, profiles): every sequence is cut into as many equal stretches as there are
  states (Rabiner 1989, section V.B, "segmental").
- Real observations: k-means++ and a few Lloyd steps on the observations, whatever their order (as hmmlearn does).
- Codes: codes that keep the same company share a state. Each is described by the square roots of the frequencies of
  what follows and what precedes it (Hellinger's geometry), and these are clustered by k-means; a random lean of each
  code lets states share codes, and makes states of one code differ.

The chain starts from the steps that these weights take, with a pseudo-count for every step allowed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from protea.distributions.family import Family
from protea.models.classical.kmeans import kmeans
from protea.models.markov.chain import Chain
from protea.models.markov.packed import Packed
from protea.rng import Streams, fold
from protea.space import Rows

LEAN = 1.0  # deviation of the random logits of a code's states
COMPANY = 3.0  # by how much a code leans to the state of those that keep the same company
MOST_CODES = 2048  # distinct observations up to which their pairs are counted


def begin(emission: Family, chain: Chain, rows: Rows, packed: Packed, seed: int) -> None:
    """Set the parameters of emission and chain."""
    k = chain.states
    x = packed.pack(rows.x)
    if len(x) == 0:
        return
    if _only_on(chain):
        where = packed.step * k // packed.lengths[packed.row].clamp(min=1)
        r = one_hot(where, k).double()
    elif x.is_floating_point():
        flat = x.reshape(len(x), -1).double()
        seen = ~flat.isnan()
        mean = torch.where(seen, flat, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        spread = torch.where(seen, flat - mean, 0.0).square().mean(0).sqrt().clamp(min=1e-12)
        ids = rows.ids[packed.row] * packed.steps + packed.step
        r = one_hot(kmeans(torch.where(seen, (flat - mean) / spread, 0.0), ids, k, fold(seed, "states"))[1], k).double()
    else:
        flat = x.reshape(len(x), -1)
        name = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for column in flat.T:
            name = name * 1_000_003 + column + 1
        codes, of = name.unique(return_inverse=True)
        lean = Streams(fold(seed, "states"), codes.cpu()).normal(k, dtype=torch.float64).to(x.device)
        if 1 < len(codes) <= MOST_CODES and not chain.silent:
            company = kmeans(_company(of, len(codes), packed), torch.arange(len(codes)), k, fold(seed, "company"))[1]
            lean = lean + COMPANY * one_hot(company, k)
        r = torch.softmax(LEAN * lean, 1)[of]
    emission.initialise(x, r)
    _begin_chain(chain, r, packed)


def _company(of: Tensor, codes: int, packed: Packed) -> Tensor:
    """(codes, 2 codes): square roots of the frequencies of what follows each code, and of what precedes it."""
    now = packed.followed
    pairs = torch.bincount(of[now] * codes + of[now + 1], minlength=codes * codes).double()
    pairs = pairs.view(codes, codes)
    both = torch.cat((pairs, pairs.T), 1)
    return (both / both.sum(1, keepdim=True).clamp(min=1)).sqrt()


def _only_on(chain: Chain) -> bool:
    """Whether no state that emits can be come back to once it is left."""
    step = chain.mask[1:, :-1]
    k = chain.states
    return k > 1 and not bool(step[:k, :k].tril(-1).any()) and not chain.silent


def _begin_chain(chain: Chain, r: Tensor, packed: Packed) -> None:
    if chain.silent:
        return
    now = packed.followed
    n = torch.zeros_like(chain.logits)
    n[0, :-1], n[1:, :-1] = r[packed.first].sum(0), r[now].T @ r[now + 1]
    if chain.ends:
        n[1:, -1] = r[packed.last].sum(0)
    chain.maximise(n + chain.mask)
