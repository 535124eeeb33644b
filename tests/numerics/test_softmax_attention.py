"""The compiled attention of a training step against PyTorch's, in double precision, in first and second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from protea.kernels import softmax_attention as kernels
from protea.nn.attention import attend, sdpa
from protea.nn.context import Seen

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no compiled kernels")


def heads(b: int, h: int, t: int, d: int, dense: bool = False) -> Tensor:
    x = torch.randn(b, h, t, d) if dense else torch.randn(b, t, h, d).transpose(1, 2)
    return x.requires_grad_()


def seen(t: int, causal: bool) -> Seen:
    return Seen(torch.arange(t), torch.arange(t), causal=causal)


def near(got: Tensor, want: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((got.double() - want).norm() <= tolerance * want.norm() + 1e-7)


# One token, one entry; lengths and widths that fill no vector; grouped and shared keys; texts of several rounds.
SHAPES = [(1, 1, 1, 1, 1), (2, 4, 2, 5, 7), (2, 2, 1, 33, 16), (1, 4, 4, 130, 40), (2, 6, 3, 32, 64), (1, 1, 1, 257, 3)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape, causal: bool) -> None:
    b, h, kv, t, d = shape
    q, k, v = heads(b, h, t, d), heads(b, kv, t, d, dense=True), heads(b, kv, t, d)
    out = sdpa(q, k, v, seen(t, causal), 0.3)
    assert type(out.grad_fn).__name__ == "AttendByHandBackward"
    fine = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = scaled_dot_product_attention(fine[0], fine[1], fine[2], is_causal=causal, scale=0.3, enable_gqa=True)
    do = torch.randn(want.shape).expand_as(want)
    assert near(out, want)
    for a, c in zip(torch.autograd.grad(out, (q, k, v), do), torch.autograd.grad(want, fine, do.double())):
        assert near(a, c)


def test_large_scores_overflow_nowhere_and_a_nan_is_not_hidden() -> None:
    q, k, v = (heads(1, 1, 9, 8) for _ in range(3))
    out = sdpa(1e3 * q, k, v, seen(9, True))
    fine = [x.detach().double() for x in (1e3 * q, k, v)]
    want = scaled_dot_product_attention(fine[0], fine[1], fine[2], is_causal=True)
    assert near(out, want, 1e-3)  # 1e-7 of scores of a thousand
    with torch.no_grad():
        k[0, 0, 4] = float("nan")
    rows = sdpa(q, k, v, seen(9, True)).isnan().any(-1)[0, 0]
    assert rows.tolist() == [False] * 4 + [True] * 5


def test_masks_other_lengths_and_types_take_the_other_kernel() -> None:
    q, k, v = (heads(1, 2, 6, 4) for _ in range(3))
    masked = Seen(torch.arange(6), torch.arange(6), torch.ones(1, 1, 6, 6, dtype=torch.bool).tril())
    fused = sdpa(q, k, v, seen(6, True))
    for out in (sdpa(q, k, v, masked), sdpa(q.double(), k.double(), v.double(), seen(6, True))):
        assert "ByHand" not in type(out.grad_fn).__name__ and near(fused, out.double())
    short = sdpa(q[:, :, 5:], k, v, Seen(torch.arange(5, 6), torch.arange(6)))
    assert "ByHand" not in type(short.grad_fn).__name__ and near(fused[:, :, 5:], short.double())


def test_second_derivatives_are_those_of_the_definition() -> None:
    q, k, v = (heads(1, 2, 6, 4) for _ in range(3))
    fine = [x.detach().double().requires_grad_() for x in (q, k, v)]

    def twice(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)

    got = twice(sdpa(q, k, v, seen(6, True)), [q, k, v])
    for a, b in zip(got, twice(attend(*fine, seen(6, True)), fine)):  # type: ignore[misc]
        assert near(a, b, 1e-5)


def test_the_same_bits_on_any_number_of_threads() -> None:
    q, k, v = (heads(3, 4, 100, 24).detach() for _ in range(3))
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            out, z = kernels.attend(q, k, v, True, 0.2)
            results.append([out, z, *kernels.attend_back(torch.ones_like(out), q, k, v, out, z, True, 0.2)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
