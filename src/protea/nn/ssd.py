r"""State space duality: a decaying memory as matrix products over chunks (Dao & Gu 2024, "Transformers are SSMs").

    S_t = a_t S_{t-1} + k_t v_t^T,   y_t = q_t^T S_t,   0 <= a_t <= 1 a scalar of each head,

unrolled is y = (q k^T * L) v with L_ts = a_{s+1} ... a_t for s <= t. A chunk of `CHUNK` tokens uses that form; the
states at the ends of chunks follow one another by a linear scan of T / CHUNK elements. Work is O(T CHUNK), there is no
loop over time, and every exponent is at most zero.

Sums of logarithms of a_t are taken in float64, whose differences do not cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protea.nn.precise import precise
from protea.nn.scan import linear_scan

CHUNK = 64


class Decay:
    """What is left at token t of what a chunk's token s wrote, and of the state it began with.

    Args:
        log_a: (B, H, M, L) logarithms of the decay, of M chunks of L tokens.
        restart: (B, M, L), True where a text begins; or None.

    Attributes:
        within: (B, H, M, L, L), prod_{s < r <= t} a_r, zero above the diagonal and between texts.
        since: (B, H, M, L), left at t of the state before the chunk.
        until: (B, H, M, L), left at the chunk's end of what s wrote.
    """

    def __init__(self, log_a: Tensor, restart: Tensor | None) -> None:
        t = log_a.shape[-1]
        total = log_a.double().cumsum(-1)
        seen = torch.ones(t, t, dtype=torch.bool, device=log_a.device).tril()
        begun = None if restart is None else restart.cumsum(-1)[:, None]  # how many texts have begun in the chunk
        if begun is not None:
            seen = seen & (begun[..., :, None] == begun[..., None, :])
        between = (total[..., :, None] - total[..., None, :]).to(log_a.dtype)
        self.within = between.masked_fill(~seen, -torch.inf).exp()
        self.since = total.to(log_a.dtype).exp()
        if begun is not None:
            self.since = self.since * (begun == 0)
        self.until = self.within[..., -1, :]


def chunked(x: Tensor, chunk: int) -> Tensor:
    """(B, T, H, ...) to (B, H, M, chunk, ...), with zeros after the end."""
    short = -x.shape[1] % chunk
    if short:
        x = torch.cat((x, x.new_zeros(x.shape[0], short, *x.shape[2:])), 1)
    return x.unflatten(1, (-1, chunk)).movedim(3, 1)


def unchunked(y: Tensor, t: int) -> Tensor:
    """The inverse: (B, H, M, chunk, P) to (B, t, H, P)."""
    return y.flatten(2, 3)[:, :, :t].transpose(1, 2)


def ssd(
    q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, state: Tensor | None = None, restart: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y_t of all tokens, and the state after the last.

    Args:
        q, k: (B, T, G, N); head h reads group h // (H / G).
        v: (B, T, H, P).
        log_a: (B, T, H), at most 0.
        state: (B, H, N, P), S before the first token; None for zeros.
        restart: (B, T), True where a text begins, that sees nothing before it; or None.
        chunk: tokens computed by one matrix; the result does not depend on it.

    Returns:
        y (B, T, H, P) and S_T (B, H, N, P).

    >>> one = torch.ones(1, 3, 1, 1)
    >>> ssd(one, one, one, torch.full((1, 3, 1), 0.5).log())[0].flatten().tolist()
    [1.0, 1.5, 1.75]
    """
    t, heads, groups = v.shape[1], v.shape[2], q.shape[2]
    each = heads // groups
    if t == 1:  # decoding: the recurrence itself
        q_1, k_1 = (x[:, 0].repeat_interleave(each, 1) for x in (q, k))
        new = k_1[..., :, None] * v[:, 0, :, None, :]
        if state is not None:
            left = log_a[:, 0].exp() if restart is None else log_a[:, 0].exp() * ~restart
            new = new + left[..., None, None] * state
        return (q_1[:, :, None] @ new).transpose(1, 2), new
    chunk = min(chunk, t)
    decay = Decay(chunked(log_a, chunk), None if restart is None else chunked(restart[..., None], chunk)[:, 0])
    q, k, v = chunked(q, chunk), chunked(k, chunk), chunked(v, chunk)
    scores = (q @ k.transpose(-1, -2)).repeat_interleave(each, 1)
    y = (scores * decay.within) @ v
    k = k.repeat_interleave(each, 1)
    ends = k.transpose(-1, -2) @ (v * decay.until[..., None])  # (B, H, M, N, P), what each chunk adds
    left = decay.since[..., -1][..., None, None]  # (B, H, M, 1, 1)
    ends = linear_scan(left.transpose(1, 2), ends.transpose(1, 2), state).transpose(1, 2)
    if state is not None or ends.shape[2] > 1:
        first = torch.zeros_like(ends[:, :, :1]) if state is None else state[:, :, None]
        before = torch.cat((first, ends[:, :, :-1]), 2)
        y = y + (q.repeat_interleave(each, 1) * decay.since[..., None]) @ before
    return unchunked(y, t), ends[:, :, -1]


class GatedRMSNorm(nn.Module):
    """RMSNorm of x silu(z) over groups of channels (Dao & Gu 2024, section 7.2).

    Args:
        dim: channels.
        groups: normalised apart.
        eps: added to the mean square.

    >>> GatedRMSNorm(4, 2)(torch.ones(1, 4), torch.ones(1, 4)).round(decimals=2).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, dim: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x and z (..., dim)."""
        h = (precise(x) * nn.functional.silu(precise(z))).unflatten(-1, (self.groups, -1))
        return self.g * nn.functional.rms_norm(h, h.shape[-1:], eps=self.eps).flatten(-2).to(x.dtype)
