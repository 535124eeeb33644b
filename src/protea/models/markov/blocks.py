r"""A scan over one long sequence, or a few, cut into S blocks of L steps that run side by side.

Composition of steps is associative, so a block has a transfer matrix, which does not depend on what comes before it:

    V_s(i, j) = p(x of block s, z_end = j | z_before = i) = (A diag(b_1) ... A diag(b_L))_{ij}

L products of all S blocks at once give V; S small products chain it, forwards (alpha before each block) and backwards
(beta after it); L steps of S B rows then fill in the blocks. That is 3 L + 2 S steps in place of 2 T, for K times the
arithmetic of one pass: it wins where steps are so small that starting them costs more than doing them.

(Ladner & Fischer 1980, "Parallel prefix computation"; Särkkä & García-Fernández 2021, "Temporal parallelization of
Bayesian smoothers". Two levels suffice: nothing is gained by a tree while S products in turn cost less than L.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protea.models.markov import steps
from protea.models.markov.packed import Packed

START = 1.5e-5  # seconds to start one step of a few operations
RATE = 5e9  # multiplications in a second, of matrices that small


def block_length(packed: Packed, k: int) -> int:
    """L of least estimated time over powers of two, or 0 where a plain scan is estimated to take less than twice it.

    Sequences must be of one length. START and RATE are measured (benchmarks/bench_hmm.py); the estimate for plain steps
    is 2 T (START + B K^2 / RATE), and that for blocks L (3 START + (S B K^3 + 2 S B K^2) / RATE) + 6 S START.
    """
    t, b = len(packed.active), packed.count
    if not packed.uniform or t < 64:
        return 0
    best, length = t * (START + b * k * k / RATE), 0
    for power in range(3, 16):
        size = 2**power
        s = (t - 1) // size
        if s < 2:
            break
        cost = size * (3 * START + s * b * k * k * (k + 2) / RATE) + 6 * s * START
        if cost < best:
            best, length = cost, size
    return length


@dataclass(frozen=True)
class Blocks:
    """The blocked part of a forward pass, kept for the backward one: steps 1 .. S L, of T.

    b, alpha (L, S B, K), scale (L, S B, 1); before (S, B, K) alpha ahead of each block; transfer (S, B, K, K), whose
    rows are scaled by the exponential of log_scale (S, B, K).
    """

    b: Tensor
    alpha: Tensor
    scale: Tensor
    before: Tensor
    transfer: Tensor
    log_scale: Tensor


def _transfers(b: Sequence[Tensor], a: Tensor, every: int) -> tuple[Tensor, Tensor]:
    rows, k = b[0].shape
    v = torch.eye(k, dtype=a.dtype, device=a.device).expand(rows, k, k).reshape(rows * k, k)
    out, log_scale = torch.empty_like(v), v.new_zeros(rows, k)
    tiny = torch.finfo(a.dtype).tiny
    for t, b_t in enumerate(b):
        torch.mm(v, a, out=out)
        v, out = out, v if t else torch.empty_like(v)
        cube = v.view(rows, k, k)
        cube.mul_(b_t[:, None, :])
        if (t + 1) % every == 0 or t + 1 == len(b):
            c = cube.sum(2, keepdim=True).clamp_(min=tiny)  # a state without a way on keeps its row of zeros
            cube.div_(c)
            log_scale += c[:, :, 0].log()
    return v.view(rows, k, k), log_scale


def forward(b: Tensor, alpha: Tensor, scale: Tensor, a: Tensor, every: int, packed: Packed, length: int) -> Blocks:
    """Fill packed alpha (N, K) and scale (N, 1), as `steps.forward` does."""
    n, k = packed.count, b.shape[1]
    s = (len(packed.active) - 1) // length
    head, tail = slice(n, n * (1 + s * length)), slice(n * (1 + s * length), None)

    def cut(v: Tensor) -> Tensor:
        return v[head].view(s, length, n, v.shape[1]).transpose(0, 1).contiguous().view(length, s * n, v.shape[1])

    steps.forward((b[:n],), (alpha[:n],), (scale[:n],), a, 1, None)
    inside = cut(b)
    transfer, log_scale = (v.view(s, n, *v.shape[1:]) for v in _transfers(inside.unbind(), a, every))
    before = [alpha[:n]]
    for v, ls in zip(transfer[:-1], log_scale):
        share = before[-1] * (ls - ls.amax(1, keepdim=True)).exp()
        out = torch.bmm(share[:, None], v)[:, 0]
        before.append(out / out.sum(1, keepdim=True))
    starts = torch.stack(before)
    blocks = Blocks(inside, torch.empty_like(inside), torch.ones_like(inside[..., :1]), starts, transfer, log_scale)
    steps.forward(blocks.b.unbind(), blocks.alpha.unbind(), blocks.scale.unbind(), a, every, starts.view(-1, k))
    for whole, part in ((alpha, blocks.alpha), (scale, blocks.scale)):
        whole[head].view(s, length, n, -1).copy_(part.view(length, s, n, -1).transpose(0, 1))
    rest = [v[tail].split(n) for v in (b, alpha, scale)]
    steps.forward(*rest, a, every, alpha[tail.start - n : tail.start])
    return blocks


def backward(
    blocks: Blocks, w: Tensor, alpha: Tensor, scale: Tensor, a: Tensor, every: int, last: Tensor, peak: Tensor | None,
    packed: Packed,
) -> Tensor:  # fmt: skip
    """Turn packed alpha into gamma; returns the derivative with respect to A. As `steps.backward`."""
    n, k = packed.count, w.shape[1]
    length, s = len(blocks.b), len(blocks.before)
    end = n * (1 + s * length)
    pairs, beta = torch.zeros_like(a), last
    total = (alpha[-n:] * last).sum(1, keepdim=True)  # alpha . beta of every step
    if len(w) > end:
        rest = [n] * (len(packed.active) - 1 - s * length)
        pairs += steps.backward(w[end:], alpha[end:], scale[end:], rest, a, every, last, peak)
        beta = w[end : end + n] @ a.T
        pairs += alpha[end - n : end].T @ w[end : end + n]
    after = [beta]
    for before, v, ls in zip(blocks.before[1:].flip(0), blocks.transfer[1:].flip(0), blocks.log_scale[1:].flip(0)):
        beta = torch.bmm(v, after[-1][:, :, None])[:, :, 0] * (ls - ls.amax(1, keepdim=True)).exp()
        after.append(beta * (total / (before * beta).sum(1, keepdim=True)))
    ends = torch.stack(after[::-1]).view(-1, k)
    high = None if peak is None else torch.zeros_like(ends)
    flat = [v.view(length * s * n, -1) for v in (blocks.b, blocks.alpha, blocks.scale)]
    pairs += steps.backward(*flat, [s * n] * length, a, every, ends, high)
    first = blocks.b[0]
    pairs += blocks.before.view(-1, k).T @ first
    beta = first[:n] @ a.T
    if peak is not None and high is not None:
        torch.maximum(peak, torch.maximum(high.view(s, n, k).amax(0), beta), out=peak)
    alpha[:n].mul_(beta)
    alpha[n:end].view(s, length, n, k).copy_(blocks.alpha.view(length, s, n, k).transpose(0, 1))
    return pairs
