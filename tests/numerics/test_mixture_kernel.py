"""The compiled expectation of Gaussian mixtures: scipy's densities, the PyTorch form's sums, hard rows, any threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from protea.core import Stats
from protea.distributions import fused
from protea.kernels.build import Compiled
from protea.models.classical.gmm import GaussianMixture
from protea.space import Rows

KINDS = ("full", "tied", "diag", "spherical")
SIZES = [(1, 1, 1), (23, 1, 3), (24, 3, 1), (25, 2, 7), (600, 5, 13), (3000, 4, 6)]  # rows, entries, members
pytestmark = pytest.mark.skipif(fused.library().lib is None, reason=fused.library().reason)


def problem(kind: str, n: int, d: int, k: int, classes: int = 0) -> tuple[GaussianMixture, torch.Tensor]:
    rng = np.random.default_rng(n + d)
    x = torch.from_numpy(2 * rng.normal(size=(k, d))[rng.integers(k, size=n)] + rng.normal(size=(n, d)))
    model = GaussianMixture((d,), k, kind, classes, reg_covar=1e-3)
    y = torch.arange(n) % classes if classes else None
    model.initialise(Rows(x, y, torch.arange(n)))
    return model, x


def plain(monkeypatch: pytest.MonkeyPatch, work):
    """The work done by the PyTorch form."""
    with monkeypatch.context() as patch:
        patch.setattr(fused, "library", lambda: Compiled(None, "off"))
        return work()


def agree(found: Stats, want: Stats, rtol: float = 1e-10) -> None:
    assert found.keys() == want.keys()
    for name, value in want.items():
        scale = float(value.abs().max()) if value.numel() else 0.0
        assert torch.allclose(found[name], value, rtol=0, atol=rtol * max(scale, 1.0)), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_the_two_forms_agree(kind: str, n: int, d: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = problem(kind, n, d, k)
    agree(model.expect(x), plain(monkeypatch, lambda: model.expect(x)))
    assert torch.allclose(model.log_prob(x), plain(monkeypatch, lambda: model.log_prob(x)), rtol=0, atol=1e-11)
    want = plain(monkeypatch, lambda: model.responsibilities(x))
    assert torch.allclose(model.responsibilities(x), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_are_scipys_however_far_and_narrow(kind: str, evidence) -> None:
    """At 1e4 deviations from the origin, where the expanded square would lose eight digits."""
    rng = np.random.default_rng(0)
    d, k, n = 4, 3, 50
    model = GaussianMixture((d,), k, kind)
    model.family.origin.fill_(0.0)
    means = 1e2 + rng.normal(size=(k, d))
    root = 1e-2 * (np.eye(d) + 0.3 * np.tril(rng.normal(size=(k, d, d)), -1))
    sigma = root @ root.transpose(0, 2, 1)
    if kind == "tied":
        sigma[:] = sigma[0]
    elif kind == "diag":
        sigma = sigma * np.eye(d)
    elif kind == "spherical":
        sigma = np.stack([1e-4 * (i + 1) * np.eye(d) for i in range(k)])
    model.means = torch.from_numpy(means)
    given = {"full": sigma, "tied": sigma[0], "diag": sigma.diagonal(0, 1, 2), "spherical": sigma[:, 0, 0]}[kind]
    model.family.covariances = torch.from_numpy(given.copy())
    which = rng.integers(k, size=n)
    x = means[which] + 1e-2 * rng.normal(size=(n, d))
    parts = [stats.multivariate_normal(m, s).logpdf(x) - math.log(k) for m, s in zip(means, sigma)]
    found = model.log_prob(torch.from_numpy(x)).numpy()
    evidence(
        id="TR-07", system="Gaussian mixture", claim=f"{kind}: compiled log p(x) at 1e4 deviations from the origin",
        reference="scipy.stats.multivariate_normal", reached=np.abs(found - np.logaddexp.reduce(parts)).max(),
        tolerance=1e-9, unit="nats",
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_labels_pick_members(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = problem(kind, 500, 3, 4, classes=3)
    y = torch.arange(500) % 4 - 1  # -1 is unknown
    agree(model.expect(x, y), plain(monkeypatch, lambda: model.expect(x, y)))
    want = plain(monkeypatch, lambda: model.log_prob(x, y))
    assert torch.allclose(model.log_prob(x, y), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_hard_rows_are_left_to_the_other_form(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = problem(kind, 400, 3, 5)
    x[7, 1] = x[8, 0] = x[399, 2] = math.nan
    x[9] = math.nan  # nothing known: log p = 0
    agree(model.expect(x), plain(monkeypatch, lambda: model.expect(x)))
    found, want = model.log_prob(x), plain(monkeypatch, lambda: model.log_prob(x))
    assert torch.allclose(found, want, rtol=0, atol=1e-11) and float(found[9]) == 0
    assert torch.allclose(model.responsibilities(x), plain(monkeypatch, lambda: model.responsibilities(x)), atol=1e-12)
    x[11, 0] = 1e300  # its density underflows: log p = -inf, as in the PyTorch form
    assert float(model.log_prob(x)[11]) == float(plain(monkeypatch, lambda: model.log_prob(x))[11]) == -math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_members_without_weight_count_nothing(kind: str) -> None:
    model, x = problem(kind, 100, 2, 3)
    model.log_weights[0, 1] = -math.inf
    found = model.expect(x)
    assert float(found["n"][1]) == 0 and float(found["member.s1"][1].abs().max()) == 0
    assert float(found["n"].sum()) == pytest.approx(100, abs=1e-9)
    assert float(model.responsibilities(x)[:, 0, 1].max()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads_gives_the_same_bits(kind: str) -> None:
    model, x = problem(kind, 5000, 4, 6)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(model.expect(x) | {"log_p": model.log_prob(x)})
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_models_of_single_precision(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = problem(kind, 700, 4, 5)
    single = x.float()
    agree(model.expect(single), model.expect(single.double()), 1e-15)
    want = model.log_prob(single.double())
    narrow = model.float()
    found = narrow.log_prob(single)
    assert found.dtype == torch.float32 and torch.allclose(found.double(), want, atol=1e-4)
    stats = narrow.expect(single)
    assert stats["n"].dtype == torch.float32 and float(stats["n"].sum()) == pytest.approx(700, rel=1e-5)


def test_strided_rows_need_no_copy_and_turned_ones_get_one() -> None:
    model, x = problem("full", 300, 3, 2)
    want = model.log_prob(x)
    wide = torch.cat((x, x), 1)
    assert torch.equal(model.log_prob(wide[:, :3]), want)
    assert torch.equal(model.log_prob(x.T.contiguous().T), want)
    twice = torch.cat((x, x))[::2]
    assert torch.equal(model.log_prob(twice), model.log_prob(twice.contiguous()))


def test_a_gradient_goes_through_the_pytorch_form() -> None:
    model, x = problem("diag", 20, 3, 2)
    x.requires_grad_()
    model.log_prob(x).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_never_falls_where_the_data_degenerate(kind: str) -> None:
    """Repeated rows and a constant column: every covariance ends at its floor."""
    x = torch.randn(4, 3, dtype=torch.float64).repeat(50, 1)
    x[:, 1] = 3.0
    model = GaussianMixture((3,), 6, kind, reg_covar=1e-4)
    model.initialise(Rows(x, None, torch.arange(200)))
    previous = -math.inf
    for _ in range(20):
        found = model.expect(x)
        now = float(found["log_prob"])
        assert math.isfinite(now) and now >= previous - 1e-9 * abs(now)
        previous = now
        model.maximise(found)
