"""Recurrent layers on a GPU: the same numbers as on the CPU, forwards and backwards. Skipped without one."""

from __future__ import annotations

import copy

import pytest
import torch

from protea.models.autoregressive.architectures import ARCHITECTURES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("name", ["mamba", "mamba2", "jamba", "xlstm", "rnn", "blt"])
def test_the_gpu_says_what_the_cpu_says(name, evidence):
    net = ARCHITECTURES[name].build(ARCHITECTURES[name].scaled(2, 32, 96), 13, 13).eval()
    twin, x = copy.deepcopy(net).cuda(), torch.randint(0, 13, (3, 96))
    want, got = net(x), twin(x.cuda())
    want.square().mean().backward()
    got.square().mean().backward()
    worst = ((got.cpu() - want).abs().max() / want.abs().max()).item()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        if p.grad is not None and q.grad is not None and p.grad.abs().max() > 1e-6:
            worst = max(worst, ((q.grad.cpu() - p.grad).abs().max() / p.grad.abs().max()).item())
    evidence(
        id="AR-21", system=name, claim="logits and gradients on a GPU", reference="the CPU", reached=worst,
        tolerance=2e-3, unit="relative",
    )  # fmt: skip
