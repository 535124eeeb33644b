"""Bayes' rule: posteriors equal enumeration of the joint, sum to 1, and classify real data as well as they should."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from protea.core import Bounded, Model, Normalised
from protea.data import open_data
from protea.errors import DataError, NotSupported
from protea.inference.labelling import encode_unlabelled, labelling
from protea.inference.posterior import normalise, posterior
from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial
from protea.rng import Streams
from protea.space import Rows, Space
from protea.spaces import Table, Vector
from protea.training import Budget, fit
from protea.training.run import build


class Toy(Normalised):
    """A joint table of probabilities over the rows of a table of categories."""

    def __init__(self, space: Space, joint: np.ndarray) -> None:
        super().__init__()
        self.space = space
        self.register_buffer("joint", torch.from_numpy(joint))

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        flat = rng.categorical(self.joint.log().reshape(1, -1).expand(len(rng), -1))
        return torch.from_numpy(np.stack(np.unravel_index(flat.numpy(), self.joint.shape), 1)).double()

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.joint[tuple(x.long().T)].log()


def discrete_table(target: str) -> Table:
    rows = itertools.product("abc", "xy", "pqrs")
    return Table.infer(pd.DataFrame(list(rows), columns=["one", "two", "three"]), target=target)


@pytest.mark.parametrize("target", ["one", "two", "three"])
def test_posterior_is_the_enumerated_joint(target: str, evidence):
    space = discrete_table(target)
    joint = np.random.default_rng(0).dirichlet(np.full(24, 0.3)).reshape(3, 2, 4)
    x = torch.tensor(list(itertools.product(range(3), range(2), range(4))), dtype=torch.float64)
    hidden = labelling(space).put(x, None)  # the target itself must not be read
    got = posterior(Toy(space, joint), hidden).log_prob.exp().numpy()
    axis = space.target_index
    want = joint / joint.sum(axis, keepdims=True)
    want = np.stack([np.moveaxis(want, axis, -1)[tuple(np.delete(row, axis))] for row in x.numpy().astype(int)])
    error = max(np.abs(got - want).max(), np.abs(got.sum(1) - 1).max())
    evidence(id="TR-04", system="Bayes classifier", claim=f"p({target} | the others) of 24 cells, and its sum",
             reference="brute-force enumeration", reached=error, tolerance=1e-12, unit="max abs")  # fmt: skip


def test_posterior_of_a_space_with_classes_weighs_the_prior(evidence):
    """p(y | x) of two classes of discrete vectors, with unequal frequencies."""
    rng = np.random.default_rng(1)
    conditional, prior = rng.dirichlet(np.full(6, 0.5), size=3), np.array([0.7, 0.1, 0.2])

    class Classes(Normalised):
        def __init__(self) -> None:
            super().__init__()
            self.space = Vector(("x",), ("a", "b", "c"))
            self.register_buffer("class_prior", torch.from_numpy(prior))

        def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
            raise NotImplementedError

        def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
            assert cond is not None
            return torch.from_numpy(conditional)[cond, x[:, 0].long()].log()

    x = torch.arange(6, dtype=torch.float64)[:, None]
    found = posterior(Classes(), x)
    want = conditional.T * prior / (conditional.T @ prior)[:, None]
    evidence(id="TR-04", system="Bayes classifier", claim="p(y | x) from p(x | y) with unequal class frequencies",
             reference="brute-force enumeration", reached=np.abs(found.log_prob.exp().numpy() - want).max(),
             tolerance=1e-12, unit="max abs")  # fmt: skip
    assert (found.label.numpy() == want.argmax(1)).all() and found.exactness == "exact"


def test_thousands_of_nats_neither_overflow_nor_vanish():
    log_joint = torch.tensor(
        [[-5000.0, -5001.0], [4000.0, 3990.0], [-torch.inf, -3.0], [-torch.inf, -torch.inf]]
    ).double()
    p = normalise(log_joint).exp()
    want = [[1 / (1 + np.exp(-1)), 1 / (1 + np.e)], [1 / (1 + np.exp(-10)), 1 / (1 + np.exp(10))], [0, 1], [0.5, 0.5]]
    np.testing.assert_allclose(p.numpy(), want, atol=1e-12)


def test_a_bound_says_so_and_uses_the_same_noise_for_every_class():
    class Noisy(Bounded):
        """Exact up to noise that does not depend on the label: which must cancel."""

        def __init__(self) -> None:
            super().__init__()
            self.space = Vector(("x",), ("a", "b"))
            self.register_buffer("class_prior", torch.tensor([0.5, 0.5]).double())

        def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
            raise NotImplementedError

        def log_prob_bound(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams, k: int = 1) -> Tensor:
            assert cond is not None
            return -0.5 * (x[:, 0] - cond).square() - 10 * rng.uniform(1, dtype=torch.float64)[:, 0]

    found = posterior(Noisy(), torch.tensor([[0.5], [3.0]]).double())
    assert found.exactness == "bound"
    np.testing.assert_allclose(found.log_prob.exp()[:, 1].numpy(), [0.5, 1 / (1 + np.exp(-2.5))], atol=1e-12)


def test_rows_without_the_target_column_are_encoded():
    frame = pd.DataFrame({"size": [1.5, 2.25, 3.1], "kind": ["a", "b", "a"]})
    space = Table.infer(frame, target="kind")
    x = encode_unlabelled(space, frame[["size"]])
    assert x[:, 0].tolist() == [1.5, 2.25, 3.1] and bool(x[:, 1].isnan().all())
    frame.loc[1, "kind"] = None
    assert encode_unlabelled(space, frame)[:, 1].isnan().tolist() == [False, True, False]


class Silent(Model):
    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        return torch.zeros(len(rng), 1)


def test_bad_input_is_refused_by_name():
    silent = Silent()
    silent.space = Vector(("x",), ("a", "b"))
    with pytest.raises(NotSupported, match="Silent has no likelihood"):
        posterior(silent, torch.zeros(2, 1))
    with pytest.raises(NotSupported, match="no labels to predict"):
        labelling(Vector(("x",)))
    frame = pd.DataFrame({"a": [0.5, 1.0, 2.0], "y": [0.0, 1.0, 0.0], "one": ["k"] * 3})
    with pytest.raises(NotSupported, match="names no column"):
        labelling(Table.infer(frame))
    with pytest.raises(DataError, match=r"'y' holds decimal numbers, not classes.*categories=\[\"y\"\]"):
        labelling(Table.infer(frame, target="y"))
    assert labelling(Table.infer(frame, target="y", categories=["y"])).names == ("0.0", "1.0")
    with pytest.raises(DataError, match="one class only"):
        labelling(Table.infer(frame, target="one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "data", "least"),
    [("marginals", "digits", 0.85), ("gmm", "digits", 0.93), ("flow", "digits", 0.9), ("marginals", "iris", 0.6),
     ("gmm", "iris", 0.86)],
)  # fmt: skip
def test_accuracy_on_real_data(model: str, data: str, least: float, evidence):
    """Held-out accuracy; `marginals` without a class per row is naive Bayes only where the space has classes."""
    from protea.inference.classify import judge_probabilities
    from protea.models import MODELS

    dataset = open_data(data)
    built = build(model, dataset.space, MODELS[model].suggest(dataset.space, dataset.train, 10.0))
    built.initialise(dataset.train)
    fit(built, dataset.train, dataset.validation, budget=Budget(seconds=12.0), progress=None)
    where = labelling(dataset.space)
    holdout: Rows = dataset.holdout
    found = posterior(built, where.hide(holdout).x if where.column is not None else holdout.x)
    figures = judge_probabilities(found.log_prob, where.of(holdout))
    if model == "marginals" and data == "iris":  # columns are independent of the label: the prior is all it knows
        assert figures["accuracy"].value < 0.7
        return
    evidence(id="TR-04", system="Bayes classifier", claim=f"accuracy of {model}, held-out {data} ({found.exactness}), "
             f"AUC {figures['auc'].value:.3f}", reference="labels", reached=figures["accuracy"].value, tolerance=least,
             at_least=True)  # fmt: skip


def test_the_constant_of_a_boltzmann_machine_cancels(evidence):
    """p(y | v) of a machine with a label layer, against p(v, y) summed over the hidden states, label by label."""
    torch.manual_seed(1)
    units = Binomial(4, 3)
    model = RBM((4,), units, 3, dtype=torch.float64).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.8)
    model.space = Vector(tuple("abcd"), ("x", "y", "z"))
    v = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    h = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    b, w, c = (p.detach() for p in (units.bias, units.weight, model.bias))
    label = {name: p.detach() for name, p in model.label.named_parameters()}  # type: ignore[union-attr]
    joint = torch.stack([
        torch.logsumexp((v @ b)[:, None] + label["bias"][y] + (v @ w + c + label["weight"][y]) @ h.T, 1)
        for y in range(3)
    ], 1)  # fmt: skip
    got = posterior(model, v)
    assert got.exactness == "exact"
    evidence(
        id="TR-04", system="Bayes classifier", claim="p(y | v) of a restricted Boltzmann machine with labels",
        reference="sum over the hidden states of every label",
        reached=float((got.log_prob.exp() - joint.softmax(1)).abs().max()), tolerance=1e-12, unit="max abs",
    )  # fmt: skip
