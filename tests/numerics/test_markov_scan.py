"""The scan over time, compiled and with tensors, against sums over every path and autograd through logarithms."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from protea.models.markov import blocks, compiled, decode, log_scan, scan
from protea.models.markov.dynamics import Dynamics
from protea.models.markov.likelihood import log_likelihood
from protea.models.markov.packed import Packed
from protea.models.markov.viterbi import viterbi

BIDIAGONAL = torch.tensor([[1.0, 1, 0], [0, 1, 1], [0, 0, 1]])


def chain(k: int = 3, mask: Tensor | None = None, end: bool = False, seed: int = 0) -> Dynamics:
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(k + 2, k, dtype=torch.float64, generator=g) + 0.02
    if mask is not None:
        p[1:-1] *= mask
    p[:-1] /= p[:-1].sum(1, keepdim=True)
    return Dynamics(p[0], p[1:-1], p[-1] * 0.5 if end else None)


def steps(packed: Packed, k: int, spread: float, seed: int = 1) -> Tensor:
    return spread * torch.randn(packed.total, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["compiled", "tensors"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel, or what does without it."""
    if request.param == "tensors":
        monkeypatch.setattr(compiled, "ready", lambda _: False)
    elif compiled._library() is None:
        pytest.skip("no compiled kernels here")
    return request.param


@pytest.mark.parametrize("end", [False, True])
def test_every_path_is_summed(end: bool, form: str, evidence):
    """Score, posterior and best path by enumeration of all 3^T paths, T = 0 .. 8."""
    lengths = torch.tensor([3, 8, 0, 1, 6])
    packed, d = Packed(lengths, 8), chain(end=end)
    log_b = steps(packed, 3, 1.5)
    padded = packed.unpack(log_b)
    got = scan.smooth(log_b, d, packed)
    path, best = viterbi(log_b.clone(), d, packed)
    filtered = packed.unpack(scan.filtered(log_b, d, packed))
    log_p, gamma, path = got.log_prob, packed.unpack(got.gamma), packed.unpack(path, -1)
    error = 0.0
    for b, n in enumerate(lengths.tolist()):
        z = torch.tensor(list(itertools.product(range(3), repeat=n)), dtype=torch.int64).view(3**n, n)
        score = torch.zeros(len(z), dtype=torch.float64)
        if n:
            score = d.start.log()[z[:, 0]] + sum(padded[b, t, z[:, t]] for t in range(n))
            score = score + sum(d.transition.log()[z[:, t - 1], z[:, t]] for t in range(1, n))
            past = torch.softmax(torch.stack([score[z[:, -1] == k].logsumexp(0) for k in range(3)]), 0)
            error = max(error, float((filtered[b, n - 1] - past).abs().max()))
            score = score + (0.0 if d.last is None else d.last.log()[z[:, -1]])
            assert path[b, :n].tolist() == z[score.argmax()].tolist()
            share = torch.softmax(score, 0)
            for t, k in itertools.product(range(n), range(3)):
                error = max(error, abs(float(gamma[b, t, k] - share[z[:, t] == k].sum())))
        error = max(error, abs(float(log_p[b] - score.logsumexp(0))), abs(float(best[b] - score.max())))
        assert (path[b, n:] == -1).all() and (gamma[b, n:] == 0).all()
    evidence(
        id="TR-11", system="Hidden Markov model",
        claim=f"score, filter, posterior, Viterbi of 0 to 8 steps{', with an end state' if end else ''}, {form}",
        reference="sum and maximum over every path", reached=error, tolerance=1e-12, unit="max abs",
    )  # fmt: skip


@pytest.mark.parametrize("spread", [1.0, 30.0, 600.0])
@pytest.mark.parametrize("mask", [None, BIDIAGONAL], ids=["ergodic", "left-to-right"])
@pytest.mark.parametrize("end", [False, True])
def test_gradients_are_expected_counts(end: bool, mask: Tensor | None, spread: float, form: str, evidence):
    """Autograd through the plain recursion in logarithms, against one forward-backward pass; ratios up to e^2000."""
    lengths = torch.tensor([5, 40, 0, 1, 23])
    packed, d = Packed(lengths, 40), chain(mask=mask, end=end)
    weights = torch.tensor([0.3, 2.0, 1.0, 0.0, 1.5], dtype=torch.float64)
    leaves = [steps(packed, 3, spread), d.start, d.transition, *([] if d.last is None else [d.last])]
    leaves = [v.detach().requires_grad_() for v in leaves]
    mine = Dynamics(leaves[1], leaves[2], leaves[3] if end else None)
    value = log_likelihood(leaves[0], mine, packed)
    got = torch.autograd.grad((weights * value).sum(), leaves)
    plain = log_scan.evidence(leaves[0], mine, packed)
    want = torch.autograd.grad((weights * plain).sum(), leaves)
    allowed = [torch.ones_like(v, dtype=torch.bool) for v in leaves]
    allowed[2] = d.transition > 0  # a forbidden step has no probability to move
    errors = [float(((g - w).abs() / (1 + w.abs()))[a].max()) for g, w, a in zip(got, want, allowed)]
    errors.append(float(((value - plain) / (1 + plain.abs())).detach().abs().max()))
    evidence(
        id="TR-11", system="Hidden Markov model", claim=f"gradient of log p is the counts, spread {spread:g}, {form}",
        reference="autograd through the recursion in logarithms", reached=max(errors), tolerance=1e-9, unit="relative",
    )  # fmt: skip


@pytest.mark.parametrize("lengths", [[65, 65], [200, 200], [1000, 1000], [200, 0, 1, 61, 137]])
@pytest.mark.parametrize("mask", [None, BIDIAGONAL], ids=["ergodic", "left-to-right"])
def test_blocks_give_what_a_plain_scan_gives(mask: Tensor | None, lengths: list[int], monkeypatch):
    monkeypatch.setattr(compiled, "ready", lambda _: False)
    packed, d = Packed(torch.tensor(lengths), max(lengths)), chain(mask=mask, end=True)
    log_b = steps(packed, 3, 2.0)
    weights = torch.linspace(0.5, 2, len(lengths), dtype=torch.float64)
    monkeypatch.setattr(scan.blocks, "block_length", lambda *_: max(lengths))
    want, plain = scan.smooth(log_b, d, packed, weights), scan.evidence(log_b, d, packed)
    for length in (8, 16, 31):
        monkeypatch.setattr(scan.blocks, "block_length", lambda *_, length=length: length)
        got = scan.smooth(log_b, d, packed, weights)
        for name in ("log_prob", "gamma", "start", "transition", "last"):
            assert torch.allclose(getattr(got, name), getattr(want, name), rtol=1e-10, atol=1e-10), name
        assert torch.allclose(scan.evidence(log_b, d, packed), plain, rtol=1e-12)


def test_blocks_are_chosen_where_they_pay():
    one = Packed(torch.tensor([100_000]), 100_000)
    many = Packed(torch.full((2000,), 500), 500)
    assert blocks.block_length(one, 4) < 10_000 and blocks.block_length(many, 16) == 500


def test_nothing_underflows_at_100_000_steps(form: str, evidence):
    """log p of 1e5 steps is about -1e6 nats; the recursion in logarithms is the reference."""
    packed, d = Packed(torch.tensor([100_000]), 100_000), chain(4)
    log_b = steps(packed, 4, 3.0) - 9
    got = scan.smooth(log_b, d, packed)
    assert float(got.log_prob) < -5e5 and torch.allclose(got.gamma.sum(1), torch.ones(()).double(), atol=1e-9)
    want = log_scan.evidence(log_b[:20_000], d, Packed(torch.tensor([20_000]), 20_000))
    part = scan.evidence(log_b[:20_000], d, Packed(torch.tensor([20_000]), 20_000))
    evidence(
        id="TR-11", system="Hidden Markov model", claim=f"100,000 steps without underflow; log p of 20,000, {form}",
        reference="recursion in logarithms", reached=float(((part - want) / want).abs()), tolerance=1e-12,
        unit="relative",
    )  # fmt: skip


def test_single_precision_is_close(form: str):
    packed, d = Packed(torch.full((20,), 300), 300), chain(8)
    log_b = steps(packed, 8, 3.0)
    want = scan.smooth(log_b, d, packed)
    got = scan.smooth(log_b.float(), Dynamics(d.start.float(), d.transition.float()), packed)
    assert torch.allclose(got.log_prob, want.log_prob, rtol=1e-5)
    assert torch.allclose(got.gamma.double(), want.gamma, atol=1e-3)


def test_paths_are_drawn_from_their_posterior(form: str):
    """Frequencies of whole paths against enumeration, chi-square below its 99.9 % quantile."""
    n, d = 8192, chain(end=True)
    packed, one = Packed(torch.full((n,), 3), 3), steps(Packed(torch.tensor([3]), 3), 3, 1.0)
    log_b = packed.pack(one.expand(n, 3, 3))
    u = torch.rand(packed.total, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = packed.unpack(decode.sample_paths(u, log_b, d, packed))
    paths = torch.tensor(list(itertools.product(range(3), repeat=3)))
    assert d.last is not None
    score = d.start.log()[paths[:, 0]] + sum(one[t, paths[:, t]] for t in range(3)) + d.last.log()[paths[:, 2]]
    score = score + sum(d.transition.log()[paths[:, t - 1], paths[:, t]] for t in (1, 2))
    want = n * torch.softmax(score, 0)
    got = (z[:, None] == paths).all(2).double().sum(0)
    often = want > 5
    statistic = float(((got - want) ** 2 / want)[often].sum())
    from scipy.stats import chi2

    assert got.sum() == n and statistic < chi2.ppf(0.999, int(often.sum()))


def test_impossible_sequences_are_minus_infinity_never_nan(form: str):
    packed, d = Packed(torch.tensor([4, 4]), 4), chain(mask=BIDIAGONAL)
    log_b = torch.zeros(packed.total, 3, dtype=torch.float64)
    log_b[packed.row == 1] = torch.tensor([-torch.inf, 0.0, -torch.inf]).double()
    back = (packed.row == 1) & (packed.step == 2)  # which the mask forbids
    log_b[back] = torch.tensor([0.0, -torch.inf, -torch.inf]).double()
    got = scan.smooth(log_b, d, packed)
    assert got.log_prob[1] == -torch.inf and got.log_prob[0].isfinite()
    assert (got.gamma[packed.row == 1] == 0).all() and got.transition.isfinite().all()
    assert scan.evidence(log_b, d, packed)[1] == -torch.inf
