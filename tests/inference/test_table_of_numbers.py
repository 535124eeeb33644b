"""A Gaussian mixture of a table of real numbers fills its holes: exactly, in the columns' own units."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats
from typer.testing import CliRunner

from protea.cli.app import app
from protea.core import Model
from protea.inference.imputation_error import by_column, by_model, hide, imputation_error, peers
from protea.inference.missing import conditional, encode_missing, impute, log_evidence
from protea.models.lifted import LiftedConditionable
from protea.space import Rows
from protea.spaces import Table
from protea.training.run import build


def frame(n: int, seed: int = 0) -> pd.DataFrame:
    """Three columns that lean on each other, one skewed."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3)) @ np.array([[1, 0.9, 0.6], [0, 0.5, -0.5], [0, 0, 0.5]])
    side = rng.integers(2, size=n)[:, None] * np.array([3.0, -2.0, 1.0])
    z = z + side
    return pd.DataFrame({"a": z[:, 0] * 1e3, "b": np.exp(0.5 * z[:, 1]), "c": z[:, 2]})


def learnt(covariance: str, n: int = 1500) -> tuple[Model, Table, torch.Tensor]:
    rows = frame(n)
    space = Table.infer(rows)
    assert [f.kind for f in space.fields] == ["real"] * 3
    x = space.encode(rows)
    model = build("gmm", space, {"k": 4, "covariance": covariance})
    assert isinstance(model, LiftedConditionable)
    model.initialise(Rows(x, None, torch.arange(n)))
    v = model.raise_rows(Rows(x, None, torch.arange(n)), 0).x
    for _ in range(20):
        model.inner.maximise(model.inner.expect(v))
    return model, space, x


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_joint_is_evidence_and_conditional(covariance: str, evidence) -> None:
    model, _, x = learnt(covariance, 400)
    x = x[:60]
    seen = hide(x, 0.4)
    given = conditional(model, torch.where(seen, x, torch.nan), seen)
    joint = given.evidence + given.log_prob(x)
    error = float((joint - model.log_prob(x)).abs().max())
    evidence(id="TR-16", system="Imputation", claim=f"table of numbers, {covariance}: log p(x_o) + log p(x_u | x_o)",
             reference="log p(x)", reached=error, tolerance=1e-4, unit="nats")  # fmt: skip


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_the_filled_value_is_the_integral(covariance: str, evidence) -> None:
    """E[x_u | x_o] = the integral of T^-1(z) p(z | z_o), by quadrature of scipy's conditional densities."""
    model, _, x = learnt(covariance)
    rows = x[:4].clone()
    rows[:, 1] = torch.nan
    filled = impute(model, rows, ~rows.isnan())
    assert torch.equal(filled[:, [0, 2]], x[:4, [0, 2]])
    family, weights = model.inner.family, model.inner.log_weights[0].exp().numpy()
    sigma = family.kind.dense(family.scale, 4, 3).numpy()
    v = model.relaxation.lift(x[:4], None)[0].double().numpy()
    z = np.linspace(-12, 12, 200_001)
    lowered = model.relaxation.lower(torch.from_numpy(z)[:, None].expand(-1, 3))[:, 1].numpy()  # T^-1 of each point
    errors = []
    for row, found in zip(v, filled[:, 1].tolist()):
        parts = []
        for w, m, s in zip(weights, family.means.numpy(), sigma):
            o = [0, 2]
            gain = s[1, o] @ np.linalg.inv(s[np.ix_(o, o)])
            seen = w * stats.multivariate_normal(m[o], s[np.ix_(o, o)]).pdf(row[o])
            parts.append((seen, m[1] + gain @ (row[o] - m[o]), math.sqrt(s[1, 1] - gain @ s[o, 1])))
        total = sum(seen for seen, _, _ in parts)
        density = sum(seen * stats.norm(m, s).pdf(z) for seen, m, s in parts) / total
        want = integrate.simpson(lowered * density, x=z)
        errors.append(abs(found - want) / abs(want))
    evidence(id="TR-16", system="Imputation", claim=f"table of numbers, {covariance}: filled value",
             reference="scipy.integrate of the conditional density", reached=max(errors), tolerance=1e-4,
             unit="relative")  # fmt: skip


def test_draws_follow_the_filled_value_and_keep_what_is_there() -> None:
    model, _, x = learnt("full")
    rows = x[:3].clone()
    rows[0, 0] = rows[1, 1] = rows[2, 0] = rows[2, 2] = torch.nan
    seen = ~rows.isnan()
    drawn = impute(model, rows, seen, draws=8000)
    assert bool((drawn[:, seen] == rows[seen]).all())
    error = (drawn.mean(0) - impute(model, rows, seen)).abs()[~seen]
    assert bool((error < 4 * (drawn.std(0) / math.sqrt(8000))[~seen]).all())


def test_nothing_observed_has_evidence_of_zero() -> None:
    model, space, _ = learnt("full", 300)
    rows, seen = encode_missing(space, pd.DataFrame({"a": [None, 1.0]}))
    assert seen.tolist() == [[False, False, False], [True, False, False]]
    assert float(log_evidence(model, rows, seen)[0]) == pytest.approx(0, abs=1e-9)
    assert bool(impute(model, rows, seen).isfinite().all())


def test_held_out_cells(evidence) -> None:
    """A fifth of the cells hidden: against the column's mean and scikit-learn's imputers."""
    model, space, x = learnt("full")
    held = space.encode(frame(500, seed=1))
    rows = Rows(held, None, torch.arange(500))
    ways = {"gmm": by_model(model), "mean": by_column(x, space.fields), **peers(x, space.fields)}
    found = {name: imputation_error(way, rows, x, space.fields)["rmse"].value for name, way in ways.items()}
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    evidence(id="TR-16", system="Imputation", claim=f"table of real numbers, rmse of hidden cells: {told}",
             reference="KNNImputer", reached=found["gmm"] / found["KNNImputer"], tolerance=1.0,
             unit="of KNNImputer's")  # fmt: skip
    assert found["gmm"] < 0.8 * found["mean"]


def test_the_command_fills_a_table_with_holes(tmp_path: Path) -> None:
    frame(300).to_csv(tmp_path / "numbers.csv", index=False)
    words = ["fit", "gmm", str(tmp_path / "numbers.csv"), "-o", str(tmp_path / "run"), "--budget", "5epochs"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (tmp_path / "holes.csv").write_text("a,b,c\n100.0,,0.5\n,2.0,\n")
    words = ["impute", str(tmp_path / "run"), str(tmp_path / "holes.csv"), "-o", str(tmp_path / "full.csv"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["holes"] == 3
    full = pd.read_csv(tmp_path / "full.csv")
    values = full.to_numpy()
    assert values.shape == (2, 3) and values[1, 1] == 2.0 and bool(np.isfinite(values).all())
