"""The compiled scans against those with tensors: odd sizes, both precisions, nothing to do, and nothing possible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protea.models.markov import compiled, scan
from protea.models.markov.dynamics import Dynamics, Posterior
from protea.models.markov.packed import Packed
from protea.models.markov.viterbi import viterbi, with_tensors

pytestmark = pytest.mark.skipif(compiled._library() is None, reason="no compiled kernels here")
LENGTHS = torch.tensor([9, 70, 0, 1, 70, 33, 2, 0, 64, 65, 31, 32] * 3)


def chain(
    k: int, dtype: torch.dtype, end: str = "none", forbidden: bool = False, count: int = len(LENGTHS)
) -> Dynamics:
    g = torch.Generator().manual_seed(k)
    p = torch.rand(k + 1, k, dtype=torch.float64, generator=g) + 0.02
    if forbidden:  # up only, but for the last state
        p[1:-1] = p[1:-1].triu()
        p[0, 0] = 0.0 if k > 1 else p[0, 0]
    p = (p / p.sum(1, keepdim=True)).to(dtype)
    shape = {"none": None, "one": (k,), "each": (count, k)}[end]
    return Dynamics(p[0], p[1:], None if shape is None else torch.rand(shape, generator=g).to(dtype) * 0.9 + 0.05)


def rows(packed: Packed, k: int, dtype: torch.dtype) -> Tensor:
    return 3 * torch.randn(packed.total, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def both(monkeypatch: pytest.MonkeyPatch, *given) -> tuple[Posterior, Posterior]:
    got = scan.smooth(*given)
    monkeypatch.setattr(compiled, "ready", lambda _: False)
    want = scan.smooth(*given)
    monkeypatch.undo()
    return got, want


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("end", ["none", "one", "each"])
@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 9, 16, 17, 33])
def test_same_as_with_tensors(k: int, forbidden: bool, end: str, dtype: torch.dtype, monkeypatch):
    packed, d = Packed(LENGTHS, 70), chain(k, dtype, end, forbidden)
    log_b = rows(packed, k, dtype)
    weights = torch.linspace(0, 2, len(LENGTHS), dtype=torch.float64)
    got, want = both(monkeypatch, log_b, d, packed, weights)
    close = 1e-11 if dtype == torch.float64 else 2e-4
    for name in ("log_prob", "gamma", "start", "transition", "last"):
        a, b = getattr(got, name).double(), getattr(want, name).double()
        assert float(((a - b).abs() / (1 + b.abs())).max()) < close, name
    assert torch.allclose(scan.evidence(log_b, d, packed), want.log_prob, rtol=close)
    path, best = viterbi(log_b, d, packed)
    path_, best_ = with_tensors(log_b, d, packed)
    assert torch.equal(path, path_) and torch.allclose(best, best_, rtol=close, atol=close)


def test_filtered_states_are_the_last_posterior(monkeypatch):
    packed, d = Packed(LENGTHS, 70), chain(5, torch.float64)
    log_b = rows(packed, 5, torch.float64)
    got = scan.filtered(log_b, d, packed)
    assert torch.allclose(got[packed.last], scan.smooth(log_b, d, packed).gamma[packed.last], atol=1e-12)
    monkeypatch.setattr(compiled, "ready", lambda _: False)
    assert torch.allclose(got, scan.filtered(log_b, d, packed), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [3, 16])
@pytest.mark.parametrize("lengths", [[500], [40, 3, 40], [50] * 70])
def test_threads_change_no_bit(lengths: list[int], k: int, dtype: torch.dtype):
    packed, d, found, before = Packed(torch.tensor(lengths), 500), chain(k, dtype), [], torch.get_num_threads()
    log_b = rows(packed, k, dtype)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            p = scan.smooth(log_b, d, packed)
            found.append([p.log_prob, p.gamma, p.transition, p.last, *viterbi(log_b, d, packed)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for more in found[1:] for a, b in zip(found[0], more))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 4, 16, 37])
def test_ties_go_to_the_lower_state(k: int, dtype: torch.dtype):
    packed = Packed(torch.tensor([12, 1, 0, 5]), 12)
    d = Dynamics(torch.full((k,), 1 / k, dtype=dtype), torch.full((k, k), 1 / k, dtype=dtype))
    log_b = torch.zeros(packed.total, k, dtype=dtype)
    assert (viterbi(log_b, d, packed)[0] == 0).all()
    log_b[:, : k // 2] = -1.0
    assert (viterbi(log_b, d, packed)[0] == k // 2).all()


@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 3, 16])
def test_codes_are_looked_up_and_counted(k: int, dtype: torch.dtype, forbidden: bool):
    packed, d = Packed(LENGTHS, 70), chain(k, dtype, "one", forbidden)
    g = torch.Generator().manual_seed(0)
    table, codes = torch.randn(6, k, generator=g).to(dtype), torch.randint(5, (packed.total,), generator=g)
    codes[packed.row == 4], table[5] = 5, -torch.inf  # one sequence is impossible
    weights = torch.linspace(0.5, 2, packed.count, dtype=torch.float64)
    for got, want in zip(viterbi(table, d, packed, codes), viterbi(table[codes], d, packed)):
        assert torch.equal(got, want)
    want, got = scan.smooth(table[codes], d, packed, weights), scan.smooth_table(table, codes, d, packed, weights)
    counts = torch.zeros(6, k, dtype=torch.float64).index_add_(0, codes, want.gamma.double())
    close = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.allclose(got.gamma, counts, rtol=close) and (got.gamma[5] == 0).all()
    assert want.log_prob[4] == -torch.inf and torch.equal(scan.evidence(table, d, packed, codes), want.log_prob)
    for name in ("log_prob", "start", "transition", "last"):
        assert torch.allclose(getattr(got, name), getattr(want, name), rtol=close), name


@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k, m", [(1, 1), (3, 5), (5, 4), (16, 17), (17, 7)])
def test_features_weigh_rows_and_are_summed(k: int, m: int, dtype: torch.dtype, forbidden: bool):
    packed, d = Packed(LENGTHS, 70), chain(k, dtype, "one", forbidden)
    g = torch.Generator().manual_seed(0)
    table, phi = torch.randn(m, k, generator=g).to(dtype), torch.randn(m, packed.total, generator=g).to(dtype)
    weights = torch.linspace(0, 2, packed.count, dtype=torch.float64)
    close = 1e-10 if dtype == torch.float64 else 1e-3
    want, got = scan.smooth(phi.T @ table, d, packed, weights), scan.smooth_table(table, phi, d, packed, weights)
    assert torch.allclose(got.gamma, phi.double() @ want.gamma.double(), rtol=close, atol=close)
    assert torch.allclose(scan.evidence(table, d, packed, phi), want.log_prob, rtol=close)
    for name in ("log_prob", "start", "transition", "last"):
        a, b = getattr(got, name), getattr(want, name)
        assert float(((a - b).abs() / (1 + b.abs())).max()) < close, name
    got, want = viterbi(table, d, packed, phi), viterbi(phi.T @ table, d, packed)
    assert torch.allclose(got[1], want[1], rtol=close, atol=close)
    assert float((got[0] == want[0]).double().mean()) > 0.98  # but for ties within rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zero_probability_and_ratios_beyond_the_type(dtype: torch.dtype):
    """Where only a path that has been e^-1000 times less probable goes on; and where none does."""
    packed = Packed(torch.tensor([3, 3, 2]), 3)
    d = Dynamics(torch.tensor([0.5, 0.5], dtype=dtype), torch.eye(2, dtype=dtype))
    log_b = torch.tensor([[0, -1000.0], [0, -1000], [-torch.inf, 0],
                          [0, -torch.inf], [-torch.inf, 0], [0, 0],
                          [-torch.inf, 0], [0, -7]], dtype=dtype)  # fmt: skip
    p, half = scan.smooth(log_b, d, packed), torch.log(torch.tensor(0.5)).double()
    want = torch.stack((half - 2000, torch.tensor(-torch.inf).double(), half - 7))
    assert torch.allclose(p.log_prob, want, rtol=1e-6) and torch.allclose(
        scan.evidence(log_b, d, packed), want, rtol=1e-6
    )
    assert p.gamma.tolist() == [[0, 1]] * 3 + [[0, 0]] * 3 + [[0, 1]] * 2
    path, best = viterbi(log_b, d, packed)
    assert path[:3].tolist() == [1, 1, 1] and path[6:].tolist() == [1, 1] and torch.allclose(best, want, rtol=1e-6)


def test_nothing_to_do():
    d = chain(3, torch.float64)
    for packed in (
        Packed(torch.zeros(0).long(), 5),
        Packed(torch.zeros(2).long(), 5),
        Packed(torch.zeros(2).long(), 0),
    ):
        log_b = torch.zeros(0, 3, dtype=torch.float64)
        p = scan.smooth(log_b, d, packed)
        assert (p.log_prob == 0).all() and len(p.log_prob) == packed.count and p.gamma.shape == (0, 3)
        assert (p.transition == 0).all() and (scan.evidence(log_b, d, packed) == 0).all()
        path, best = viterbi(log_b, d, packed)
        assert len(path) == 0 and (best == 0).all()
