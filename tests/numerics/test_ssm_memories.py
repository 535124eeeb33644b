"""xLSTM's memories and the gated delta rule against the papers' equations, token by token in float64."""

from __future__ import annotations

import pytest
import torch

from protea.nn.delta import gated_delta, unit
from protea.nn.mlstm import mlstm
from protea.nn.slstm import slstm

double = torch.float64


def spread(got, want) -> float:
    return ((got - want).abs().max() / want.abs().max().clamp_min(1e-9)).item()


def both(form, loop, inputs, restart, record, **row):
    """The worst difference of values and gradients."""
    inputs = [x.requires_grad_() for x in inputs]
    got, want = form(*inputs), loop(*inputs)
    weight = torch.randn_like(want)
    grads = [torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True) for out in (got, want)]
    worst = max([spread(got, want), *(spread(g, w) for g, w in zip(*grads, strict=True))])
    packed = ", packed" if restart is not None else ""
    record(
        claim=f"form for training = recurrence, values and gradients, float64{packed}", reached=worst,
        reference="loop over the paper's equations, unstabilised", **row,
    )  # fmt: skip


def mlstm_loop(q, k, v, i, f, restart):
    """Equations 19-27 without the stabiliser (float64 holds exp of these gates)."""
    b, t, heads, d = q.shape
    C, n, y = q.new_zeros(b, heads, v.shape[-1], d), q.new_zeros(b, heads, d), []
    for s in range(t):
        if restart is not None:
            C, n = C * ~restart[:, s, None, None, None], n * ~restart[:, s, None, None]
        f_s, i_s = torch.sigmoid(f[:, s])[..., None], torch.exp(i[:, s])[..., None]
        C = f_s[..., None] * C + i_s[..., None] * v[:, s, :, :, None] * k[:, s, :, None]
        n = f_s * n + i_s * k[:, s]
        q_s = q[:, s] / d**0.5
        scale = (n * q_s).sum(-1, keepdim=True).abs().clamp_min(1.0)
        y.append((C @ q_s[..., None])[..., 0] / scale)
    return torch.stack(y, 1)


@pytest.mark.parametrize("t", [1, 5, 19])
@pytest.mark.parametrize("packed", [False, True])
def test_mlstm_is_its_equations(t, packed, evidence):
    b, heads, d, p = 2, 2, 4, 3
    inputs = [torch.randn(s, dtype=double) for s in ((b, t, heads, d), (b, t, heads, d), (b, t, heads, p))]
    inputs += [3 * torch.randn(b, t, heads, dtype=double), 2 + torch.randn(b, t, heads, dtype=double)]
    restart = torch.rand(b, t) < 0.3 if packed else None
    both(
        lambda *x: mlstm(*x, restart=restart, chunk=4, eps=0.0)[0], lambda *x: mlstm_loop(*x, restart), inputs, restart,
        evidence, id="AR-22", system="mLSTM", tolerance=1e-9,
    )  # fmt: skip


def test_mlstm_survives_gates_that_overflow_without_the_stabiliser():
    """Input gates of exp(200): the newest of them is all there is."""
    i = torch.tensor([0.0, 200.0, 100.0]).view(1, 3, 1)
    v = torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1, 1)
    h = mlstm(torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1), v, i, torch.full((1, 3, 1), 10.0))[0]
    assert torch.allclose(h.flatten(), torch.tensor([1.0, 2.0, 2.0]), atol=1e-4)


def slstm_loop(wx, R, restart):
    """Equations 8-14 without the stabiliser."""
    b, t, _, heads, d = wx.shape
    h, c, n, y = *(wx.new_zeros(b, heads, d) for _ in range(3)), []
    for s in range(t):
        if restart is not None:
            h, c, n = (x * ~restart[:, s, None, None] for x in (h, c, n))
        i, f, z, o = (wx[:, s] + torch.einsum("bhd,hdge->bghe", h, R)).unbind(1)
        c = f.sigmoid() * c + i.exp() * z.tanh()
        n = f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        y.append(h)
    return torch.stack(y, 1)


@pytest.mark.parametrize("t", [1, 6])
@pytest.mark.parametrize("packed", [False, True])
def test_slstm_is_its_equations(t, packed, evidence):
    b, heads, d = 2, 2, 3
    inputs = [2 * torch.randn(b, t, 4, heads, d, dtype=double), torch.randn(heads, d, 4, d, dtype=double)]
    restart = torch.rand(b, t) < 0.4 if packed else None
    if t == 1:
        inputs[1] = inputs[1].requires_grad_()
        assert spread(slstm(*inputs, restart=restart)[0], slstm_loop(*inputs, restart)) < 1e-12
        return
    both(
        lambda *x: slstm(*x, restart=restart)[0], lambda *x: slstm_loop(*x, restart), inputs, restart, evidence,
        id="AR-22", system="sLSTM", tolerance=1e-10,
    )  # fmt: skip


def delta_loop(q, k, v, log_alpha, beta, restart):
    each, y = v.shape[2] // q.shape[2], []
    q, k = q.repeat_interleave(each, 2), k.repeat_interleave(each, 2)
    S = q.new_zeros(q.shape[0], v.shape[2], v.shape[3], q.shape[3])  # the paper's layout, P by D
    eye = torch.eye(q.shape[3], dtype=q.dtype)
    for t in range(v.shape[1]):
        if restart is not None:
            S = S * ~restart[:, t, None, None, None]
        outer = k[:, t, :, :, None] * k[:, t, :, None]
        b = beta[:, t, :, None, None]
        S = S @ (log_alpha[:, t, :, None, None].exp() * (eye - b * outer)) + b * v[:, t, :, :, None] * k[:, t, :, None]
        y.append((S @ q[:, t, :, :, None])[..., 0])
    return torch.stack(y, 1)


@pytest.mark.parametrize("t", [1, 5, 19])
@pytest.mark.parametrize("packed", [False, True])
def test_gated_delta_is_its_equation(t, packed, evidence):
    b, heads, d, p = 2, 4, 5, 3
    q, k, v = (torch.randn(s, dtype=double) for s in ((b, t, 2, d), (b, t, 2, d), (b, t, heads, p)))
    inputs = [q, unit(k, 0.0), v, -torch.rand(b, t, heads, dtype=double), torch.rand(b, t, heads, dtype=double)]
    restart = torch.rand(b, t) < 0.3 if packed else None
    loop = delta_loop
    both(
        lambda *x: gated_delta(*x, restart=restart, chunk=4)[0], lambda *x: loop(*x, restart), inputs, restart,
        evidence, id="AR-21", system="Gated delta rule", tolerance=1e-10,
    )  # fmt: skip


@pytest.mark.parametrize("t", [3, 70])
def test_gated_delta_is_transformers(t, evidence):
    rules = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    b, heads, d, p = 2, 2, 16, 8
    q, k, v = torch.randn(b, t, heads, d), torch.randn(b, t, heads, d), torch.randn(b, t, heads, p)
    g, beta, S = -torch.rand(b, t, heads), torch.rand(b, t, heads), torch.randn(b, heads, d, p)
    got, end = gated_delta(unit(q) * d**-0.5, unit(k), v, g, beta, S)
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        want, last = getattr(rules, name)(
            q, k, v, g=g, beta=beta, initial_state=S, output_final_state=True, use_qk_l2norm_in_kernel=True
        )
        evidence(
            id="AR-21", system="Gated delta rule", claim=f"outputs and last state, T = {t}", unit="relative",
            reference=f"transformers {name}", reached=max(spread(got, want), spread(end, last)), tolerance=1e-5,
        )  # fmt: skip
