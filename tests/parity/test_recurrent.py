"""LSTM and GRU cells against torch.nn.LSTM and torch.nn.GRU."""

from __future__ import annotations

import pytest
import torch

from protea.nn.recurrent import GRUCell, LSTMCell


@pytest.mark.parametrize(("ours", "theirs"), [(LSTMCell, torch.nn.LSTM), (GRUCell, torch.nn.GRU)])
def test_cell(ours, theirs, evidence):
    cell, twin = ours(5, 7).double(), theirs(5, 7, batch_first=True).double()
    with torch.no_grad():
        for p in (cell.R, cell.W, cell.b):
            p.copy_(torch.randn_like(p))
        twin.weight_ih_l0.copy_(cell.W)
        twin.weight_hh_l0.copy_(cell.R)
        twin.bias_ih_l0.copy_(cell.b)
        twin.bias_hh_l0.zero_()
        if ours is GRUCell:
            cell.b_hn.copy_(torch.randn(7))
            twin.bias_hh_l0[-7:] = cell.b_hn
    x, start = torch.randn(3, 11, 5, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    states = (start[0], start[1])[: cell.states]
    last = tuple(s[None] for s in states)
    want, end = twin(x, last if len(last) > 1 else last[0])
    got, state = cell(x, states)
    ends = end if isinstance(end, tuple) else (end,)
    worst = max([(got - want).abs().max(), *((a - b[0]).abs().max() for a, b in zip(state, ends, strict=True))])
    weight = torch.randn_like(want)
    (want * weight).sum().backward()
    (got * weight).sum().backward()
    for a, b in ((cell.W, twin.weight_ih_l0), (cell.R, twin.weight_hh_l0), (cell.b, twin.bias_ih_l0)):
        worst = max(worst, (a.grad - b.grad).abs().max())
    evidence(
        id="AR-52", system="Recurrent networks", claim=f"{ours.__name__}: outputs, last state and gradients, float64",
        reference=f"torch.nn.{theirs.__name__}", reached=float(worst), tolerance=1e-10,
    )  # fmt: skip
