r"""The scaled scan in PyTorch, whose steps run one after the other, or in S blocks of L steps side by side.

Composition of steps is associative, so a block has a transfer matrix, which does not depend on what comes before it:

    V_s(i, j) = p(x of block s, z_end = j | z_before = i) = (A diag(b_1) ... A diag(b_L))_{ij}

L products of all S blocks at once give V; S small products chain it, forwards (alpha before each block) and backwards
(beta after it); L steps of S B rows then fill in the blocks. That is 3 L + 2 S steps in place of 2 T, for K times the
arithmetic of one pass: it wins where steps are so small that starting them costs more than doing them. A plain scan is
one block. A sequence that has ended keeps its alpha, and its transfer is the identity.

(Ladner & Fischer 1980, "Parallel prefix computation"; Särkkä & García-Fernández 2021, "Temporal parallelization of
Bayesian smoothers". Two levels suffice: nothing is gained by a tree while S products in turn cost less than L.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.models.markov.packed import Packed

START = 1.5e-5  # seconds to start one step of a few operations
RATE = 5e9  # multiplications in a second, of matrices that small


def block_length(packed: Packed, k: int) -> int:
    """L of least estimated time over powers of two, or T where a plain scan is estimated to take less than twice it.

    The estimate for plain steps is 2 T (START + B K^2 / RATE), and that for blocks
    L (3 START + (S B K^3 + 2 S B K^2) / RATE) + 6 S START.
    """
    t, b = packed.steps, packed.count
    best, length = t * (START + b * k * k / RATE), t
    for power in range(3, 16):
        size = 2**power
        s = -(-(t - 1) // size)
        if t < 64 or s < 3:
            break
        cost = size * (3 * START + s * b * k * k * (k + 2) / RATE) + 6 * s * START
        if cost < best:
            best, length = cost, size
    return length


def _scaled(v: Tensor) -> tuple[Tensor, Tensor]:
    c = v.sum(-1, keepdim=True)
    return v / c, c


def _transfers(b: Tensor, going: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """V (S B, K, K) of b (L, S B, K), with rows divided by the exponential of the second (S B, K)."""
    k, tiny = b.shape[2], torch.finfo(b.dtype).tiny
    v = torch.eye(k, dtype=b.dtype, device=b.device).expand(b.shape[1], k, k)
    log_scale = b.new_zeros(b.shape[1], k)
    for b_t, on in zip(b, going):
        now = (v @ a) * b_t[:, None, :]
        c = now.sum(2, keepdim=True).clamp(min=tiny)  # a state without a way on keeps its row of zeros
        v = torch.where(on[:, :, None], now / c, v)
        log_scale = log_scale + torch.where(on, c[:, :, 0].log(), 0.0)
    return v, log_scale


class Scan:
    """The forward pass over b (B, T, K), T >= 1, whose largest entries are 1 and whose first step holds pi.

    log_c (B,) is the logarithm of what alpha was divided by; final (B, K) the last alpha of each sequence.
    """

    def __init__(self, b: Tensor, a: Tensor, packed: Packed, length: int) -> None:
        self.n, self.steps, self.k = b.shape
        self.a, self.first = a, b[:, 0]
        self.alpha_1, c = _scaled(self.first)
        self.s = max(1, -(-(self.steps - 1) // max(length, 1)))
        self.length = -(-(self.steps - 1) // self.s)
        self.b, self.going = self._cut(b), self._cut(packed.running[:, :, None])
        self.before = self.alpha_1[None]  # alpha ahead of each block, (S, B, K)
        if self.s > 1:
            v, log_scale = _transfers(self.b, self.going, a)
            self.v, self.log_scale = v.view(self.s, self.n, self.k, self.k), log_scale.view(self.s, self.n, self.k)
            for v, ls in zip(self.v[:-1], self.log_scale):
                share = self.before[-1] * (ls - ls.amax(1, keepdim=True)).exp()
                now, _ = _scaled((share[:, None] @ v)[:, 0])
                self.before = torch.cat((self.before, now[None]))
        self.alpha, self.c = torch.empty_like(self.b), torch.ones_like(self.b[:, :, :1])
        now = self.before.reshape(-1, self.k)
        for t, (b_t, on) in enumerate(zip(self.b, self.going)):
            after, scale = _scaled(now @ a * b_t)
            now = self.alpha[t] = torch.where(on, after, now)
            self.c[t] = torch.where(on, scale, 1.0)
        self.final = now.view(self.s, self.n, self.k)[-1]
        self.log_c = c[:, 0].double().log() + self.c.double().log().sum(0).view(self.s, self.n).sum(0)

    def _cut(self, v: Tensor) -> Tensor:
        """Steps 1 .. T of (B, T, ...) by blocks, (L, S B, ...), with zeros after the last."""
        v, width = v[:, 1:].transpose(0, 1), v.shape[2]
        v = torch.cat((v, v.new_zeros(self.s * self.length - len(v), self.n, width)))
        v = v.view(self.s, self.length, self.n, width).transpose(0, 1)
        return v.reshape(self.length, self.s * self.n, width)

    def _joined(self, first: Tensor, v: Tensor) -> Tensor:
        """(B, T, K) of the first step and the blocks."""
        v = v.view(self.length, self.s, self.n, self.k).transpose(0, 1)
        v = v.reshape(self.s * self.length, self.n, self.k)
        return torch.cat((first[None], v[: self.steps - 1])).transpose(0, 1)

    def filtered(self) -> Tensor:
        """alpha (B, T, K)."""
        return self._joined(self.alpha_1, self.alpha)

    def backward(self, last: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gamma (B, T, K), each sequence's share of d log p / dA (B, K, K), and the largest beta (B, K).

        last (B, K) is beta of the last steps, share (B, 1) what alpha . beta is.
        """
        after = last[None]  # beta behind each block, (S, B, K)
        for s in range(self.s - 1, 0, -1):
            ls = self.log_scale[s]
            beta = (self.v[s] @ after[0][:, :, None])[:, :, 0] * (ls - ls.amax(1, keepdim=True)).exp()
            beta = beta * (share / (self.before[s] * beta).sum(1, keepdim=True))
            after = torch.cat((beta[None], after))
        beta, end = after.reshape(-1, self.k), last.repeat(self.s, 1)
        peak, w, gamma = beta, torch.empty_like(self.b), torch.empty_like(self.b)
        for t in range(self.length - 1, -1, -1):
            gamma[t] = self.alpha[t] * beta
            w[t] = torch.where(self.going[t], self.b[t] * beta / self.c[t], 0.0)
            beta = torch.where(self.going[t], w[t] @ self.a.T, end)
            peak = torch.maximum(peak, beta)
        earlier = torch.cat((self.before.reshape(1, -1, self.k), self.alpha[:-1])) if self.length else self.alpha
        pairs = torch.einsum("tni,tnj->nij", earlier, w).view(self.s, self.n, self.k, self.k).sum(0)
        return self._joined(self.alpha_1 * beta[: self.n], gamma), pairs, peak.view(self.s, self.n, self.k).amax(0)
