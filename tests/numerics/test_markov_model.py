"""Hidden Markov models over every short sequence, and Baum-Welch on all kinds of bad data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from protea.core import Batch
from protea.distributions.categorical import Categorical
from protea.distributions.family import Family
from protea.distributions.gaussian import Gaussian
from protea.distributions.poisson import Poisson
from protea.errors import ConfigError, DataError
from protea.models.markov.chain import Chain
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.lengths import Lengths
from protea.models.markov.topology import Topology, ergodic, from_masks, left_to_right, profile
from protea.rng import Streams
from protea.space import Rows
from protea.training.em import EM

K, V, T = 3, 2, 4
SOME_END = from_masks(torch.ones(K), torch.ones(K, K), torch.tensor([0, 1, 1]))
TOPOLOGIES = {"fixed": ergodic(K), "histogram": left_to_right(K), "ends": SOME_END, "profile": profile(2)}


def tiny(name: str) -> HiddenMarkov:
    """A random model of sequences of 2 symbols, of at most 4 steps."""
    topology = TOPOLOGIES[name]
    g = torch.Generator().manual_seed(5)
    lengths = Lengths(T) if name == "histogram" else None
    model = HiddenMarkov(Categorical(topology.states, V), Chain(topology), T, lengths)
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=p.dtype, generator=g)
    if lengths is not None:
        lengths.maximise(torch.tensor([1.0, 3, 2, 2, 4], dtype=torch.float64))
    return model


def everything(name: str) -> Tensor:
    """Every sequence, padded by -1 where lengths vary."""
    sizes = [T] if name == "fixed" else range(T + 1)
    return torch.tensor([[*s, *[-1] * (T - n)] for n in sizes for s in itertools.product(range(V), repeat=n)])


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_sums_to_one_and_samples_agree(name: str):
    model, x = tiny(name), everything(name)
    p = model.log_prob(x).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    n = 4096
    want, got = n * p, (model.sample(n, rng=1)[:, None] == x).all(2).double().sum(0)
    often = want > 5
    statistic = float(((got - want) ** 2 / want)[often].sum())
    assert float(got.sum()) == n and statistic < chi2.ppf(0.999, int(often.sum()))


CONDITIONS = [([0, 1, 0, 1], [1, 0, 1, 0]), ([0, 1, 1, 1], [0, 1, 0, 0]), ([0, 0, 0, 0], [0, 0, 0, 0])]
ENDED = [([1, 1, -1, -1], [1, 0, 0, 1]), ([1, 0, -1, -1], [0, 0, 1, 1])]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_given_is_exact(name: str, evidence):
    """log p(x_o), p(x_u | x_o), p(L | x_o) and draws, by enumeration; x says of some that they have ended."""
    model, every = tiny(name), everything(name)
    p, n, error = model.log_prob(every).exp(), 2048, 0.0
    for values, mask in CONDITIONS + (ENDED if name != "fixed" else []):
        x, observed = torch.tensor([values]), torch.tensor([mask]).bool()
        agrees = ((every == x) | ~observed).all(1)
        want, conditional = p[agrees] / p[agrees].sum(), model.given(x, observed)
        lengths = torch.zeros(T + 1).double().index_add_(0, (every[agrees] >= 0).sum(1), want)
        error = max(
            error, abs(float(conditional.evidence[0].exp() - p[agrees].sum())),
            float((conditional.log_prob(every[agrees]).exp() - want).abs().max()),
            float((conditional.length[0] - lengths).abs().max()),
        )  # fmt: skip
        drawn = conditional.sample(n, rng=3)
        assert (drawn[:, observed[0]] == x[:, observed[0]]).all()
        share = (drawn[:, None] == every[agrees]).all(2).double().mean(0)
        assert float(share.sum()) == 1 and float((share - want).abs().max()) < 4.5 * math.sqrt(0.25 / n)
    evidence(
        id="TR-16", system="Hidden Markov model", claim=f"{name} length: evidence, conditional density and length",
        reference="enumeration of every sequence", reached=error, tolerance=1e-12, unit="max abs",
    )  # fmt: skip


def test_smoothing_states_are_the_posterior():
    model, x = tiny("fixed"), torch.tensor([[0, 1, 1, 0]])
    got = model.given(x, torch.ones_like(x).bool())
    assert torch.allclose(got.states, model.posterior(x), atol=1e-12)
    assert (got.mean == x).all() and float(got.log_prob(x)) == pytest.approx(0, abs=1e-12)


def test_prediction_is_by_powers_of_the_transition():
    """A Gaussian chain of one column: E[x_{t+h} | x_1..t] = alpha_t A^h mu."""
    model = HiddenMarkov(Gaussian(2, (1,), "diag"), Chain(ergodic(2)), 6)
    model.transition, model.start = torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0.5, 0.5])
    model.emission.means.copy_(torch.tensor([[0.0], [5.0]]))
    x = torch.tensor([0.1, 4.0, 5.5, math.nan, math.nan, math.nan], dtype=torch.float64)[:, None]
    got = model.given(x, ~x.isnan()).mean[0, :, 0]
    now = model.posterior(x[None, :3])[0, -1]
    for h in (1, 2, 3):
        want = float(now @ torch.linalg.matrix_power(model.transition, h) @ torch.tensor([0.0, 5.0]).double())
        assert float(got[2 + h]) == pytest.approx(want, abs=1e-12)


# ---- Baum-Welch ----


def climb(model: HiddenMarkov, x: Tensor, rounds: int = 6, **extra: Tensor) -> list[float]:
    out = []
    for _ in range(rounds):
        stats = model.expect(x, **extra)
        assert all(bool(v.isfinite().all()) for v in stats.values())
        out.append(float(stats["log_prob"] + model.log_prior()))
        model.maximise(stats)
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from(["codes", "counts", "full", "diag", "tied", "spherical"]),
    st.integers(1, 5), st.integers(0, 6), st.integers(1, 5), st.sampled_from(["any", "constant", "two", "missing"]),
    st.sampled_from(["given", "histogram", "ends"]), st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_the_likelihood_never_falls(seed, kind, k, steps, n, data, length, prior):
    """Random models; lengths 0 and 1, more states than steps, constant data, two repeated values, gaps everywhere."""
    g = torch.Generator().manual_seed(seed)
    topology = left_to_right(k, 1) if seed % 3 == 0 else ergodic(k)
    if length == "ends":
        topology = from_masks(topology.mask[0, :-1], topology.mask[1:, :-1], torch.ones(k))
    size, columns = max(steps, 1), 2
    shape = (n, size, columns)
    if kind in ("codes", "counts"):
        x = torch.randint(0, 3, shape, generator=g).double()
        emission: Family = (
            Categorical(k, 3, (columns,), prior) if kind == "codes" else Poisson(k, (columns,), 1 + prior)
        )
    else:
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        emission = Gaussian(k, (columns,), kind)
    if data == "constant":
        x[:] = 1.0
    elif data == "two":
        x = (x > 0.5).double()
    elif data == "missing":
        x[torch.rand(shape, generator=g) < 0.5] = math.nan
    x[torch.arange(size) >= torch.randint(0, steps + 1, (n, 1), generator=g)] = math.nan
    if length == "ends":  # this chain's sequences have a step
        x[:, 0, 0] = 1.0
    model = HiddenMarkov(emission, Chain(topology, prior), size, Lengths(size) if length == "histogram" else None)
    model.initialise(Rows(x, None, torch.arange(n)), seed)
    values = climb(model, x)
    for before, after in itertools.pairwise(values):
        assert after >= before - 1e-9 * (1 + abs(before))


def test_turns_do_not_change_the_statistics(monkeypatch):
    from protea.models.markov import hmm

    model, x = tiny("ends"), everything("ends")
    whole = model.expect(x, weights=torch.linspace(0, 2, len(x)))
    monkeypatch.setattr(hmm, "MEMORY", 40)
    parts = model.expect(x, weights=torch.linspace(0, 2, len(x)))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-12) for name in whole)
    assert torch.allclose(model.log_prob(x)[7:8], model.log_prob(x[7:8]), atol=1e-12)


def test_counting_where_every_state_is_known():
    """Then Baum-Welch is counting, and one step is exact."""
    model = HiddenMarkov(Categorical(2, 2), Chain(ergodic(2)), 5)
    x, z = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]])
    model.maximise(model.expect(x, states=z))
    assert torch.allclose(model.start, torch.tensor([0.5, 0.5]).double())
    assert torch.allclose(model.transition, torch.tensor([[1 / 3, 2 / 3], [1 / 5, 4 / 5]]).double())
    assert torch.allclose(model.emission.probabilities[:, 0, 1], torch.tensor([1 / 3, 4 / 7]).double())


def test_some_known_states_name_the_states_and_pay():
    """Two states that only order tells apart: with one row in ten labelled, states keep their labels' names."""
    truth = HiddenMarkov(Gaussian(2, (1,), "diag"), Chain(ergodic(2)), 30)
    truth.transition = torch.tensor([[0.95, 0.05], [0.05, 0.95]])
    truth.emission.means.copy_(torch.tensor([[1.2], [-1.2]]))
    z = truth._draw_states(Streams(3, 100))
    x = truth.emission.draw(Streams(4, 3000), z.flatten()).view(100, 30, 1)
    labels = torch.full_like(z, -1)
    labels[:10] = z[:10]
    model = HiddenMarkov(Gaussian(2, (1,), "diag"), Chain(ergodic(2)), 30)
    rows = Rows(x, labels, torch.arange(100))
    model.initialise(rows)
    learner = EM(model)
    while not learner.converged:  # as a learner hands labels on
        learner.step(Batch(rows.x, rows.y, Streams(0, 100)))
        learner.end_epoch()
    path, _ = model.decode(x[10:])
    assert float((path == z[10:]).double().mean()) > 0.93
    first = model.log_prob(x[:10], labels[:10])
    assert (first <= model.log_prob(x[:10]) + 1e-9).all()  # log p(x, z) is below log p(x)


def test_gradients_reach_the_optimum_of_baum_welch(evidence):
    """The same start: LBFGS on the logits and tables, and EM run to the end, meet at one likelihood."""
    x = tiny("fixed").sample(200, rng=8)

    def start() -> HiddenMarkov:
        model = HiddenMarkov(Categorical(2, V, prior=0.0), Chain(ergodic(2)), T)
        g = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p.data = 0.5 * torch.randn(p.shape, dtype=p.dtype, generator=g)
        return model

    em = start()
    rows, counts = x.unique(dim=0, return_counts=True)
    for _ in range(1500):
        em.maximise(em.expect(rows, weights=counts))
    by_gradient = start().requires_grad_()
    optimizer = torch.optim.LBFGS(by_gradient.parameters(), max_iter=400, tolerance_grad=1e-9, tolerance_change=1e-14,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -by_gradient.log_prob(x).mean()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    gap = float((em.log_prob(x).mean() - by_gradient.log_prob(x).mean().detach()).abs())
    evidence(
        id="TR-12", system="Hidden Markov model", claim="gradients and Baum-Welch reach one optimum",
        reference="Baum-Welch, 1,500 steps", reached=gap, tolerance=1e-5, unit="nats a sequence",
    )  # fmt: skip


# ---- bad input ----


def test_unseen_symbols():
    model = HiddenMarkov(Categorical(2, 3), Chain(ergodic(2)), 3)
    seen, new = torch.tensor([[0, 1, 0], [1, 1, 0]]), torch.tensor([[0, 2, 0], [0, 1, 1]])
    model.maximise(model.expect(seen))
    assert model.log_prob(new)[0] == -math.inf and model.log_prob(new)[1].isfinite()
    stats = model.expect(new)
    assert stats["log_prob"] == -math.inf and not any(bool(v.isnan().any()) for v in stats.values())
    with pytest.raises(DataError, match="probability zero"):
        model.given(new, torch.ones_like(new).bool())
    smooth = HiddenMarkov(Categorical(2, 3, prior=0.1), Chain(ergodic(2)), 3)
    smooth.maximise(smooth.expect(seen))
    assert smooth.log_prob(new).isfinite().all()
    with pytest.raises(DataError, match="levels"):
        model.log_prob(torch.tensor([[0, 3, 0]]))


def test_all_missing_and_empty():
    model = HiddenMarkov(Gaussian(2, (2,), "full"), Chain(ergodic(2)), 3)
    x = torch.full((2, 3, 2), math.nan, dtype=torch.float64)
    assert torch.allclose(model.log_prob(x), torch.zeros(2).double(), atol=1e-12)
    assert model.log_prob(x[:0]).shape == (0,) and model.log_prob(x[:, :0]).tolist() == [0.0, 0.0]
    ended = HiddenMarkov(Gaussian(2, (2,), "full"), Chain(ergodic(2)), 3, Lengths(3))
    assert torch.allclose(ended.log_prob(x), torch.full((2,), 0.25).double().log())
    # With lengths given, unknown steps count as steps.
    assert torch.allclose(ended.log_prob(x, lengths=torch.tensor([3, 1])), torch.full((2,), 0.25).double().log())


@pytest.mark.parametrize(
    "start, step, end, message",
    [
        ([0, 0], [[1, 1], [1, 1]], None, "no path"),
        ([1, 0], [[0, 1], [0, 0]], None, "nothing may follow"),
        ([1, 1], [[1, 0], [0, 1]], [1, 0], "no path leads from it to the end"),
    ],
)
def test_masks_that_leave_no_path(start, step, end, message):
    with pytest.raises(ConfigError, match=message):
        from_masks(torch.tensor(start), torch.tensor(step), None if end is None else torch.tensor(end))


def test_other_mistakes():
    loop = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(ConfigError, match="cycle"):
        Topology(loop, silent=2)
    with pytest.raises(ConfigError, match="share"):
        HiddenMarkov(Categorical(2, 3), Chain(ergodic(3)), 4)
    with pytest.raises(ConfigError, match="two parts"):
        HiddenMarkov(Categorical(K, V), Chain(SOME_END), T, Lengths(T))
    model = tiny("fixed")
    with pytest.raises(DataError, match="were given to a model"):
        model.log_prob(torch.zeros(2, 5).long())
    with pytest.raises(DataError, match="Known states"):
        model.log_prob(torch.zeros(2, 4).long(), states=torch.full((2, 4), 3))
    with pytest.raises(ConfigError, match="sums to"):
        model.transition = torch.ones(3, 3)
