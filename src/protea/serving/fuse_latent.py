"""Latent attention in its absorbed form as operations of a `Plan` (`kernels/latent.h`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from protea.nn.attention import sdpa
from protea.nn.mla import MLA, Absorbed, Cheapest, LowRank, Materialised
from protea.serving.fuse import ABSORB, ATTEND, EXPAND, REMEMBER_LATENT, Unsupported, norm_facts, only, turning

if TYPE_CHECKING:
    from protea.serving.plan import Plan


def latent(plan: Plan, m: MLA, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    """Queries and latents; latents normed, turned, remembered; attention to them; values; the way back."""
    only(
        m, MLA, "n_heads", "d_c", "d_nope", "d_rope", "d_v", "q", "kv_down", "norm", "kv_up", "o", "position", "form",
        "scale",
    )  # fmt: skip
    for form in m.form.forms if type(m.form) is Cheapest else (m.form,):
        if type(form) not in (Materialised, Absorbed) or form.kernel is not sdpa:
            raise Unsupported(f"the form {form!r} has no fused form")
    gain, _, eps, plus, center = norm_facts(m.norm)
    if center or m.kv_up.bias is not None:
        raise Unsupported("latents whose mean is taken off, or that are shifted")
    heads, dc, dn, dr, dv, block = m.n_heads, m.d_c, m.d_nope, m.d_rope, m.d_v, plan.blocks.block
    q, c = queries(plan, m.q, h, heads * (dn + dr)), plan.buffer(f"c{dc + dr}", dc + dr)
    plan.linear(h, c, (m.kv_down,))
    absorbed = plan.buffer(f"absorbed{heads * (dc + dr)}", heads * (dc + dr))
    found, v = plan.buffer(f"found{heads * dc}", heads * dc), plan.buffer(f"v{heads * dv}", heads * dv)
    (latents,) = plan.blocks.layer(layer, None, torch.empty(1, 1, 1, dc + dr))
    tables, w = plan.pointers(None), m.kv_up.weight
    turned, layout, cos, sin = turning(plan, m.position)
    remembered = (heads, dn, dr, dc, block, turned, layout)
    plan.emit(REMEMBER_LATENT, remembered, (eps, plus), (q, c, latents, tables, cos, sin, gain, absorbed))
    widths = (heads, dn, dr, dc, dv)
    plan.emit(ABSORB, widths, (), (q, absorbed, w))
    n = (heads, 1, dc + dr, dc, block, 0, 0, 0, heads * (dc + dr), dc + dr)
    plan.emit(ATTEND, n, (m.scale, 0.0), (absorbed, latents, latents, tables, None, found))
    plan.emit(EXPAND, widths, (), (found, v, w))
    plan.linear(v, y, (m.o,), add)


def queries(plan: Plan, q: Any, h: Tensor, width: int) -> Tensor:
    """W_Q h, or W_UQ RMSNorm(W_DQ h)."""
    out = plan.buffer(f"q{width}", width)
    if type(q) is not LowRank:
        plan.linear(h, out, (q,))
        return out
    only(q, LowRank, "compress", "norm", "expand")
    rank = q.compress.out_features
    low, normed = plan.buffer(f"rank{rank}", rank), plan.buffer(f"normed{rank}", rank)
    plan.linear(h, low, (q.compress,))
    plan.norm(q.norm, low, normed)
    plan.linear(normed, out, (q.expand,))
    return out
