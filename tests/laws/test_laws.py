"""The laws: what every model promises by its type, tried on every model of the registry (see cases.py)."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import math
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protea.core import Batch, Bounded, Conditionable, Countable, Encodes, Model, NextToken, Normalised
from protea.distributions.histogram import Histogram
from protea.errors import NotSupported
from protea.models import MODELS
from protea.models.lifted import Lifted
from protea.nn.auxiliary import auxiliary_losses
from protea.rng import Streams
from protea.space import Rows, Space
from protea.spaces import space_from_json
from protea.training import config as settings
from protea.training import run as runs
from protea.training.budget import Budget
from protea.training.defaults import default_learner
from protea.training.fit import fit
from protea.training.gradient import Gradient
from protea.training.lifting import Lifting

_spec = importlib.util.spec_from_file_location("law_cases", Path(__file__).with_name("cases.py"))
assert _spec is not None and _spec.loader is not None
_cases = importlib.util.module_from_spec(_spec)
sys.modules["law_cases"] = _cases
_spec.loader.exec_module(_cases)
Case = _cases.Case
CASES = [case for case in _cases.CASES if case.model in MODELS]
STEPS = 12  # of learning: enough to leave the initial weights


@cache
def learnt(case: Case) -> tuple[Model, Space, Rows]:
    """A model after a little learning. Laws share it: copy before changing it."""
    space, rows = case.data()
    model = runs.build(case.model, space, MODELS[case.model].config(**case.config))
    model.initialise(rows)
    fit(model, rows, None, budget=Budget(steps=STEPS), judge=None, progress=None, batch_size=64)
    return model.eval(), space, rows


def inner(model: Model) -> Model:
    return model.inner if isinstance(model, Lifted) else model


PLANE = ("vector", "labelled")  # data in the plane
SMALL = (*PLANE, "tokens")  # data whose space can be summed over


def where(*kinds: type, unlifted: bool = False, data: tuple[str, ...] = ()):
    """The cases whose model has all the capabilities; `unlifted` looks at the model inside a lifted one, `data` names
    the only data sets wanted."""

    def suits(case: Case) -> bool:
        if data and case.data.__name__ not in data:
            return False
        space, _ = case.data()
        model = runs.build(case.model, space, MODELS[case.model].config(**case.config))
        model = inner(model) if unlifted else model
        return all(isinstance(model, kind) for kind in kinds)

    return pytest.mark.parametrize("case", [case for case in CASES if suits(case)], ids=str)


everywhere = pytest.mark.parametrize("case", CASES, ids=str)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


# ---- every model ----


def test_every_model_is_tried():
    assert set(MODELS) <= {case.model for case in CASES}
    for name, entry in MODELS.items():
        assert entry.name == name and entry.title and entry.source and entry.suits


@everywhere
def test_samples_are_in_the_support(case: Case):
    model, space, _ = learnt(case)
    x = model.sample(40)
    assert x.shape == (40, *space.event) and x.dtype == space.dtype
    for field, value in zip(space.fields, x.reshape(40, -1).double().T):
        known = value[~value.isnan()]
        assert field.missing or len(known) == 40, field
        assert torch.isfinite(known).all(), field
        if field.kind == "category":
            assert ((known >= 0) & (known < field.levels) & (known == known.round())).all(), field
        if field.kind == "grid":
            cell = known / field.step
            assert torch.allclose(cell, cell.round(), rtol=0, atol=1e-6), field
            if field.levels and math.isinf(field.low):
                assert ((known >= 0) & (known < field.levels)).all(), field
        assert ((known >= field.low) & (known <= field.high)).all(), field
    assert len(space.decode(x)) == 40


@everywhere
def test_eight_at_once_are_eight_one_by_one(case: Case):
    model, _, _ = learnt(case)
    at_once = model.sample(8, rng=5)
    for i in (0, 3, 7):
        assert same(model.sample(1, rng=Streams(5, [i])), at_once[i : i + 1])


@everywhere
def test_sample_i_does_not_depend_on_how_many(case: Case):
    model, _, _ = learnt(case)
    few, many = model.sample(3, rng=2), model.sample(model.block + 2, rng=2)
    assert same(few, many[:3])
    assert same(model.sample(2, rng=Streams(2, [model.block + 1, 1])), many[[model.block + 1, 1]])
    assert not same(model.sample(3, rng=3), few)


@everywhere
def test_no_samples(case: Case):
    model, space, _ = learnt(case)
    x = model.sample(0)
    assert x.shape == (0, *space.event) and x.dtype == space.dtype


@everywhere
def test_labels(case: Case):
    model, space, _ = learnt(case)
    cond = torch.tensor([0, 1, 1, 0])
    if space.classes:
        x = model.sample(4, cond, rng=1)
        assert x.shape == (4, *space.event)
        assert same(model.sample(1, cond[2:3], rng=Streams(1, [2])), x[2:3])
    else:
        with pytest.raises(NotSupported):
            model.sample(4, cond)


@everywhere
def test_a_saved_model_draws_the_same(case: Case, tmp_path: Path):
    model, space, _ = learnt(case)
    run = runs.create_run(
        tmp_path / "run", model_name=case.model, config=MODELS[case.model].config(**case.config), space=space, data={}
    )
    runs.save_model(run, model)
    again = runs.load_model(run)
    assert same(again.sample(9, rng=4), model.sample(9, rng=4))


@pytest.mark.parametrize("seconds", [1.0, 600.0])
@everywhere
def test_suggestions_build(case: Case, seconds: float):
    space, rows = case.data()
    entry = MODELS[case.model]
    config = entry.suggest(space, rows, seconds)
    plain = json.loads(json.dumps(settings.to_json(config)))
    assert settings.from_json(entry.config, plain) == config
    model = runs.build(case.model, space_from_json(json.loads(json.dumps(space.to_json()))), plain)
    model.initialise(rows)


# ---- Normalised ----


def plane(rows: Rows, points: int = 320) -> tuple[Tensor, float]:
    """Midpoints of a fine grid well beyond the rows, (points^2, 2), and the area of a cell."""
    low, high = rows.x.min(0).values, rows.x.max(0).values
    margin = 0.75 * (high - low)
    side = (high - low + 2 * margin) / points
    ticks = [a + s * (torch.arange(points, dtype=torch.float64) + 0.5) for a, s in zip(low - margin, side)]
    return torch.cartesian_prod(*ticks), float(side.prod())


def everything(space: Space, rows: Rows) -> tuple[Tensor, float]:
    """All of a small space: every text, or a grid over the plane."""
    if space.kind == "tokens":
        return torch.tensor(list(itertools.product(range(space.vocabulary), repeat=space.length))), 1.0  # type: ignore[attr-defined]
    return plane(rows)


@where(Normalised, data=SMALL)
def test_probability_sums_to_one(case: Case):
    model, space, rows = learnt(case)
    x, cell = everything(space, rows)
    labels = [None, *(torch.full((len(x),), c) for c in range(len(space.classes)))]
    for cond in labels:
        with torch.no_grad():
            total = float(model.log_prob(x, cond).double().exp().sum()) * cell  # type: ignore[attr-defined]
        assert total == pytest.approx(1, abs=1e-4 if space.kind == "tokens" else 0.02)


def whole_plane(model: Model, rows: Rows, pieces: int = 48) -> tuple[Tensor, Tensor]:
    """Points (n, 2) of the whole plane and their weights (n,), by Gauss-Legendre quadrature in pieces.

    x = mean + sd tan(pi u) maps (-1/2, 1/2) to the line, with tails as heavy as Cauchy's. Edges of a histogram, where a
    density jumps, are ends of pieces.
    """
    node, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(5))
    edges = [part.edges.flatten() for part in model.modules() if isinstance(part, Histogram)]
    axes = []
    for column in rows.x.double().T:
        mean, sd = column.mean(), column.std()
        jumps = [torch.atan((edge - mean) / sd) / math.pi for edge in edges]
        ends = torch.cat((torch.linspace(-0.5, 0.5, pieces + 1, dtype=torch.float64), *jumps)).unique()
        half = ends.diff()[:, None] / 2
        t = torch.tan(math.pi * (ends[:-1, None] + half * (1 + node))).flatten()
        axes.append((mean + sd * t, (half * weight).flatten() * math.pi * sd * (1 + t * t)))
    (a, w_a), (b, w_b) = axes
    return torch.cartesian_prod(a, b), torch.cartesian_prod(w_a, w_b).prod(1)


@where(Normalised, data=PLANE)
def test_a_density_integrates_to_one_over_the_whole_plane(case: Case, evidence):
    model, space, rows = learnt(case)
    x, weight = whole_plane(model, rows)
    error = 0.0
    for label in (None, *range(len(space.classes))):
        cond = None if label is None else torch.full((len(x),), label)
        with torch.no_grad():
            total = float((model.log_prob(x, cond).double().exp() * weight).sum())  # type: ignore[attr-defined]
        error = max(error, abs(total - 1))
    evidence(
        id="TR-18", system=str(case), claim="integral of exp(log_prob) over the plane, for every label",
        reference="1, by Gauss-Legendre quadrature", reached=error, tolerance=1e-3, unit="abs error",
    )  # fmt: skip


@where(Normalised, data=SMALL)
def test_samples_agree_with_log_prob(case: Case, evidence):
    """The mean of log p under p is minus the entropy, which the grid knows."""
    model, space, rows = learnt(case)
    x, cell = everything(space, rows)
    with torch.no_grad():
        log_p = model.log_prob(x).double()  # type: ignore[attr-defined]
        p = log_p.exp() * cell
        entropy = -float(torch.where(p > 0, p * log_p, 0.0).sum())
        samples = model.sample(1024, rng=9)
        drawn = -model.log_prob(samples).double()  # type: ignore[attr-defined]
    assert drawn.isfinite().all()
    error = float(drawn.std()) / math.sqrt(len(drawn))
    evidence(
        id="TR-13", system=str(case), claim="mean -log_prob of 1,024 draws is the entropy",
        reference="sum or integral over the whole space", reached=abs(float(drawn.mean()) - entropy),
        tolerance=4 * error + 0.02, unit="nats",
    )  # fmt: skip
    # A second function of the same draws, so that equal entropies alone do not pass.
    first = x[:, 0].double()
    want, spread = float((p * first).sum() / p.sum()), float(first.std())
    got = samples[:, 0].double()
    assert abs(float(got.mean()) - want) < 4 * float(got.std()) / math.sqrt(len(got)) + 0.01 * spread


@where(Normalised)
def test_log_prob_is_finite_on_data(case: Case):
    model, _, rows = learnt(case)
    with torch.no_grad():
        log_p = model.log_prob(rows.x, rows.y)  # type: ignore[attr-defined]
        assert log_p.shape == (len(rows),) and log_p.isfinite().all()
        alone = torch.cat([model.log_prob(rows[i : i + 1].x, None if rows.y is None else rows.y[i : i + 1])  # type: ignore[attr-defined]
                           for i in range(3)])  # fmt: skip
    assert torch.allclose(alone, log_p[:3], rtol=1e-4, atol=1e-4)


# ---- gradients ----


@everywhere
def test_gradients_reach_every_parameter(case: Case):
    model, _, rows = learnt(case)
    model = copy.deepcopy(model).train()
    learner = default_learner(model)
    inside = learner.inner if isinstance(learner, Lifting) else learner
    if not isinstance(inside, Gradient):
        pytest.skip("learns without gradients")
    batch = Batch(rows.x[:64], None if rows.y is None else rows.y[:64], Streams(3, rows.ids[:64]))
    if isinstance(learner, Lifting):
        batch = learner.lift(batch)
    reached: set[int] = set()
    owned = {id(p) for phase in inside.phases for p in phase.params}
    for phase in inside.phases:
        model.zero_grad()
        with auxiliary_losses() as terms:  # as the learner does
            total = phase.loss(batch).total
        sum((mean for _, mean in terms), total).backward()
        reached |= {id(p) for p in phase.params if p.grad is not None and bool((p.grad != 0).any())}
    missed = {name for name, p in model.named_parameters() if p.requires_grad and id(p) not in reached}
    assert missed <= set(case.idle) and all(id(p) in owned for p in model.parameters() if p.requires_grad)


# ---- Bounded ----


@where(Bounded)
def test_the_bound_tightens(case: Case):
    model, _, rows = learnt(case)
    x, y = rows.x[:32], None if rows.y is None else rows.y[:32]
    with torch.no_grad():
        one = torch.stack([model.log_prob_bound(x, y, rng=Streams(s, 32), k=1) for s in range(16)])  # type: ignore[attr-defined]
        many = torch.stack([model.log_prob_bound(x, y, rng=Streams(s, 32), k=16) for s in (100, 101)])  # type: ignore[attr-defined]
    assert one.shape == (16, 32) and one.isfinite().all()
    error = float(one.mean(1).std()) / 4 + float(one.std(0).mean()) * 1e-2
    assert float(many.mean()) >= float(one.mean()) - 3 * error - 1e-6


@where(Bounded, data=SMALL)
def test_the_bound_is_below_a_probability(case: Case):
    """E_r log p <= E_r log r for every density r (Gibbs), so a bound of log p obeys it too. r is Gaussian here, with
    the model's own mean and covariance, so that little room is left."""
    model, _, _ = learnt(case)
    own = model.sample(1024, rng=1)
    cov = torch.cov(own.T) + 1e-6 * torch.eye(2)
    r = torch.distributions.MultivariateNormal(own.mean(0), cov)
    x = own.mean(0) + Streams(2, 1024).normal(2, dtype=torch.float64) @ torch.linalg.cholesky(cov).T
    with torch.no_grad():
        bound = torch.stack([model.log_prob_bound(x, rng=Streams(s, 1024)).double() for s in range(4)]).mean(0)  # type: ignore[attr-defined]
    excess = bound - r.log_prob(x)
    assert float(excess.mean()) <= 4 * float(excess.std()) / math.sqrt(len(x)) + 1e-3


@where(Bounded, Encodes, data=SMALL, unlifted=True)
def test_a_bound_by_codes_sums_to_less_than_one(case: Case):
    """exp E[bound] <= p, which sums to one. (Of bounds with little noise: a mean of 8 draws must stand for E.)"""
    model, _, rows = learnt(case)
    x, cell = plane(rows, 64)
    with torch.no_grad():
        bound = torch.stack([model.log_prob_bound(x, rng=Streams(s, len(x))).double() for s in range(8)]).mean(0)  # type: ignore[attr-defined]
    total = float(bound.exp().sum()) * cell
    assert 0.05 < total < 1.05


# ---- NextToken ----


@where(NextToken)
def test_causal(case: Case):
    model, _, rows = learnt(case)
    x = rows.x[:4].clone()
    with torch.no_grad():
        before = model.logits(x)  # type: ignore[attr-defined]
        x[:, 3] = (x[:, 3] + 1) % 4
        after = model.logits(x)  # type: ignore[attr-defined]
    assert torch.allclose(before[:, :3], after[:, :3], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 3:], after[:, 3:])


@where(NextToken)
def test_cached_equals_uncached(case: Case):
    model, _, rows = learnt(case)
    x = rows.x[:4]
    with torch.no_grad():
        want = model.logits(x)  # type: ignore[attr-defined]
        cache_ = model.new_cache(4, x.shape[1])  # type: ignore[attr-defined]
        parts = [model.logits(part, cache_) for part in (x[:, :2], x[:, 2:3], x[:, 3:])]  # type: ignore[attr-defined]
    assert torch.allclose(torch.cat(parts, 1), want, rtol=0, atol=1e-5)


@where(NextToken, Normalised)
def test_log_prob_is_the_chain_rule(case: Case):
    model, space, rows = learnt(case)
    x = rows.x[:16]
    begin = torch.full((16, 1), space.vocabulary)  # type: ignore[attr-defined]
    with torch.no_grad():
        log_p = model.logits(torch.cat((begin, x[:, :-1]), 1)).double().log_softmax(-1)  # type: ignore[attr-defined]
        want = log_p.gather(-1, x[..., None])[..., 0].sum(1)
        assert torch.allclose(model.log_prob(x).double(), want, rtol=0, atol=1e-4)  # type: ignore[attr-defined]


# ---- Encodes ----


@where(Encodes, unlifted=True)
def test_codes_are_of_their_own_rows(case: Case):
    """A row is more likely under its own code than under another row's, once codes had time to mean something."""
    model, _, rows = learnt(case)
    model = copy.deepcopy(model)
    fit(model, rows, None, budget=Budget(steps=200), judge=None, progress=None, batch_size=64)
    model.eval()
    if isinstance(model, Lifted):
        rows, model = model.raise_rows(rows, 0), model.inner
    x, y = rows.x[:64], None if rows.y is None else rows.y[:64]
    with torch.no_grad():
        z = model.encode(x, y).mean  # type: ignore[attr-defined]
        own = model.decode(z, y)  # type: ignore[attr-defined]
        assert z.shape[0] == 64 and own.mean.shape == x.shape and own.mean.isfinite().all()
        other = model.decode(z.roll(1, 0), y)  # type: ignore[attr-defined]
        gain = (own.log_prob(x) - other.log_prob(x)).mean()
    assert float(gain) > 0


# ---- Countable ----


@where(Countable, unlifted=True)
def test_statistics_add(case: Case):
    model, _, rows = learnt(case)
    if isinstance(model, Lifted):
        rows, model = model.raise_rows(rows, 0), model.inner
    y = rows.y
    whole = model.expect(rows.x, y)  # type: ignore[attr-defined]
    a = model.expect(rows.x[:37], None if y is None else y[:37])  # type: ignore[attr-defined]
    b = model.expect(rows.x[37:], None if y is None else y[37:])  # type: ignore[attr-defined]
    assert {"log_prob", "count"} <= set(whole) and float(whole["count"]) == len(rows)
    for name, total in whole.items():
        both = a[name] + b[name]
        if total.is_sparse:
            both, total = both.to_dense(), total.to_dense()
        assert torch.allclose(both, total, rtol=1e-9, atol=1e-9), name
    if isinstance(model, Normalised):
        assert float(whole["log_prob"]) == pytest.approx(float(model.log_prob(rows.x, y).sum()), rel=1e-9)


@where(Countable, unlifted=True)
def test_likelihood_never_falls(case: Case):
    space, rows = case.data()
    model = runs.build(case.model, space, MODELS[case.model].config(**case.config))
    model.initialise(rows)
    if isinstance(model, Lifted):
        rows, model = model.raise_rows(rows, 0), model.inner
    previous = -math.inf
    for _ in range(8):
        stats = model.expect(rows.x, rows.y)  # type: ignore[attr-defined]
        now = float(stats["log_prob"]) + float(model.log_prior())  # type: ignore[attr-defined]
        assert now >= previous - 1e-9 * abs(previous)
        previous = now
        model.maximise(stats)  # type: ignore[attr-defined]


# ---- Conditionable ----


@where(Conditionable, unlifted=True)
def test_observed_entries_come_back(case: Case):
    model, space, rows = learnt(case)
    if isinstance(model, Lifted):
        rows, model = model.raise_rows(rows, 0), model.inner
    x = rows.x[:6]
    observed = Streams(1, 6).uniform(*x.shape[1:]) < 0.5
    drawn = model.given(x, observed).sample(6)  # type: ignore[attr-defined]
    assert drawn.shape == x.shape
    assert same(drawn[observed], x[observed].to(drawn.dtype))
    hidden = ~observed
    again = model.given(x, observed).sample(6, rng=1)  # type: ignore[attr-defined]
    assert not hidden.any() or not same(drawn[hidden], again[hidden])
    if space.classes:
        assert model.given(x, observed).sample(6, torch.ones(6, dtype=torch.int64)).shape == x.shape  # type: ignore[attr-defined]
