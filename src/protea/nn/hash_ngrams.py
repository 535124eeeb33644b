r"""Embeddings of hashed byte n-grams (Pagnoni et al. 2024, section 3.2.1).

    e_t = x_t + sum_n E_n[hash(b_{t-n+1} .. b_t) mod V_h],   hash(g) = sum_i g_i p^i  (in 64 bits),

so that a byte knows the word it stands in before any attention. Bytes before the text are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# The primes of the paper's code, in its order: one for each hash function.
PRIMES = (1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899, 9576890767, 3628273133)


class HashNGrams(nn.Module):
    """The sum of the n-grams' embeddings.

    Args:
        sizes: n, of the n-grams.
        buckets: V_h, rows of a table.
        d_model: width.
        functions: hash functions; each has its tables.

    >>> grams = HashNGrams((3, 4), 10, 8)
    >>> grams(torch.tensor([[1, 2, 3]]), torch.arange(3)[None], torch.zeros(1, 3, dtype=torch.int64)).shape
    torch.Size([1, 3, 8])
    """

    powers: Tensor

    def __init__(self, sizes: Sequence[int], buckets: int, d_model: int, functions: int = 1) -> None:
        super().__init__()
        self.sizes, self.buckets, self.functions = tuple(sizes), buckets, functions
        self.back = max(self.sizes, default=1) - 1  # bytes before a byte that its n-grams hold
        self.weight = nn.Parameter(0.02 * torch.randn(functions * len(self.sizes) * buckets, d_model))

    def forward(self, tokens: Tensor, positions: Tensor, past: Tensor) -> Tensor:
        """(B, T, d_model) of tokens (B, T) at positions (B, T), after the `back` tokens (B, back) of `past`."""
        t, held = tokens.shape[1], torch.cat((past, tokens), 1)
        grams = torch.stack([  # (back + 1, B, T): the byte itself, the one before ...
            held[:, self.back - j : self.back - j + t] * (positions >= j) for j in range(self.back + 1)
        ])  # fmt: skip
        index, table = [], 0
        for prime in PRIMES[: self.functions]:
            powers = torch.tensor(prime, device=tokens.device) ** torch.arange(self.back + 1, device=tokens.device)
            for n in self.sizes:
                code = (grams[:n] * powers[:n].flip(0)[:, None, None]).sum(0)
                index.append(code % self.buckets + table * self.buckets)
                table += 1
        return nn.functional.embedding(torch.stack(index), self.weight).sum(0)
