"""Gaps and forecasts of series: exact, in the run's own terms, and better than the usual ways on real speech."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import protea
from protea.cli.app import app
from protea.distributions.gaussian import Gaussian
from protea.errors import ConfigError, NotSupported
from protea.inference.missing import encode_missing, impute
from protea.inference.series import endless, forecast, hidden, known, ways
from protea.models.classical.mixture import Mixture
from protea.models.markov.chain import Chain
from protea.models.markov.family import MarkovFamily
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.lengths import Lengths
from protea.models.markov.topology import ergodic, from_masks
from protea.spaces import Series, Vector

NAN = math.nan
STEP = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
MEANS = torch.tensor([[0.0, 1.0], [5.0, -2.0]], dtype=torch.float64)


def chain(shift: float = 0.0) -> HiddenMarkov:
    model = HiddenMarkov(Gaussian(2, (2,), "diag"), Chain(ergodic(2)), 6, Lengths(6))
    model.transition, model.start = STEP, torch.tensor([0.5, 0.5])
    model.emission.means.copy_(MEANS + shift)  # type: ignore[union-attr]
    model.space = Series(("a", "b"), 6)
    return model


def alpha(x: np.ndarray, shift: float) -> tuple[np.ndarray, float]:
    """p(z_L | x) and log p(x) of complete rows x (L, 2) by the recursion, unit variances."""
    means = MEANS.numpy() + shift
    now, total = np.array([0.5, 0.5]), 0.0
    for t, row in enumerate(x):
        now = now if t == 0 else now @ STEP.numpy()
        b = np.exp(-0.5 * np.square(row - means).sum(1)) / (2 * np.pi)
        now, total = now * b, total + math.log(float(now @ b))
        now = now / now.sum()
    return now, total


def test_a_mixture_of_chains_forecasts_by_powers_of_its_transitions(evidence):
    """E[x_{L+h} | x] = sum_c p(c | x) sum_k (alpha_c A^h)_k mu_ck, beyond the longest series the model has seen."""
    model = Mixture(MarkovFamily([chain(), chain(1.5)]), 2)
    model.space = chain().space
    x = torch.full((3, 6, 2), NAN, dtype=torch.float64)
    rng = np.random.default_rng(0)
    lengths, ahead, worst = (2, 4, 6), 3, 0.0
    for i, n in enumerate(lengths):
        x[i, :n] = torch.from_numpy(rng.normal(2.0, 2.0, (n, 2)))
    got = forecast(model, x, ahead)
    assert got.shape == (3, 9, 2)
    for i, n in enumerate(lengths):
        ends = [alpha(x[i, :n].numpy(), shift) for shift in (0.0, 1.5)]
        share = np.exp([log_p - max(e[1] for e in ends) for _, log_p in ends])
        share /= share.sum()
        for h in range(1, ahead + 1):
            each = [now @ np.linalg.matrix_power(STEP.numpy(), h) @ (MEANS.numpy() + shift)
                    for (now, _), shift in zip(ends, (0.0, 1.5))]  # fmt: skip
            want = share @ np.stack(each)
            worst = max(worst, float(np.abs(got[i, n + h - 1].numpy() - want).max()))
        assert bool(got[i, n + ahead :].isnan().all()) and torch.equal(got[i, :n], x[i, :n])
    evidence(
        id="TR-16", system="Mixture of hidden Markov models", claim="forecast of three steps, two chains",
        reference="p(chain | x) and powers of the transitions, by numpy", reached=worst, tolerance=1e-12,
        unit="max abs",
    )  # fmt: skip


def test_draws_of_what_comes_have_the_forecast_as_their_mean():
    x = torch.full((1, 6, 2), NAN, dtype=torch.float64)
    x[0, :3] = torch.tensor([[0.0, 1.0], [NAN, 1.0], [4.0, -2.0]])
    mean, drawn = forecast(chain(), x, 2), forecast(chain(), x, 2, draws=4000)
    assert drawn.shape == (4000, 1, 5, 2)
    error = (drawn.mean(0) - mean) / (drawn.std(0) / math.sqrt(4000)).clamp(min=1e-12)
    assert float(error.abs().max()) < 4.5


def test_a_gap_is_asked_for_given_the_length():
    space = Series(("a", "b"), 6)
    x, observed = encode_missing(space, [np.array([[0.0, 1.0], [NAN, NAN], [5.0, -2.0]])])
    assert observed[0, :, 0].tolist() == [True, False, True, True, True, True]
    assert torch.equal(observed, known(space, x))
    filled = impute(chain(), x, observed)
    want = endless(chain(), 3).given(x[:, :3], ~x[:, :3].isnan()).mean  # type: ignore[operator]
    assert torch.allclose(filled[:, :3], want, atol=1e-12) and bool(filled[:, 3:].isnan().all())


def test_what_has_no_next_step_says_so():
    ending = from_masks(torch.ones(2), torch.ones(2, 2), torch.ones(2))
    model = HiddenMarkov(Gaussian(2, (2,), "diag"), Chain(ending), 6)
    model.space = Series(("a", "b"), 6)
    x = torch.zeros(1, 6, 2, dtype=torch.float64)
    with pytest.raises(NotSupported, match="after the last step"):
        forecast(model, x, 1)
    with pytest.raises(ConfigError, match="0 steps"):
        forecast(chain(), x, 0)
    model.space = Vector(("a", "b"))
    with pytest.raises(NotSupported, match="no steps to come"):
        forecast(model, x, 1)


def test_the_usual_ways_are_what_they_say():
    x = torch.tensor([[[NAN], [2.0], [NAN], [NAN], [8.0], [NAN]]], dtype=torch.float64)
    seen = ~x.isnan()
    got = {name: way(x, seen)[0, :, 0].tolist() for name, way in ways(x).items()}
    assert got["channel mean"] == [5, 2, 5, 5, 8, 5] and got["last value"] == [5, 2, 2, 2, 8, 8]
    assert got["straight line"] == pytest.approx([2, 2, 4, 6, 8, 8])
    whole = hidden(Series(("a",), 50), torch.zeros(4, 50, 1), 0.5, whole=True)
    assert bool(whole[:, -1].all()) and 60 < int((~whole).sum()) < 140


@pytest.mark.slow
def test_hidden_steps_of_speech(shared_data: Path, tmp_path: Path, evidence):
    """From the command line: speakers' vowels with gaps, filled, gone on with and measured."""
    protea.fit("hmm", shared_data / "sequences" / "japanese_vowels.npz", budget="15s", out=tmp_path / "run")
    done = CliRunner().invoke(app, ["impute", str(tmp_path / "run"), "--json"])
    errors = {way: {what: f["value"] for what, f in figures.items()}
              for way, figures in json.loads(done.stdout)["errors"].items()}  # fmt: skip
    print(errors)
    for what in ("cells", "steps"):
        mean = errors["channel mean"][what]
        evidence(
            id="TR-16", system="Hidden Markov model",
            claim=f"japanese_vowels, 20 % of {what} of held-out utterances hidden: error, last value "
            f"{errors['last value'][what]:.3f}, straight line {errors['straight line'][what]:.3f}, mean {mean:.3f}",
            reference="the channel's mean", reached=errors["this run"][what] / mean, tolerance=0.75,
            unit="of the mean's",
        )  # fmt: skip
    z = np.load(shared_data / "sequences" / "japanese_vowels.npz")
    x = z["x"][:5].astype(np.float64)
    x[:, 2, 3] = NAN
    np.savez(tmp_path / "gaps.npz", x=x, length=z["length"][:5])
    words = ["impute", str(tmp_path / "run"), str(tmp_path / "gaps.npz"), "--ahead", "2", "--json"]
    done = CliRunner().invoke(app, words)
    told = json.loads(done.stdout)
    assert told["holes"] == 5 and [len(s) for s in told["rows"][0]] == [int(n) + 2 for n in z["length"][:5]]
    assert np.isfinite(np.concatenate([np.array(s).ravel() for s in told["rows"][0]])).all()
