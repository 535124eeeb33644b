"""Blocks of a Viterbi path traced side by side give the path of the step-by-step rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protea.models.markov.memory import borrowed
from protea.models.markov.trace import best, trace


def one_by_one(delta: Tensor, a: Tensor, final: Tensor) -> Tensor:
    z = [final]
    for t in range(delta.shape[1] - 2, -1, -1):
        z.append((delta[:, t] * a[:, z[-1]]).argmax(0))
    return torch.stack(z[::-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 70, 2), (3, 1, 2), (3, 2, 2), (2, 31, 3), (4, 32, 3), (4, 33, 5), (16, 400, 9)])
@pytest.mark.parametrize("stay", [0.0, 0.999])
def test_blocks_trace_the_same_path(shape: tuple[int, int, int], stay: float, dtype: torch.dtype):
    """Whatever the best state at a block's end was taken to be; where states stay, paths meet late."""
    k, t, n = shape
    g = torch.Generator().manual_seed(k * t)
    a = torch.rand(k, k, generator=g).to(dtype) * (1 - stay) + stay * torch.eye(k, dtype=dtype)
    delta = torch.rand(k, t, n, generator=g).to(dtype) ** 3
    final = torch.randint(k, (n,), generator=g)
    path = torch.zeros(t, n, dtype=torch.int64)
    path[-1] = final
    assert torch.equal(trace(delta, a, path), one_by_one(delta, a, final))


def test_the_first_of_equal_values_wins():
    values = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 3.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    assert best(values.clone()).tolist() == best(values.float()).tolist() == [0, 0, 1]


def test_memory_is_not_lent_twice():
    one = (5, 3, torch.float64, torch.device("cpu"))
    with borrowed(*one) as a:
        a.fill_(1.0)
        with borrowed(*one) as b:
            b.fill_(2.0)
            assert float(a.sum()) == 15.0
        with borrowed(1024, 2, torch.float32, torch.device("cpu")) as c:
            assert c.shape == (1024, 2) and c.stride()[1] * 4 % 4096 != 0
            c.fill_(3.0)
        assert float(a.sum()) == 15.0
