"""Generated rows for a classifier: drawn of the class asked for, and of use only where they say something new."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor

from protea.core import Model
from protea.errors import ConfigError, DataError, NotSupported
from protea.inference.augment import augment, generate, macro_f1, verdict
from protea.inference.contenders import Discriminative, Generative
from protea.models.classical.gmm import GaussianMixture
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Table, Vector
from protea.spaces.columns import Column
from protea.training import Budget

D = 20
SPACE = Vector(tuple(f"x{i}" for i in range(D)), ("no", "yes"))


def gaussian_classes(n: int, seed: int) -> Rows:
    """Two Gaussian classes of unit variance; the Bayes rule is right in 0.87 of the rows."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, D, generator=g, dtype=torch.float64) + torch.where(y == 1, 0.25, -0.25)[:, None]
    return Rows(x, y, torch.arange(n))


class Copier(Model):
    """Draws of p(x | y) that are rows it has seen."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        assert rows.y is not None
        self.space, self.rows = SPACE, rows
        self.register_buffer("class_prior", torch.bincount(rows.y).double() / len(rows))

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        assert cond is not None and self.rows.y is not None
        u, out = rng.uniform(1, dtype=torch.float64)[:, 0], torch.empty(len(rng), D, dtype=torch.float64)
        for c in (0, 1):
            mine = self.rows.x[self.rows.y == c]
            out[cond == c] = mine[(u[cond == c] * len(mine)).long()]
        return out


def test_copies_of_the_rows_neither_help_nor_harm_much():
    labelled, test = gaussian_classes(200, 0), gaussian_classes(2000, 1)
    found = augment(Copier(labelled), SPACE, labelled, test, n=400)
    assert abs(found.gain["both"].value) < 0.02 and abs(found.gain["synthetic"].value) < 0.04
    assert abs(found.gain_f1["both"].value) < 0.02 and not found.words.startswith("synthetic rows help")


def test_the_right_model_helps_at_few_labels(evidence):
    """Ten labels a class in 20 dimensions: spherical Gaussians are what the classes are, and regression cannot know."""
    gains = []
    test = gaussian_classes(2000, 1)
    for seed in (2, 3, 4):
        labelled = gaussian_classes(20, seed)
        model = Generative("gmm", {"k": 1, "covariance": "spherical"}, Budget(seconds=5.0))
        found = augment(model, SPACE, labelled, test, n=1000, classifier=Discriminative(1e-6), seeds=3)
        gains.append(found.gain["both"])
        assert found.words.startswith("synthetic rows help") == (found.gain["both"].low > 0)
    claim = "Gaussian classes, 10 labels a class: accuracy of real + synthetic minus real only, lower end, 3 draws"
    evidence(id="TR-21", system="Generated rows for a classifier", claim=claim, reference="well-specified model",
             reached=sum(g.low for g in gains) / 3, tolerance=0.0, at_least=True)  # fmt: skip


def test_one_model_a_class_is_as_good_as_one_of_both():
    labelled, test = gaussian_classes(400, 0), gaussian_classes(1000, 1)
    models = []
    for c in (0, 1):
        model = GaussianMixture((D,), 1)
        model.space, mine = SPACE, labelled.x[labelled.y == c]
        model.initialise(Rows(mine, None, torch.arange(len(mine))))
        models.append(model)
    found = augment(models, SPACE, labelled, test, n=[300, 300], seeds=2)
    assert found.accuracy["synthetic"].value > 0.8
    with pytest.raises(ConfigError, match="1 models for 2 classes"):
        generate(models[:1], [5, 5])


def test_a_row_depends_on_its_seed_class_and_number_alone():
    model = Copier(gaussian_classes(50, 0))
    few, many = generate(model, [3, 2], seed=7), generate(model, [9, 4], seed=7)
    assert torch.equal(few.x, torch.cat((many.x[:3], many.x[9:11]))) and few.y.tolist() == [0, 0, 0, 1, 1]
    assert not torch.equal(few.x, generate(model, [3, 2], seed=8).x)
    assert generate(model, [0, 2], seed=7).y.tolist() == [1, 1]


def table() -> tuple[Table, Rows]:
    """A rare class (1 in 8), with larger numbers."""
    space = Table((Column("kind", "category", "str", ("a", "b")), Column("size", "real", "float64")), target="kind")
    y = (torch.arange(400) % 8 == 0).double()
    size = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 4 * y
    return space, Rows(torch.stack((y, size), 1), None, torch.arange(400))


def test_a_table_is_balanced_by_its_target():
    space, rows = table()
    trained = Generative("mixture", None, Budget(seconds=2.0)).learn(space, rows).density()
    made = generate(trained, [40, 60])
    assert made.y is None and made.x[:, 0].tolist() == [0.0] * 40 + [1.0] * 60
    assert float(made.x[40:, 1].mean() - made.x[:40, 1].mean()) > 3
    again = generate(trained, [10, 15])
    assert bool((space.satisfied(again.x)).all())
    found = augment(trained, space, rows, rows, n=50, seeds=2)
    assert found.accuracy["synthetic"].value > 0.9 and set(found.to_json()["f1"]) == {"real", "synthetic", "both"}


def test_macro_f1_is_scikit_learns():
    g = torch.Generator().manual_seed(0)
    said, truth = torch.randint(0, 4, (2, 300), generator=g)
    weights = torch.randint(0, 3, (2, 300), generator=g).double()
    for w, found in zip(weights, macro_f1(said, truth, 4, weights)):
        want = f1_score(truth.numpy(), said.numpy(), average="macro", sample_weight=w.numpy())
        assert abs(float(found) - want) < 1e-12


def test_what_makes_no_sense_is_refused():
    rows = gaussian_classes(20, 0)
    blind = GaussianMixture((D,), 1)
    blind.space = SPACE
    with pytest.raises(NotSupported, match="without labels"):
        generate(blind, [1, 1])
    with pytest.raises(ConfigError, match="no interval"):
        augment(Copier(rows), SPACE, rows, rows, seeds=1)
    with pytest.raises(ConfigError, match="for 2 classes"):
        generate(Copier(rows), [1, 2, 3])
    with pytest.raises(DataError, match="only the class"):
        augment(Copier(rows), SPACE, rows[rows.y == 1], rows)
    unknown = Rows(rows.x, torch.full((20,), -1), rows.ids)
    with pytest.raises(DataError, match="no label"):
        augment(Copier(rows), SPACE, rows, unknown)


def test_the_verdict_has_three_answers():
    from protea.inference.learning_curve import Estimate

    assert verdict(Estimate(0.005, 0.001, 0.009)) == "synthetic rows help"
    assert verdict(Estimate(0.0, -0.009, 0.009)) == "synthetic rows do not help"
    assert verdict(Estimate(0.0, -0.02, 0.02)) == "undecided"
