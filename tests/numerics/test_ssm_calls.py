"""Training goes through time in O(log T) steps of Python: operations are counted, texts of 128 and 8,192 tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from protea.nn.delta import gated_delta, unit
from protea.nn.mlstm import mlstm
from protea.nn.scan import linear_scan
from protea.nn.ssd import ssd
from protea.nn.ssm import CHUNK, selective_scan


class Count(TorchDispatchMode):
    """Operations, of the backward pass too."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def inputs(t: int, *widths: int):
    return [torch.randn(1, t, *([w] if isinstance(w, int) else w), requires_grad=True) for w in widths]


FORMS = {
    "linear scan": lambda t: linear_scan(torch.rand(1, t, 2), *inputs(t, 2)),
    "Mamba-2": lambda t: ssd(*inputs(t, (1, 2), (1, 2), (1, 2)), -torch.rand(1, t, 1))[0],
    "mLSTM": lambda t: mlstm(*inputs(t, (1, 2), (1, 2), (1, 2), 1, 1))[0],
    "gated delta rule": lambda t: gated_delta(
        *(f(x) for f, x in zip((unit, unit, unit), inputs(t, (1, 2), (1, 2), (1, 2)), strict=True)),
        -torch.rand(1, t, 1), torch.rand(1, t, 1),
    )[0],
}  # fmt: skip


def calls(form, t: int) -> int:
    with Count() as count:
        form(t).sum().backward()
    return count.calls


@pytest.mark.parametrize("name", FORMS)
def test_steps_grow_with_the_logarithm_of_the_text(name, evidence):
    short, long = (calls(FORMS[name], t) for t in (128, 8192))
    evidence(
        id="AR-21", system=name, claim="operations of a training step, 8,192 tokens over 128",
        reference="log 8,192 / log 128 is 1.9; a loop over time would be 64", reached=long / short, tolerance=4.0,
        unit="ratio",
    )  # fmt: skip


def test_the_selective_scan_goes_in_chunks(evidence):
    """Its outer loop is over chunks, whose size is a constant; inside them time is vectorised."""

    def form(t: int):
        d = torch.rand(1, t, 2, requires_grad=True)
        return selective_scan(*inputs(t, 2), d, -torch.rand(2, 3), *inputs(t, 3, 3))[0]

    one, four = calls(form, CHUNK), calls(form, 4 * CHUNK)
    evidence(
        id="AR-21", system="Mamba", claim=f"operations of a training step, 4 chunks of {CHUNK} tokens over one",
        reference="4 chunks", reached=four / one, tolerance=4.0, unit="ratio",
    )  # fmt: skip
    within = calls(form, CHUNK) / calls(form, CHUNK // 4)
    assert within < math.log2(CHUNK) / math.log2(CHUNK // 4) + 0.5
