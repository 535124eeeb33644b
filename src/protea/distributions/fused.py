r"""The expectation step of a mixture of Gaussians as one compiled pass over the rows (`kernels/mixture.cpp`).

    b_k = log2 w_k p(x | k) = c_k - |W_k (x - o) - m_k|^2,    W_k = sqrt(log2(e) / 2) L_k^-1,    m_k = W_k (mu_k - o)

Beside the PyTorch form it never stores a density: blocks of rows stay in the cache from their entries to their sums.
Differences are squared and not expanded, so that nothing cancels wherever means lie and however narrow members are.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache

import torch
from torch import Tensor

from protea.core import Stats
from protea.distributions.covariance import Covariance
from protea.distributions.family import Fused, placed
from protea.kernels import compiled
from protea.kernels.build import Compiled

FORMS = {"full": 0, "diag": 1, "spherical": 1, "tied": 2}
TYPES = {torch.float64: 0, torch.float32: 1}
PANELS = 64  # parts of the rows that threads share; their number must not depend on that of threads
LARGEST = 1 << 18  # sums of one panel; with more the matrix products of a library win
MEMORY = 1 << 22  # sums of all panels
LEAST = 1024  # rows of a panel


class Pass(ctypes.Structure):
    """One call, as in mixture.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "d", "k", "stride", "panels", "pairs", "pooled")),
        ("form", ctypes.c_int32), ("threads", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in (
            "x", "rows", "origin", "constant", "scale", "shift", "pair", "sums", "partial", "log_prob",
            "row_log_prob", "shares")),
    ]  # fmt: skip


@lru_cache(1)
def library() -> Compiled:
    """The kernels, or the reason why there are none.

    >>> library().lib is None or library().reason == ""
    True
    """
    found = compiled("mixture")
    if found.lib is not None:
        found.lib.protea_mixture.restype = found.lib.protea_mixture_size.restype = ctypes.c_int64
        if found.lib.protea_mixture_size() != ctypes.sizeof(Pass):
            return Compiled(None, "mixture.cpp lays out its structure otherwise")
    return found


def pairs(kind: str, d: int) -> tuple[Tensor, int]:
    """Entries of u = (x, 1) whose products are summed for each member, then for all together; how many the latter are.

    >>> pairs("diag", 2)[0].tolist()
    [[0, 0], [1, 1], [0, 2], [1, 2], [2, 2]]
    """
    products = torch.triu_indices(d, d, dtype=torch.int32).T
    squares = torch.arange(d, dtype=torch.int32)[:, None].expand(d, 2)
    linear = torch.stack((torch.arange(d + 1), torch.full((d + 1,), d)), 1).int()
    if kind == "tied":
        return torch.cat((linear, products)), len(products)
    return torch.cat((products if kind == "full" else squares, linear)), 0


class FusedGaussians(Fused):
    """Members of one kind of covariance, prepared for any number of calls.

    Args:
        kind: of the covariances.
        origin: (D,), about which moments are taken.
        means, scale: of the members, the means about the origin.
        own, members: which of how many members they are.
    """

    def __init__(
        self, kind: Covariance, origin: Tensor, means: Tensor, scale: Tensor, own: slice, members: int
    ) -> None:
        self.kind, self.own, self.all = kind, own, members
        self.k, self.d = means.shape
        root = math.sqrt(0.5 / math.log(2))
        if kind.name in ("full", "tied"):
            eye = torch.eye(self.d, dtype=scale.dtype).expand_as(scale)
            self.scale = (root * torch.linalg.solve_triangular(scale, eye, upper=False)).contiguous()
            self.shift = means @ self.scale.T if kind.name == "tied" else (self.scale @ means[:, :, None])[:, :, 0]
        else:
            self.scale = (root / scale.view(self.k, -1)).expand_as(means).contiguous()
            self.shift = self.scale * means
        self.shift, self.origin = self.shift.contiguous(), origin.contiguous()
        self.constant = (-kind.half_log_det(scale, self.d) - 0.5 * self.d * math.log(2 * math.pi)).expand(self.k)

    @staticmethod
    def of(
        x: Tensor, kind: Covariance, origin: Tensor, means: Tensor, scale: Tensor, own: slice, members: int
    ) -> FusedGaussians | None:
        """The pass for rows like x, or None where the PyTorch form is to be used."""
        k, d = means.shape
        fits = len(x) > 0 and d > 0 and x.device.type == origin.device.type == "cpu" and x.layout == torch.strided
        wants = torch.is_grad_enabled() and (x.requires_grad or means.requires_grad or scale.requires_grad)
        if not fits or wants or x.dtype not in TYPES or origin.dtype not in TYPES:
            return None
        if k * (d * (d + 3) // 2 if kind.name == "full" else 2 * d) > LARGEST or library().lib is None:
            return None
        return FusedGaussians(kind, origin, means, scale, own, members)

    @torch.no_grad()
    def _run(self, x: Tensor, log_w: Tensor, rows: Tensor | None, outputs: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Fill the outputs; log p of all rows that counted, and how many did not."""
        x = x.detach().reshape(len(x), self.d)
        x = x if x.stride(1) == 1 or self.d == 1 else x.contiguous()
        n = len(x) if rows is None else len(rows)
        pair, pooled = pairs(self.kind.name, self.d)
        constant = ((self.constant + log_w.expand(self.k)) / math.log(2)).to(self.origin.dtype).contiguous()
        entries = self.k * (len(pair) - pooled) + pooled
        panels = max(1, min(PANELS, MEMORY // entries, n // LEAST))
        kept = outputs | {"x": x, "origin": self.origin, "constant": constant, "scale": self.scale,
                          "shift": self.shift, "pair": pair.contiguous(),
                          "log_prob": torch.empty(panels + 1, dtype=torch.float64)}  # fmt: skip
        if rows is not None:
            kept["rows"] = rows.contiguous()
        if "sums" in outputs:
            kept["partial"] = self.origin.new_empty(panels, entries)
        one = Pass(n, self.d, self.k, x.stride(0), panels, len(pair) - pooled, pooled, FORMS[self.kind.name],
                   torch.get_num_threads(), **{name: value.data_ptr() for name, value in kept.items()})  # fmt: skip
        lib = library().lib
        assert lib is not None
        left_out = lib.protea_mixture(ctypes.byref(one), TYPES[self.origin.dtype], TYPES[x.dtype])
        return kept["log_prob"][-1].to(self.origin.dtype), left_out

    def _left(self, log_p: Tensor, rows: Tensor | None, count: int) -> Tensor | None:
        if not count:
            return None
        left = log_p.isnan().nonzero()[:, 0]
        return left if rows is None else rows[left]

    def expect(self, x: Tensor, log_w: Tensor, rows: Tensor | None = None) -> tuple[Stats, Tensor, Tensor | None]:
        d, pooled = self.d, self.d * (self.d + 1) // 2 if self.kind.name == "tied" else 0
        terms = {"full": d * (d + 1) // 2, "tied": 0}.get(self.kind.name, d)
        sums = self.origin.new_empty(self.k * (terms + d + 1) + pooled)
        log_p = self.origin.new_empty(len(x) if rows is None else len(rows))
        log_prob, count = self._run(x, log_w, rows, {"sums": sums, "row_log_prob": log_p})
        each = sums[: len(sums) - pooled].view(self.k, -1)
        square = sums[len(sums) - pooled :] if pooled else each[:, :terms]
        if self.kind.name in ("full", "tied"):
            i, j = torch.triu_indices(d, d)
            s2 = square.new_empty(*square.shape[:-1], d, d)
            s2[..., i, j] = s2[..., j, i] = square
        else:
            s2 = square.sum(1) if self.kind.name == "spherical" else square.clone()
        n, s1 = (placed(part, self.own, self.all) for part in (each[:, -1].clone(), each[:, terms:-1].clone()))
        s2 = s2 if pooled else placed(s2, self.own, self.all)
        return {"n": n, "w": n.clone(), "s1": s1, "s2": s2}, log_prob, self._left(log_p, rows, count)

    def log_prob(self, x: Tensor, log_w: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        log_p = self.origin.new_empty(len(x) if rows is None else len(rows))
        _, count = self._run(x, log_w, rows, {"row_log_prob": log_p})
        return log_p, self._left(log_p, rows, count)

    def shares(self, x: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor | None]:
        log_p, r = self.origin.new_empty(len(x)), self.origin.new_empty(len(x), self.k)
        _, count = self._run(x, log_w, None, {"row_log_prob": log_p, "shares": r})
        return r, self._left(log_p, None, count)
