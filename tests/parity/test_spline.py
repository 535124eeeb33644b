"""Splines and couplings against zuko, autograd and themselves reversed."""

import pytest
import torch

from protea.transforms.bijection import Chain
from protea.transforms.coupling import SplineCoupling, halves
from protea.transforms.linear import LULinear, Permute, Whiten
from protea.transforms.spline import knots, parameters_per_spline, spline, spline_inverse

zuko = pytest.importorskip("zuko")

SPREAD = (0.3, 2.0, 8.0)  # of the raw parameters: near the identity, ordinary, nearly a staircase


def example(spread, bins=8, n=4000, dtype=torch.float64):
    x = torch.linspace(-7, 7, n, dtype=dtype)  # beyond the bound of 5 on both sides
    return x, spread * torch.randn(n, parameters_per_spline(bins), dtype=dtype)


@pytest.mark.parametrize("spread", SPREAD)
def test_spline_agrees_with_zuko(spread, evidence):
    x, theta = example(spread)
    w, h, d = theta.split((8, 8, 7), -1)
    theirs = zuko.transforms.MonotonicRQSTransform(w, h, d, bound=5.0, slope=1e-3)
    y, log_slope = theirs.call_and_ladj(x)
    ours_y, ours_slope = spline(x, knots(theta))
    gap = max(float((ours_y - y).abs().max()), float((ours_slope - log_slope).abs().max()))
    back = float((spline_inverse(y, knots(theta)) - theirs.inv(y)).abs().max())
    evidence(
        id="FL-01", system="Rational-quadratic spline", claim=f"value, log-slope and inverse, spread {spread}",
        reference="zuko.transforms.MonotonicRQSTransform", reached=max(gap, back), tolerance=1e-6, unit="max abs",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spline_round_trip(dtype, evidence):
    x, theta = example(0.5, dtype=dtype)  # in single precision, flatter splines lose digits whatever the algorithm
    k = knots(theta)
    gap = (spline_inverse(spline(x, k)[0], k) - x).abs().max()
    evidence(id="FL-01", system="Rational-quadratic spline", claim=f"round trip, {dtype}".replace("torch.", ""),
             reference="the identity", reached=gap.detach(), tolerance=1e-5, unit="max abs")  # fmt: skip


@pytest.mark.parametrize("spread", SPREAD)
def test_log_slope_is_the_derivative(spread):
    x, theta = example(spread)
    x.requires_grad_()
    y, log_slope = spline(x, knots(theta))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope.log(), log_slope, atol=1e-9)


def test_extreme_parameters_stay_finite_in_single_precision():
    x, theta = example(1e4, dtype=torch.float32)
    theta.requires_grad_()
    y, log_slope = spline(x, knots(theta))
    (y + log_slope).sum().backward()
    assert y.isfinite().all() and log_slope.isfinite().all() and theta.grad.isfinite().all()
    assert spline_inverse(y.detach(), knots(theta)).isfinite().all()


def test_the_spline_is_monotone_and_keeps_its_ends():
    theta = 3 * torch.randn(1, parameters_per_spline(6), dtype=torch.float64)
    x = torch.linspace(-5, 5, 5001, dtype=torch.float64)
    y, _ = spline(x, knots(theta, bound=5.0))
    assert (y.diff() > 0).all() and y[0] == -5 and y[-1] == 5


def chain(dim):
    """Every kind of bijection, with weights away from the identity."""
    parts = [Whiten(dim), LULinear(dim)]
    parts[0].fit(torch.randn(100, dim) @ torch.randn(dim, dim) + 3)
    for i in range(2):
        mask = halves(dim, i)
        n = int(mask.sum())
        net = torch.nn.Linear(dim - n, n * parameters_per_spline(5))
        parts += [SplineCoupling(mask, Unlabelled(net), bins=5), Permute(dim, seed=i), LULinear(dim)]
    whole = Chain(parts)
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return whole.double()


class Unlabelled(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y=None):
        return self.net(x)


@pytest.mark.parametrize("dim", [2, 3, 7])
def test_log_determinant_is_that_of_the_autograd_jacobian(dim, evidence):
    f = chain(dim)
    x = 2 * torch.randn(5, dim, dtype=torch.float64)
    z, log_det = f(x)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: f(v[None])[0][0], row) for row in x])
    gap = (torch.linalg.slogdet(jacobian)[1] - log_det).abs().max()
    evidence(id="FL-01", system="Coupling, LU, whitening, permutation", claim=f"log-determinant, D = {dim}",
             reference="autograd Jacobian", reached=gap.detach(), tolerance=1e-5, unit="nats")  # fmt: skip
    assert torch.allclose(f.inverse(z), x, atol=1e-8)


def test_a_coupling_with_ported_weights_agrees_with_zuko(evidence):
    """zuko's coupling flow (NSF with two passes) is a masked perceptron; its masked weights are our conditioner."""
    flow = zuko.flows.NSF(2, transforms=2, bins=8, passes=2, hidden_features=(16,), randperm=False).double()
    x = 2.5 * torch.randn(200, 2, dtype=torch.float64)
    parts = []
    for layer in flow.transform.transforms:
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(0.5 * torch.randn_like(p))
        # Of its two entries the first in order conditions the second, then is bent by a constant spline.
        mask = layer.order == 1
        parts += [SplineCoupling(mask, Conditioner(layer, mask)), Constant(layer, ~mask)]
    z, log_det = Chain(parts)(x)
    theirs_z, theirs_log_det = flow().transform.call_and_ladj(x)
    gap = max(float((z - theirs_z).abs().max()), float((log_det - theirs_log_det).abs().max()))
    evidence(id="FL-01", system="Neural spline flow", claim="z and log-determinant with ported weights",
             reference="zuko.flows.NSF(passes=2)", reached=gap, tolerance=1e-6, unit="max abs")  # fmt: skip


class Conditioner(torch.nn.Module):
    """The rows of zuko's masked perceptron that belong to the transformed entry, with weights written out."""

    def __init__(self, layer, mask):
        super().__init__()
        self.mask = mask
        self.weights = [(m.mask * m.weight, m.bias) for m in layer.hyper if hasattr(m, "mask")]

    def forward(self, a, y=None):
        h = a.new_zeros(len(a), len(self.mask))
        h[:, ~self.mask] = a
        for i, (weight, bias) in enumerate(self.weights):
            h = h @ weight.T + bias
            if i + 1 < len(self.weights):
                h = torch.relu(h)
        return h.reshape(len(a), len(self.mask), -1)[:, self.mask].flatten(1)


class Constant(SplineCoupling):
    """The spline of the entry on which nothing acts: its parameters do not depend on x."""

    def __init__(self, layer, mask):
        super().__init__(mask, Conditioner(layer, mask), bins=8)

    def forward(self, x, y=None):
        a, b = x[:, self.order].split((self.kept, self.bent), 1)
        b, log_slope = spline(b, self._knots(torch.zeros_like(a), y))
        return torch.cat((a, b), 1)[:, self.back], log_slope.sum(1)
