"""Backward passes by hand against autograd of the definitions, in first and second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protea.nn.fused import RMSNormByHand, RotateByHand, by_hand
from protea.nn.norm import RMSNorm
from protea.nn.position import rope_frequencies, rotate


def plain_norm(x: Tensor, g: Tensor) -> Tensor:
    return g * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def angles(d: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(5).double()[:, None] * rope_frequencies(d).double()
    return angle.cos(), angle.sin()


def test_gradients_and_their_gradients() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    g = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, g: RMSNormByHand.apply(x, g, 1e-6), (x, g))
    assert torch.autograd.gradgradcheck(lambda x, g: RMSNormByHand.apply(x, g, 1e-6), (x, g))
    assert torch.autograd.gradcheck(lambda x: RotateByHand.apply(x, *angles(8)), (x,))
    assert torch.autograd.gradgradcheck(lambda x: RotateByHand.apply(x, *angles(8)), (x,))


@pytest.mark.parametrize("shape", [(7, 16), (2, 3, 5, 16)])
def test_equal_the_definitions(shape) -> None:
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    norm = RMSNorm(16, 1e-6)
    with torch.no_grad():
        norm.g.normal_()
    assert by_hand(x)
    got, want = norm(x), plain_norm(x, norm.g)
    assert torch.allclose(got, want, atol=1e-6)
    for a, b in zip(torch.autograd.grad(got, (x, norm.g), dy), torch.autograd.grad(want, (x, norm.g), dy)):
        assert torch.allclose(a, b, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(norm(x), want, atol=1e-6)


def test_turned_equals_the_definition() -> None:
    cos, sin = (a.float() for a in angles(8))
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    learnt = rotate(x, cos, sin)
    with torch.no_grad():
        a, b = x.chunk(2, -1)
        want = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        assert torch.allclose(rotate(x, cos, sin), want, atol=1e-7)
    assert torch.allclose(learnt, want, atol=1e-6)


def test_an_exporter_sees_the_plain_formula() -> None:
    exported = torch.export.export(RMSNorm(8), (torch.randn(2, 8),))
    assert not any("ByHand" in str(node.target) for node in exported.graph.nodes)
