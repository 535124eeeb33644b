"""Scans against the recurrences they stand for, written out as loops in float64, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protea.nn import ssm
from protea.nn.scan import associative_scan, linear_scan
from protea.nn.ssd import ssd
from protea.nn.ssm import selective_scan

double = torch.float64


def spread(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("t", [1, 2, 3, 4, 5, 8, 13, 37])
def test_linear_scan_is_the_recurrence_and_so_are_its_gradients(t):
    a, b, h_0 = (torch.randn(s, dtype=double, requires_grad=True) for s in ((2, t, 1, 3), (2, t, 4, 3), (2, 4, 3)))
    h, want = h_0, []
    for i in range(t):
        h = a[:, i] * h + b[:, i]
        want.append(h)
    want, got = torch.stack(want, 1), linear_scan(a, b, h_0)
    assert spread(got, want) < 1e-12
    weight = torch.randn_like(want)
    for g, w in zip(
        torch.autograd.grad((got * weight).sum(), (a, b, h_0)),
        torch.autograd.grad((want * weight).sum(), (a, b, h_0)),
        strict=True,
    ):
        assert spread(g, w) < 1e-12


@pytest.mark.parametrize("t", [1, 2, 7, 20])
def test_associative_scan_keeps_the_order_of_a_rule_that_does_not_commute(t):
    m = torch.randn(2, t, 3, 3, dtype=double) / 2
    (got,) = associative_scan(lambda a, b: (b[0] @ a[0],), (m,))
    want = m[:, 0]
    for i in range(t):
        want = want if i == 0 else m[:, i] @ want
        assert spread(got[:, i], want) < 1e-12


def selective_loop(x, delta, A, B, C, h, restart=None):
    """Equations 1 and 2 of the paper, token by token."""
    y = []
    for t in range(x.shape[1]):
        if restart is not None:
            h = h * ~restart[:, t, None, None]
        h = (delta[:, t, :, None] * A).exp() * h + delta[:, t, :, None] * B[:, t, None] * x[:, t, :, None]
        y.append((h * C[:, t, None]).sum(-1))
    return torch.stack(y, 1), h


@pytest.mark.parametrize("t", [1, 5, 8, 21])
@pytest.mark.parametrize("packed", [False, True])
def test_selective_scan_is_the_recurrence_and_so_are_its_gradients(t, packed, monkeypatch, evidence):
    monkeypatch.setattr(ssm, "CHUNK", 8)  # several chunks, the last one short
    b, d, n = 2, 3, 4
    x, delta = torch.randn(b, t, d, dtype=double), torch.rand(b, t, d, dtype=double)
    A = -torch.arange(1.0, n + 1, dtype=double).repeat(d, 1)
    B, C, h_0 = (torch.randn(s, dtype=double) for s in ((b, t, n), (b, t, n), (b, d, n)))
    inputs = [v.requires_grad_() for v in (x, delta, A, B, C, h_0)]
    restart = torch.rand(b, t) < 0.3 if packed else None
    want, got = selective_loop(*inputs, restart), selective_scan(*inputs, restart)
    weight = [torch.randn_like(v) for v in want]
    worst = max(spread(g, w) for g, w in zip(got, want, strict=True))
    grads = [torch.autograd.grad(sum((o * w).sum() for o, w in zip(out, weight, strict=True)), inputs)
             for out in (got, want)]  # fmt: skip
    worst = max([worst, *((g - w).abs().max().item() for g, w in zip(*grads, strict=True))])
    evidence(
        id="AR-21", system="Mamba", claim=f"scan = recurrence, values and gradients, T = {t}, packed {packed}, float64",
        reference="loop over the paper's equations", reached=worst, tolerance=1e-10,
    )  # fmt: skip


def test_selective_scan_of_a_long_text_in_float32(evidence):
    """1,000 tokens, step sizes over four orders of magnitude."""
    b, t, d, n = 1, 1000, 8, 16
    delta = torch.exp(torch.empty(b, t, d).uniform_(-7, 2))
    A = -torch.arange(1.0, n + 1).repeat(d, 1)
    parts = (torch.randn(b, t, d), delta, A, torch.randn(b, t, n), torch.randn(b, t, n), torch.zeros(b, d, n))
    want = selective_loop(*(v.double() for v in parts))
    got = selective_scan(*parts)
    evidence(
        id="AR-21", system="Mamba", claim="scan = recurrence, 1,000 tokens, float32", unit="relative",
        reference="the recurrence in float64", reached=spread(got[0].double(), want[0]), tolerance=1e-5,
    )  # fmt: skip


def ssd_loop(q, k, v, log_a, S, restart=None):
    each, y = v.shape[2] // q.shape[2], []
    q, k = q.repeat_interleave(each, 2), k.repeat_interleave(each, 2)
    for t in range(v.shape[1]):
        if restart is not None:
            S = S * ~restart[:, t, None, None, None]
        S = log_a[:, t, :, None, None].exp() * S + k[:, t, :, :, None] * v[:, t, :, None]
        y.append(torch.einsum("bhn,bhnp->bhp", q[:, t], S))
    return torch.stack(y, 1), S


@pytest.mark.parametrize("t", [1, 4, 8, 29])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_ssd_is_the_recurrence_and_so_are_its_gradients(t, groups, packed, evidence):
    b, heads, n, p = 2, 4, 3, 5
    q, k, v, S = (torch.randn(s, dtype=double) for s in ((b, t, groups, n), (b, t, groups, n), (b, t, heads, p),
                                                         (b, heads, n, p)))  # fmt: skip
    inputs = [x.requires_grad_() for x in (q, k, v, -torch.rand(b, t, heads, dtype=double), S)]
    restart = torch.rand(b, t) < 0.3 if packed else None
    want, got = ssd_loop(*inputs, restart), ssd(*inputs, restart, chunk=4)
    weight = [torch.randn_like(x) for x in want]
    worst = max(spread(g, w) for g, w in zip(got, want, strict=True))
    grads = [torch.autograd.grad(sum((o * w).sum() for o, w in zip(out, weight, strict=True)), inputs)
             for out in (got, want)]  # fmt: skip
    worst = max([worst, *((g - w).abs().max().item() for g, w in zip(*grads, strict=True))])
    evidence(
        id="AR-21", system="Mamba-2", claim=f"chunks = recurrence, values and gradients, T = {t}, {groups} groups",
        reference="loop over the paper's equations", reached=worst, tolerance=1e-10,
    )  # fmt: skip


def test_ssd_keeps_what_follows_a_strong_decay():
    """Sums of log a of -1e4 do not cost the small ones their digits (float32)."""
    log_a = torch.full((1, 60, 1), -1e-3)
    log_a[:, 10:20] = -1000.0
    q, k, v = torch.ones(1, 60, 1, 1), torch.ones(1, 60, 1, 1), torch.randn(1, 60, 1, 1)
    want = ssd_loop(*(x.double() for x in (q, k, v, log_a)), torch.zeros(1, 1, 1, 1, dtype=double))[0]
    assert spread(ssd(q, k, v, log_a)[0].double(), want) < 1e-6
