r"""The way back along the most probable path, of many stretches of time at once.

    z_T known,    z_t = argmax_i delta_t(i) A_{i, z_{t+1}}

is a step after the other, but paths that end in different states soon meet (which is why a receiver can decide on old
symbols: Forney 1973). So time is cut into blocks; each is traced from the state that is best at its end when nothing
later is known, all blocks side by side. Where the path of the block after it arrives in another state, the block is
traced again from there until it meets what it had. The result is that of the step-by-step rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

ENTRIES = 1 << 16  # of the products of one step of all blocks, which should stay in the cache
LENGTH = 32  # least steps of a block


def best(values: Tensor) -> Tensor:
    """The first i of the largest value (K, M) >= 0, (M,).

    In float64 the index is written into the last bits of the value (four for 16 states, a relative change of 4e-15) and
    the maximum taken of integers, whose order is the same: argmax spends its time on branches guessed wrongly.

    >>> best(torch.tensor([[0.1, 0.0], [0.3, 0.0], [0.3, 0.0]], dtype=torch.float64)).tolist()
    [1, 0]
    """
    k = len(values)
    if values.dtype != torch.float64:
        return values.max(0).indices
    low = (1 << (k - 1).bit_length()) - 1
    tags = low - torch.arange(k, device=values.device)
    tagged = values.view(torch.int64).bitwise_and(~low).bitwise_or_(tags.view(k, *[1] * (values.ndim - 1)))
    return low - tagged.amax(0).bitwise_and_(low)


def trace(delta: Tensor, a: Tensor, path: Tensor) -> Tensor:
    """Fill the path (T, n) of n sequences, whose last row is there, from delta (K, T, n) and A (K, K)."""
    k, t, n = delta.shape
    length = max(LENGTH, -(-t * n * k // ENTRIES))
    ends = torch.arange((t - 1) % length, t, length)  # of the blocks
    path[ends[:-1]] = best(delta[:, ends[:-1]])
    z, arrived = path[ends], torch.full((len(ends), n), -1)
    for back in range(1, length + 1):
        first = int(ends[0]) - back
        if first < 0:  # the first block is over
            z, first = z[len(z) - len(ends) + 1 :], first + length
        if len(z):
            reach = a.gather(1, z.reshape(1, -1).expand(k, -1)).view(k, -1, n)
            z = best(reach.mul_(delta[:, first : t - back : length]))
            if back < length:
                path[first : t - back : length] = z
    arrived[1:] = z  # at the end of the block before
    _mend(path, delta, a, ends, arrived, length)
    return path


def _mend(path: Tensor, delta: Tensor, a: Tensor, ends: Tensor, arrived: Tensor, length: int) -> None:
    """Trace blocks again whose end is not where the path after them arrived, until none is left."""
    while True:
        block, row = (arrived[1:] != path[ends[:-1]]).nonzero().T
        if not len(block):
            return
        z, at = arrived[block + 1, row], ends[block]
        path[at, row] = z
        for back in range(1, length + 1):
            keep = at > 0
            block, row, z, at = block[keep], row[keep], z[keep], at[keep] - 1
            z = best(a[:, z] * delta[:, at, row])
            if back == length:
                arrived[block, row] = z
                break
            keep = z != path[at, row]  # the others have met what was there
            block, row, z, at = block[keep], row[keep], z[keep], at[keep]
            if not len(z):
                break
            path[at, row] = z
