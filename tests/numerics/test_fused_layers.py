"""Layers with backward passes by hand and compiled kernels against autograd of the definitions in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from protea.kernels import training as kernels
from protea.models.autoregressive.transformer import TransformerConfig, build
from protea.nn.attention import GQA
from protea.nn.context import plain_context
from protea.nn.fused import NatsByHand, RMSNormByHand, RotateByHand, nats, nats_and_normaliser
from protea.nn.fused_layers import GatedByHand, HeadsByHand, fuses, heads
from protea.nn.mlp_gated import GeGLU, SwiGLU
from protea.nn.position import RoPE, rope_frequencies
from protea.spaces import Tokens

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no compiled kernels")


def near(got: Tensor, want: Tensor, tolerance: float = 1e-6) -> bool:
    """Relative to the whole tensor's length."""
    return bool((got.double() - want).norm() <= tolerance * want.norm() + 1e-30)


def both(function, definition, *given: Tensor, tolerance: float = 1e-6) -> None:
    """Values and gradients of a float32 function of leaves against a definition in double."""
    fine = [x.detach().double().requires_grad_(x.requires_grad) for x in given]
    got, want = function(*given), definition(*fine)
    got, want = ((x if isinstance(x, tuple) else (x,)) for x in (got, want))
    dy = [torch.randn_like(y) for y in got]
    asked = [i for i, x in enumerate(given) if x.requires_grad]
    a = torch.autograd.grad(got, [given[i] for i in asked], dy)
    b = torch.autograd.grad(want, [fine[i] for i in asked], [d.double() for d in dy])
    for x, y in zip((*got, *a), (*want, *b)):
        assert near(x, y, tolerance), (x.double() - y).norm() / y.norm()


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("shape", [(1, 3), (33, 16), (2, 3, 37), (70, 130)])
def test_norm(shape) -> None:
    def definition(x: Tensor, g: Tensor) -> Tensor:
        return g * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    both(lambda x, g: RMSNormByHand.apply(x, g, 1e-6), definition, leaf(*shape), leaf(shape[-1]), tolerance=2e-6)


@pytest.mark.parametrize("half", [1, 8, 19])
@pytest.mark.parametrize("batched", [False, True])
def test_rotation_of_strided_heads(half: int, batched: bool) -> None:
    angle = torch.randn(*((3, 1, 5) if batched else (5,)), half).double()
    x = torch.randn(3, 5, 2, 2 * half).transpose(1, 2).requires_grad_()

    def definition(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    both(lambda x: RotateByHand.apply(x, angle.cos().float(), angle.sin().float()), definition, x)


@pytest.mark.parametrize("make", [SwiGLU, GeGLU])
@pytest.mark.parametrize("shape", [(1, 8), (5, 7, 24)])
def test_gated_perceptron(make, shape) -> None:
    layer = make(shape[-1], 19)
    x = leaf(*shape)
    assert fuses(x, layer.gate, layer.up, layer.down)
    act = layer.activation

    def definition(x: Tensor, g: Tensor, u: Tensor, d: Tensor) -> Tensor:
        return act(x @ g.T) * (x @ u.T) @ d.T

    given = x, layer.gate.weight, layer.up.weight, layer.down.weight
    both(lambda *_: layer(x), definition, *given)
    given[1].requires_grad_(False)  # a frozen weight has no gradient, and the rest have theirs
    both(lambda *_: layer(x), definition, *given)


@pytest.mark.parametrize("turned", [False, True])
def test_heads(turned: bool) -> None:
    x, wq, wk, wv = leaf(2, 5, 12), leaf(24, 12), leaf(6, 12), leaf(6, 12)
    angle = torch.randn(5, 3).double()
    cos, sin = (angle.cos(), angle.sin()) if turned else (None, None)
    short = [a.float() if a is not None else None for a in (cos, sin)]
    both(lambda *w: HeadsByHand.apply(*w, *short, 6), lambda *w: heads(*w, cos, sin, 6), x, wq, wk, wv)


@pytest.mark.parametrize("v", [1, 5, 16, 257])
def test_nats(v: int) -> None:
    logits, target = leaf(9, v), torch.randint(v, (9,))
    target[3] = -1

    def definition(l: Tensor) -> tuple[Tensor, Tensor]:
        z = l.logsumexp(-1)
        picked = l.gather(1, target.clamp_min(0)[:, None])[:, 0]
        return torch.where(target < 0, 0.0, z - picked), z

    both(lambda l: nats_and_normaliser(l, target), definition, logits, tolerance=2e-6)
    # A shift costs no precision: gradients of exactly shifted logits are those of the logits.
    whole = torch.randint(-4, 5, (9, v)).float()
    near_zero, far = ((whole + s).requires_grad_() for s in (0.0, 4096.0))
    slopes = [torch.autograd.grad(nats(x, target).sum(), x)[0] for x in (near_zero, far)]
    assert torch.equal(*slopes) and torch.equal(nats(near_zero, target), nats(far, target))


def test_nats_of_extreme_logits() -> None:
    inf, nan = float("inf"), float("nan")
    l = torch.tensor([[0.0, -inf, -inf], [1e4, -1e4, 0.0], [nan, 0.0, 0.0], [-inf, -inf, -inf]], requires_grad=True)
    assert type(nats(l, torch.zeros(4, dtype=torch.int64)).grad_fn).__name__ == "NatsByHandBackward"
    y, z = nats_and_normaliser(l, torch.tensor([0, 1, 1, 0]))
    assert y[:2].tolist() == [0.0, 2e4] and bool(y[2:].isnan().all()) and z[:2].tolist() == [0.0, 1e4]
    y[:2].sum().backward()
    assert l.grad is not None and l.grad[:2].tolist() == [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]
    with pytest.raises(IndexError):
        nats(l, torch.tensor([0, 1, 1, 3]))
    assert len(nats(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))) == 0


def test_second_derivatives_are_those_of_the_definitions() -> None:
    def twice(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves))

    x, w = leaf(2, 5, 12), [leaf(12, 12) for _ in range(3)]
    fine = [t.detach().double().requires_grad_() for t in (x, *w)]
    angle = torch.randn(5, 3)
    cos, sin = angle.cos(), angle.sin()
    for fused, plain in (
        (
            lambda *t: GatedByHand.apply(*t, kernels.SILU),
            lambda x, g, u, d: nn.functional.silu(x @ g.T) * (x @ u.T) @ d.T,
        ),
        (
            lambda *t: torch.stack(HeadsByHand.apply(*t, cos, sin, 6)),
            lambda *t: torch.stack(heads(*t, cos.double(), sin.double(), 6)),
        ),
    ):
        for a, b in zip(twice(fused(x, *w), [x, *w]), twice(plain(*fine), fine)):
            assert near(a, b, 1e-5)
    l, target = leaf(4, 7), torch.tensor([0, 3, -1, 6])
    (a,) = twice(NatsByHand.apply(l, target)[0], [l])
    fine = l.detach().double().requires_grad_()
    (b,) = twice(nn.functional.cross_entropy(fine, target, ignore_index=-1, reduction="none"), [fine])
    assert near(a, b, 1e-5)


def test_kernels_give_the_same_bits_on_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    try:
        x, g, dy = torch.randn(900, 130), torch.randn(130), torch.randn(900, 130)
        cos, sin, heads4 = torch.randn(30, 8), torch.randn(30, 8), torch.randn(30, 5, 30, 16)
        target = torch.randint(130, (900,))
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            y, r = kernels.rms_norm(x, g, 1e-6)
            cost, z, parts = kernels.nats(x, target)
            results.append([
                y, r, *kernels.rms_norm_back(dy, x, g, r), *kernels.gated_back(dy, x, y, kernels.SILU), cost, z,
                kernels.gated(x, y, kernels.GELU_TANH), kernels.rotate(heads4, cos, sin),
                kernels.nats_back(cost, z, x, target, parts),
            ])  # fmt: skip
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    finally:
        torch.set_num_threads(threads)


def test_a_whole_model_has_the_gradients_of_double_precision() -> None:
    space, config = (
        Tokens(12, vocabulary=50, tokenizer="ids"),
        TransformerConfig(n_layers=2, d_model=32, d_ff=40, context=12),
    )
    model, x = build(space, config), torch.randint(50, (3, 12))
    (-model.log_prob(x).sum()).backward()
    got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.double()
    (-model.log_prob(x).sum()).backward()
    want = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(got) == len(want) and all(near(a, b, 2e-6) for a, b in zip(got, want))


def test_what_is_hooked_or_replaced_takes_the_plain_form() -> None:
    layer, x = SwiGLU(8, 16), leaf(3, 8)
    assert fuses(x, layer.gate)
    seen: list[int] = []
    handle = layer.gate.register_forward_hook(lambda *_: seen.append(1))
    layer(x)
    assert seen == [1] and not fuses(x, layer.gate)
    handle.remove()
    assert fuses(x, layer.gate) and not fuses(x.detach(), layer.gate) and not fuses(x.double(), layer.gate)
    assert not fuses(x, nn.Linear(8, 4, bias=True)) and not fuses(x, nn.Sequential())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fuses(x, layer.gate)
    attention = GQA(8, 2, 1, position=RoPE(rope_frequencies(4)))
    fused = attention(x[None], plain_context(3))
    with torch.no_grad():
        assert near(fused, attention(x[None], plain_context(3)).double())


def test_operations_that_are_counted_are_all_seen() -> None:
    """A counter of operations sees a network of fused layers as the plain one."""
    from torch.utils.flop_counter import FlopCounterMode

    from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    from protea.spaces import Tokens

    model, ids = language_model("llama", Tokens(16), ARCHITECTURES["llama"].scaled(1, 32, 16)).train(), torch.arange(16)
    with FlopCounterMode(display=False) as counted:
        model.logits(ids[None]).sum().backward()
    weights = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)
    assert counted.get_total_flops() >= 6 * weights * len(ids)
