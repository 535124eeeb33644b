"""The compiled products, coins and steps of Boltzmann machines against PyTorch's, and learning with either."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from protea.core import Batch
from protea.models.boltzmann import products
from protea.models.boltzmann.boltzmann import Boltzmann
from protea.models.boltzmann.dbm import DBM
from protea.models.boltzmann.full import BoltzmannMachine
from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial, Gaussian, Levels
from protea.objectives.contrastive_divergence import DataChains, Negative, PersistentChains
from protea.rng import Streams, fold
from protea.space import Rows
from protea.training.contrast import Contrast

SHAPES = [(1, 1, 1), (3, 5, 7), (30, 16, 16), (25, 131, 65), (40, 37, 300), (24, 64, 129)]

needs_kernels = pytest.mark.skipif(products.library() is None, reason="there are no compiled kernels here")


def bits(rows: int, n: int, share: float, seed: int) -> Tensor:
    return (Streams(seed, rows).uniform(n) < share).float()


@needs_kernels
@pytest.mark.parametrize("share", [0.0, 0.2, 0.45, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_float64(shape: tuple[int, int, int], share: float) -> None:
    batch, n, m = shape
    u, h, w = bits(batch, n, share, 0), bits(batch, m, share, 1), Streams(2, n).normal(m)
    some, weight = u * Streams(3, batch).normal(n), Streams(4, batch).normal(1)[:, 0]
    mean = Streams(5, batch).uniform(m)
    pairs = [
        (products.rows(u, w), u.double() @ w.double()),
        (products.rows(some, w), some.double() @ w.double()),
        (products.columns(h, w), h.double() @ w.double().T),
        (products.columns(mean, w), mean.double() @ w.double().T),
    ]
    one, other = (u, mean, weight), (some[: batch // 2], mean[: batch // 2] + 1, weight[: batch // 2])
    terms = [a.double().T @ (c[:, None] * b).double() for a, b, c in (one, other)]
    pairs += [(products.outer(one), terms[0]), (products.outer(one, other), terms[0] + terms[1])]
    for found, want in pairs:
        assert found.shape == want.shape and found.dtype == torch.float32
        assert torch.allclose(found.double(), want, rtol=0, atol=2e-5)


@needs_kernels
def test_no_rows_and_not_a_number() -> None:
    assert products.rows(torch.zeros(0, 3), torch.ones(3, 2)).shape == (0, 2)
    assert products.columns(torch.zeros(0, 2), torch.ones(3, 2)).shape == (0, 3)
    assert products.outer((torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(0))).tolist() == torch.zeros(3, 2).tolist()
    u, w = torch.zeros(30, 40), torch.ones(40, 5)
    u[3, 7] = math.nan
    assert products.rows(u, w).isnan().any(1).nonzero().tolist() == [[3]]
    assert products.columns(u, torch.ones(5, 40)).isnan().any(1).nonzero().tolist() == [[3]]
    p, x = products.flip(torch.tensor([[math.nan, math.inf, -math.inf, 200.0, -200.0]]), Streams(0, 1))
    assert p.isnan().tolist() == [[True, False, False, False, False]]
    assert x[0, 0] == 0 and x[0, 1] == x[0, 3] == 1 and x[0, 2] == x[0, 4] == 0


@needs_kernels
@pytest.mark.parametrize("width", [1, 7, 8, 50, 129])
def test_coins_are_those_of_the_streams(width: int) -> None:
    """The same Philox words as numpy's: every coin that lies clear of its chance falls the same way."""
    ids = torch.tensor([0, 1, 2, 9, 4, 2**40, 2**62])
    logits = 2 * Streams(7, len(ids)).normal(width)
    ours, theirs = Streams(-5, ids), Streams(-5, ids)
    for _ in range(3):
        p, x = products.flip(logits, ours)
        coins = theirs.coins(width)
        assert torch.allclose(p, torch.sigmoid(logits), rtol=0, atol=3e-7)
        clear = (coins - p).abs() > 1e-6
        assert torch.equal(x, (coins < p).float()) and clear.float().mean() > 0.99


def learnt(model: Boltzmann, negative: Negative, x: Tensor, steps: int = 6, **options: float) -> dict[str, Tensor]:
    model.initialise(Rows(x, None, torch.arange(len(x))), seed=1)
    learner = Contrast(model, negative, rate=0.1, **options)  # type: ignore[arg-type]
    learner.horizon = 10
    for step in range(steps):
        learner.step(Batch(x, None, Streams(fold(0, step), len(x))))
    tensors, _ = learner.state()
    return tensors | {name: p.detach().clone() for name, p in model.named_parameters()}


MACHINES = {
    "rbm": lambda: (RBM((50,), Binomial(50, 37)), PersistentChains(30)),
    "rbm, cd": lambda: (RBM((50,), Binomial(50, 37)), DataChains(2)),
    "levels": lambda: (RBM((50,), Levels(50, 20, 2)), PersistentChains(25)),
    "gaussian": lambda: (RBM((50,), Gaussian(50, 20)), PersistentChains(25)),
    "dbm": lambda: (DBM((50,), Binomial(50, 20), 9), PersistentChains(25)),
}


@needs_kernels
@pytest.mark.parametrize("name", MACHINES)
def test_both_forms_learn_the_same_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps with the same coins; and the same bits on one thread and two."""
    x = bits(40, 50, 0.15, 8)
    runs, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            runs.append(learnt(*MACHINES[name](), x, clip=0.5))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(products, "library", lambda: None)
    plain = learnt(*MACHINES[name](), x, clip=0.5)
    for key, want in plain.items():
        if name in ("rbm", "rbm, cd"):  # nothing there is PyTorch's own product
            assert torch.equal(runs[0][key], runs[1][key]), key
        assert torch.allclose(runs[0][key], want, rtol=0, atol=3e-5), key
    changed = [key for key in plain if key.endswith("weight") and float(plain[key].norm()) > 0]
    assert changed


def flat(named: dict[str, Tensor], like: dict[str, Tensor]) -> Tensor:
    return torch.cat([named[name].flatten() for name in like])


@pytest.mark.parametrize("kind", ["rbm", "dbm", "general"])
def test_the_centred_step(kind: str) -> None:
    """A gradient in parameters of units counted from their centres, as a step of the machine's own: J J^T gradient with
    J the derivative of the second by the first, taken by automatic differentiation of the definition."""
    made: dict[str, Boltzmann] = {
        "rbm": RBM((4,), Binomial(4, 3), classes=2),
        "dbm": DBM((4,), Binomial(4, 3), 2),
        "general": BoltzmannMachine((4,), Binomial(4, 3)),
    }
    model = made[kind].double()
    own = {name: p.detach() for name, p in model.named_parameters()}
    biases = [name for name in own if name.endswith("bias")]
    mu = {name: Streams(fold(1, name), len(own[name])).uniform(1, dtype=torch.float64)[:, 0] for name in biases}
    sizes = [p.numel() for p in own.values()]

    def natural(theta: Tensor) -> Tensor:
        """-E' = sum over pairs of W'_ij (s_i - mu_i)(s_j - mu_j) + sum of b'_i (s_i - mu_i), multiplied out."""
        q = {name: part.reshape(p.shape) for (name, p), part in zip(own.items(), theta.split(sizes))}
        out = dict(q)
        for name, w in q.items():
            if name.endswith("weight"):
                bias = name.replace("weight", "bias")
                out[bias] = out[bias] - w @ mu["bias"]
                out["bias"] = out["bias"] - w.T @ mu[bias]
            elif name in ("inner", "lateral"):
                bias = "bias" if name == "inner" else "outer.visible.bias"
                out[name] = w.triu(1)
                out[bias] = out[bias] - (w.triu(1) + w.triu(1).T) @ mu[bias]
        return flat(out, own)

    gradient = {name: Streams(fold(2, name), p.numel()).normal(1, dtype=torch.float64).reshape(p.shape)
                for name, p in own.items()}  # fmt: skip
    gradient |= {name: g.triu(1) for name, g in gradient.items() if name in ("inner", "lateral")}
    jacobian = torch.autograd.functional.jacobian(natural, torch.zeros(sum(sizes), dtype=torch.float64))
    assert isinstance(jacobian, Tensor)
    want = jacobian @ (jacobian.T @ flat(gradient, own))
    with torch.no_grad():
        found = model.machine.centred({name: g.clone() for name, g in gradient.items()}, mu)
    assert torch.allclose(flat(found, own), want, rtol=0, atol=1e-12)
