r"""Counter-based random streams: one for each sample, with no state to save.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a keyed
bijection of a 128-bit counter. We spend the counter on *(sample id, draw number, element)* and the
key on *(seed)*, so that every random number in Protea is a pure function of four integers:

    z[i, j] = normal(philox(counter = (element j, draw number, id_i), key = seed))

Three promises follow by construction. Sample *i* does not depend on the batch it is computed in.
A training step's noise belongs to the row it is added to, so one process, two processes and any
gradient accumulation see the same noise. And a checkpoint needs no generator state: the step
number is enough.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers of the two rounds' products
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl increments of the key


def _mulhilo(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    product = x * multiplier  # wraps to the right 64 bits; masks undo the sign
    return (product >> 32) & _MASK, product & _MASK


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words of counter to four of output (int64 tensors in [0, 2^32))."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mulhilo(_M0, c0)
        hi1, lo1 = _mulhilo(_M1, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def fold(seed: int, *tags: int | str) -> int:
    """A new 63-bit seed from a seed and tags, the same on every machine.

    >>> fold(0, "train", 3) == fold(0, "train", 3) != fold(0, "train", 4)
    True
    """
    digest = hashlib.blake2b(repr((int(seed), *tags)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Streams:
    """Random streams, one for each sample id; each call draws the next numbers of every stream.

    Args:
        seed: any integer; streams of different seeds are independent.
        ids: (B,) integers that name the samples, or a count `n` for ids 0 .. n-1.
        device: where drawn tensors are put. Numbers are always computed on the CPU.

    >>> a = Streams(7, 4).normal(3)
    >>> b = Streams(7, [2]).normal(3)
    >>> bool((a[2] == b[0]).all())
    True
    """

    def __init__(self, seed: int, ids: int | Sequence[int] | Tensor, device: torch.device | str = "cpu"):
        self.seed = int(seed)
        ids = torch.arange(ids) if isinstance(ids, int) else torch.as_tensor(ids, dtype=torch.int64)
        self.ids: Tensor = ids.cpu()
        self.device = torch.device(device)
        self.draws = 0
        self._runs: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def child(self, *tags: int | str) -> Streams:
        """An independent family of streams for the same samples."""
        return Streams(fold(self.seed, *tags), self.ids, self.device)

    def take(self, index: Tensor | slice) -> Streams:
        """The streams of some of the samples, from their beginning."""
        return Streams(self.seed, self.ids[index], self.device)

    def to(self, device: torch.device | str) -> Streams:
        """The same streams, delivering to another device."""
        return Streams(self.seed, self.ids, device)

    def _words(self, count: int) -> Tensor:
        """(B, count) 32-bit words as int64; the next draw of every stream."""
        quads = -(-count // 4)
        element = torch.arange(quads).expand(len(self), quads)
        ids = self.ids[:, None].expand(len(self), quads)
        draw = torch.full((1, 1), self.draws).expand(len(self), quads)
        self.draws += 1
        key = (self.seed & _MASK, (self.seed >> 32) & _MASK)
        out = philox((element, draw, ids & _MASK, (ids >> 32) & _MASK), key)
        return torch.stack(out, -1).reshape(len(self), 4 * quads)[:, :count]

    def uniform(self, *event: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *event) uniform on the open interval (0, 1)."""
        count = math.prod(event)
        if dtype == torch.float64:
            words = self._words(2 * count)
            high, low = words[:, :count] >> 6, words[:, count:] >> 6  # 26 + 26 bits: 1.0 is out of reach
            u = (high * 2.0**26 + low + 0.5) * 2.0**-52
        else:
            u = ((self._words(count) >> 9) + 0.5) * 2.0**-23
        return u.to(dtype).reshape(len(self), *event).to(self.device)

    def bernoulli(self, p: Tensor) -> Tensor:
        """(B, ...) of 0 and 1, of p's dtype: 1 with probability p (B, ...), to the resolution of `coins`.

        >>> rng, p = Streams(7, 4), torch.full((4, 3), 0.5)
        >>> bool((rng.bernoulli(p)[2] == Streams(7, [2]).bernoulli(p[:1])[0]).all())
        True
        """
        u = self.coins(*p.shape[1:]).to(p.device)
        return torch.lt(u, p.detach(), out=u) if u.dtype == p.dtype else (u < p).to(p.dtype)

    def coins(self, *event: int) -> Tensor:
        """(B, *event) float32 multiples of 2^-24 on [0, 1): below p with probability p, never for 0, always for 1.

        The fast way to many uniform numbers. The words are numpy's Philox4x64-10 (the same construction with twice the
        word, in C), whose counter runs on through the elements of a sample and on to the next id: neighbouring ids are
        one call. Stream i still depends on (seed, id, draw) alone.
        """
        width = math.prod(event)
        quads = -(-width // 8)  # of 64-bit words, each of which makes two numbers
        word = self._raw(quads).view(np.int32)
        words = torch.from_numpy(word).reshape(len(self), 8 * quads)[:, :width]
        u = words.bitwise_right_shift_(8).float().mul_(2.0**-24).add_(0.5)
        return u.reshape(len(self), *event).to(self.device)

    def _raw(self, quads: int) -> np.ndarray:
        """(B * quads * 4) 64-bit words; the next draw of every stream."""
        key = np.array([self.seed & (2**64 - 1), 0], dtype=np.uint64)
        draw = self.draws
        self.draws += 1
        if self._runs is None:  # ids in runs of neighbours
            ids = self.ids.tolist()
            starts = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1] + 1]
            self._runs = [(ids[a], b - a) for a, b in zip(starts, [*starts[1:], len(ids)])]
        parts = []
        for first, count in self._runs:
            counter = np.array([first * quads & (2**64 - 1), draw, 0, 0], dtype=np.uint64)
            parts.append(np.random.Philox(key=key, counter=counter).random_raw(4 * quads * count))
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.uint64)])

    def normal(self, *event: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *event) standard normal (Box-Muller in double precision)."""
        count = math.prod(event)
        half = -(-count // 2)
        words = self._words(2 * half).double()
        radius = torch.sqrt(-2.0 * torch.log((words[:, :half] + 0.5) * 2.0**-32))
        angle = (2.0 * math.pi * 2.0**-32) * words[:, half:]
        z = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), 1)[:, :count]
        return z.to(dtype).reshape(len(self), *event).to(self.device)

    def categorical(self, logits: Tensor) -> Tensor:
        """(B, ...) indices drawn from softmax(logits) over the last axis, by inverting its CDF."""
        p = torch.softmax(logits.double(), -1)
        u = self.uniform(*logits.shape[1:-1], dtype=torch.float64).to(logits.device)
        index = (p.cumsum(-1) < u[..., None] * p.sum(-1, keepdim=True)).sum(-1)
        return index.clamp(max=logits.shape[-1] - 1)


def permutation(n: int, seed: int, *tags: int | str) -> Tensor:
    """A permutation of 0 .. n-1 that depends on the seed and the tags alone."""
    return torch.argsort(Streams(fold(seed, "permutation", *tags), n).uniform(1, dtype=torch.float64)[:, 0])
