"""EM: monotone at every epoch, equal to a plain reference, indifferent to how rows are cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from protea.core import Batch, Countable, Normalised
from protea.errors import Diverged
from protea.rng import Streams
from protea.space import Rows
from protea.training import EM, Budget, fit


class Coins(Normalised, Countable):
    """Mixture of K products of D coins."""

    def __init__(self, k: int = 3, d: int = 8) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.register_buffer("weight", torch.full((k,), 1 / k, dtype=torch.float64))
        self.register_buffer("p", 0.25 + 0.5 * torch.rand(k, d, generator=g, dtype=torch.float64))

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        z = rng.categorical(self.weight.log().expand(len(rng), -1))
        return (rng.uniform(self.p.shape[1], dtype=torch.float64) < self.p[z]).double()

    def joint(self, x: Tensor) -> Tensor:
        return x @ self.p.log().T + (1 - x) @ (1 - self.p).log().T + self.weight.log()

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.joint(x).logsumexp(-1)

    def expect(self, x: Tensor, cond: Tensor | None = None) -> dict[str, Tensor]:
        joint = self.joint(x)
        r = joint.softmax(-1)
        return {
            "n": r.sum(0),
            "ones": r.T @ x,
            "count": torch.tensor(float(len(x))),
            "log_prob": joint.logsumexp(-1).sum(),
        }

    def maximise(self, stats: dict[str, Tensor]) -> None:
        self.weight.copy_(stats["n"] / stats["count"])
        self.p.copy_((stats["ones"] / stats["n"][:, None]).clamp(1e-6, 1 - 1e-6))


def coins(n: int = 400) -> Rows:
    g = np.random.default_rng(0)
    p = np.array([[0.9] * 4 + [0.1] * 4, [0.1] * 4 + [0.9] * 4, [0.5] * 8])
    x = (g.random((n, 8)) < p[g.integers(3, size=n)]).astype(float)
    return Rows(torch.as_tensor(x), None, torch.arange(n))


def reference(epochs: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """The textbook loop (Bishop 2006, section 9.3.3) in numpy, on all rows at once."""
    model, x, curve = Coins(), coins().x.numpy(), []
    w, p = model.weight.numpy().copy(), model.p.numpy().copy()
    for _ in range(epochs):
        like = w * np.prod(np.where(x[:, None] > 0.5, p, 1 - p), -1)
        curve.append(float(np.log(like.sum(1)).mean()))
        r = like / like.sum(1, keepdims=True)
        w, p = r.mean(0), np.clip(r.T @ x / r.sum(0)[:, None], 1e-6, 1 - 1e-6)
    return w, p, curve


@pytest.mark.parametrize("batch_size", [400, 64, 7])
def test_agrees_with_the_textbook_whatever_the_batches(batch_size: int, evidence) -> None:
    model = Coins()
    result = fit(model, coins(), learner=EM(model, tolerance=0.0, batch_size=batch_size), budget=Budget(epochs=10),
                 progress=None)  # fmt: skip
    assert (result.epochs, result.stopped_because) == (10, "budget")
    w, p, _ = reference(10)
    gap = max(float(np.abs(model.weight.numpy() - w).max()), float(np.abs(model.p.numpy() - p).max()))
    evidence(id="CL-EM", system="Expectation-maximisation", claim=f"10 epochs, batches of {batch_size}",
             reference="full-batch EM in numpy", reached=gap, tolerance=1e-10, unit="max abs")  # fmt: skip


def test_never_falls_and_converges() -> None:
    model = Coins()
    learner = EM(model, tolerance=1e-7)
    rows, curve = coins(), []
    while not learner.converged:
        learner.step(Batch(rows.x, None, Streams(0, rows.ids)))
        curve.append(learner.end_epoch()["log_prob"])
    assert len(curve) > 5 and (np.diff(curve) >= 0).all()
    assert np.allclose(curve[: len(curve)], reference(len(curve))[2][: len(curve)], atol=1e-10)
    assert float(model.log_prob(rows.x).mean()) == pytest.approx(curve[-1], abs=1e-12)


class Overshoots(Coins):
    """Its fourth maximisation is a mistake."""

    steps = 0

    def maximise(self, stats: dict[str, Tensor]) -> None:
        super().maximise(stats)
        self.steps += 1
        if self.steps == 4:
            self.p.fill_(0.5)


def test_a_step_that_falls_is_taken_back() -> None:
    model, rows = Overshoots(), coins()
    result = fit(model, rows, budget=Budget(epochs=50), progress=None)
    assert result.stopped_because == "converged" and result.epochs == 5
    assert float(model.log_prob(rows.x).mean()) == pytest.approx(reference(4)[2][3], abs=1e-12)


def test_counting_takes_one_epoch() -> None:
    model = Coins()
    result = fit(model, coins(), learner=EM(model, epochs=1), budget=Budget(seconds=60), progress=None)
    assert (result.epochs, result.stopped_because) == (1, "converged")


def test_impossible_values_name_their_rows() -> None:
    model, rows = Coins(), coins()
    rows.x[17] = float("nan")
    with pytest.raises(Diverged, match=r"statistic log_prob.*rows of the batch:.*\b17\b"):
        fit(model, rows, learner=EM(model, batch_size=20), budget=Budget(epochs=2), progress=None)
