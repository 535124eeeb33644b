"""Constraints hold in every row: by construction where possible, otherwise by rejection with the rate shown."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from protea.core import Model
from protea.errors import ConstraintError
from protea.rng import Streams
from protea.spaces import (
    FixedCombinations,
    Inequality,
    NotNull,
    Range,
    Sum,
    Table,
    constrained_sample,
    space_from_json,
)

N = 60
I = np.arange(N)
FRAME = pd.DataFrame(
    {
        "start": pd.date_range("2020-01-01", periods=N),
        "end": pd.date_range("2020-01-03", periods=N),
        "net": I % 7,
        "tax": I % 3,
        "gross": I % 7 + I % 3,
        "city": np.array(["Bonn", "Ulm", "Lyon"])[I % 3],
        "country": np.array(["DE", "DE", "FR"])[I % 3],
        "score": np.sin(I) / 2 + 0.5,
    }
)
ALL = [
    Inequality("start", "end"),
    Sum("gross", ("net", "tax")),
    FixedCombinations(("city", "country")),
    Range("score", 0, 1),
    NotNull(("net", "city")),
]


class Noise(Model):
    """Independent normals; every category at random."""

    def __init__(self, space: Table, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.space, self.scale, self.shift = space, scale, shift

    def draw(self, rng: Streams, cond: torch.Tensor | None = None) -> torch.Tensor:
        x = self.shift + self.scale * rng.normal(*self.space.event, dtype=torch.float64)
        for i, field in enumerate(self.space.fields):
            if field.kind == "category":
                x[:, i] = rng.child(i).categorical(torch.zeros(len(x), field.levels)).double()
        return x


def test_rows_come_back_and_json_round_trips():
    space = Table.infer(FRAME, constraints=ALL)
    again = space_from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    x = space.encode(FRAME)
    assert x.shape == (N, 6)  # 8 columns, less the total and one of the combined
    assert [f.name for f in space.fields] == ["start", "end", "net", "tax", "city+country", "score"]
    assert (space.fields[5].low, space.fields[5].high) == (0, 1)
    pd.testing.assert_frame_equal(again.decode(x), FRAME)
    assert bool(space.satisfied(x).all())
    assert space.features(x).shape[1] == len(space.feature_names) == 5 + 3


def test_every_generated_row_satisfies_everything():
    space = Table.infer(FRAME, constraints=ALL)
    x, rate = constrained_sample(Noise(space, scale=5.0), 500, rng=3)
    frame = space.decode(x)
    assert len(frame) == 500
    assert 0 < rate < 1
    assert (frame["start"] <= frame["end"]).all()
    assert (frame["gross"] == frame["net"] + frame["tax"]).all()
    assert set(zip(frame["city"], frame["country"])) == {("Bonn", "DE"), ("Ulm", "DE"), ("Lyon", "FR")}
    assert frame["score"].between(0, 1).all()
    assert not frame.isna().any().any()


def test_rejection_draws_from_the_conditional_distribution():
    """a | a <= b for independent normals is the minimum of two: its CDF is 1 - (1 - Phi)^2; half the draws pass."""
    frame = pd.DataFrame({"a": np.sin(I), "b": np.sin(I) + 1})
    space = Table.infer(frame, constraints=[Inequality("a", "b")])
    x, rate = constrained_sample(Noise(space), 4000, rng=0)
    a = x[:, 0].numpy()
    assert stats.kstest(a, lambda v: 1 - (1 - stats.norm.cdf(v)) ** 2).pvalue > 1e-3
    assert abs(rate - 0.5) < 0.03


def test_sample_i_depends_on_the_seed_and_on_i_alone():
    frame = pd.DataFrame({"a": np.sin(I), "b": np.sin(I) + 1})
    model = Noise(Table.infer(frame, constraints=[Inequality("a", "b")]))
    whole = constrained_sample(model, 9, rng=5).x
    assert torch.equal(constrained_sample(model, 4, rng=Streams(5, [7, 1, 8, 3])).x, whole[[7, 1, 8, 3]])


def test_a_hopeless_model_is_refused_with_its_rate():
    frame = pd.DataFrame({"a": np.sin(I), "b": np.cos(I)})
    space = Table.infer(frame, constraints=[Range("a", -1, 1)])
    with pytest.raises(ConstraintError, match=r"Only 0 of \d+ draws \(0 %\) satisfy"):
        constrained_sample(Noise(space, shift=40.0), 10)


def test_no_constraints_one_pass():
    space = Table.infer(FRAME)
    x, rate = constrained_sample(Noise(space), 7)
    assert (len(x), rate) == (7, 1.0)
    assert len(constrained_sample(Noise(space), 0).x) == 0


def test_missing_parts_make_missing_totals():
    frame = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": [1.0, 2.0, 5.0], "c": [2.0, np.nan, 8.0]})
    space = Table.infer(frame, constraints=[Sum("c", ("a", "b"))])
    pd.testing.assert_frame_equal(space.decode(space.encode(frame)), frame)
    with pytest.raises(ConstraintError, match=r"1 rows of the data.*rows 1"):
        Table.infer(frame.assign(c=[2.0, 2.0, 8.0]), constraints=[Sum("c", ("a", "b"))])


def test_combinations_hold_missing_values():
    frame = pd.DataFrame({"a": ["x", None, "y", "x"], "b": [True, False, True, True]})
    space = Table.infer(frame, constraints=[{"kind": "fixed_combinations", "columns": ["a", "b"]}])
    assert space.event == (1,)
    pd.testing.assert_frame_equal(space.decode(space.encode(frame)), frame)
    with pytest.raises(ConstraintError, match="rows 1"):
        space.encode(frame.assign(b=[True, True, True, True]))


def test_sums_of_sums():
    frame = pd.DataFrame({"d": I % 5 * 3, "a": I % 5, "b": I % 5, "c": I % 5 * 2})
    space = Table.infer(frame, constraints=[Sum("d", ("c", "b")), Sum("c", ("a", "b"))])
    assert [f.name for f in space.fields] == ["a", "b"]
    pd.testing.assert_frame_equal(space.decode(space.encode(frame)), frame)


@pytest.mark.parametrize(
    ("constraint", "match"),
    [
        (Inequality("end", "start"), "60 rows of the data break.*rows 0, 1, 2"),
        (Range("net", 0, 5), "8 rows.*rows 6, 13"),
        (Sum("gross", ("net", "net")), "rows of the data break"),
        (Range("start", "2020-01-05"), "4 rows"),
        (Range("nte", 0), "Did you mean net"),
        (Range("city", 0), "'city' is category"),
        (FixedCombinations(("net", "city")), r"categories=\['net'\]"),
        ({"kind": "rnge", "column": "net"}, "Did you mean range"),
        ({"kind": "range", "colum": "net"}, "Its arguments are: column, high, low"),
        (FixedCombinations(("city", "country"), (("Bonn", "UK"),)), "'UK'"),
    ],
    ids=str,
)
def test_what_the_data_break_is_refused(constraint, match):
    with pytest.raises(ConstraintError, match=match):
        Table.infer(FRAME, constraints=[constraint])


def test_not_null_names_the_rows():
    frame = FRAME.assign(city=FRAME["city"].where(I != 4))
    with pytest.raises(ConstraintError, match="rows 4"):
        Table.infer(frame, constraints=[NotNull(("city",))])
    assert Table.infer(FRAME, constraints=[NotNull("city")]).fields[5].missing is False


@pytest.mark.parametrize(
    ("constraints", "match"),
    [
        ([Range("net", 5, 3)], "no value for column 'net'"),
        ([Range("net", 10), Range("tax", None, 5), Inequality("net", "tax")], "no value"),
        ([Range("net", 9), Range("gross", None, 5), Range("tax", 0), Sum("gross", ("net", "tax"))], "'gross'"),
        ([Inequality("net", "tax", strict=True), Inequality("tax", "net")], "contradicts"),
        ([Inequality("net", "net", strict=True)], "contradicts"),
        ([Sum("gross", ("net", "tax")), Sum("net", ("gross", "tax"))], "itself"),
        ([Sum("gross", ("net", "tax")), Sum("gross", ("net", "net"))], "two constraints"),
        ([Range("start", "2021-01-01"), Range("end", None, "2020-06-01"), Inequality("start", "end")], "no value"),
    ],
    ids=str,
)
def test_contradictions_are_found_before_the_data_are_asked(constraints, match):
    with pytest.raises(ConstraintError, match=match):
        Table.infer(FRAME, constraints=constraints)
