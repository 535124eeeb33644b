"""Tables come back as they were: values, dtypes, categories, order, missing values."""

from __future__ import annotations

import datetime
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protea.data import open_data
from protea.errors import DataError
from protea.spaces import Table, space_from_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
DAYS = st.dates(datetime.date(1700, 1, 1), datetime.date(2200, 1, 1))
TIMES = st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
KINDS = {  # values, dtype, whether missing values have a place in it
    "float64": (FLOATS, "float64", True),
    "float32": (st.floats(allow_nan=False, allow_infinity=False, width=32), "float32", True),
    "Float64": (FLOATS, "Float64", True),
    "money": (st.integers(-(10**9), 10**9).map(lambda k: k / 100), "float64", True),
    "int64": (st.integers(-(2**53), 2**53), "int64", False),
    "big": (st.integers(-(2**63), 2**63 - 1), "int64", False),
    "uint8": (st.integers(0, 255), "uint8", False),
    "Int32": (st.integers(-(2**31), 2**31 - 1), "Int32", True),
    "arrow": (st.integers(-(2**40), 2**40), "int64[pyarrow]", True),
    "bool": (st.booleans(), "bool", False),
    "boolean": (st.booleans(), "boolean", True),
    "str": (TEXT, "str", True),
    "string": (TEXT, "string", True),
    "object": (st.one_of(TEXT, st.integers(2, 9)), "object", True),
    "category": (st.sampled_from(["x", "y", "z"]), pd.CategoricalDtype(["z", "y", "x", "unused"]), True),
    "ordered": (st.sampled_from([1, 2, 3]), pd.CategoricalDtype([3, 1, 2], ordered=True), True),
    "ns": (TIMES, "datetime64[ns]", True),
    "day": (DAYS.map(pd.Timestamp), "datetime64[s]", True),
    "zone": (TIMES.map(lambda t: pd.Timestamp(t, tz="UTC")), "datetime64[us, America/New_York]", True),
    "date": (DAYS, "object", True),
    "iso": (DAYS.map(str), "str", True),
}


@st.composite
def frames(draw):
    n = draw(st.integers(1, 12))
    columns = {}
    for name in draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6, unique=True)):
        values, dtype, nullable = KINDS[name]
        items = draw(st.lists(values, min_size=n, max_size=n))
        series = pd.Series(pd.Series(items, dtype=object).to_list(), dtype=dtype)
        if nullable and n > 1:
            gone = draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1))
            series = series.mask(pd.Series([False, *gone]), np.nan if dtype == "object" else None)
        columns[name] = series
    return pd.DataFrame(columns)


@given(frames())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_a_frame_comes_back_exactly(frame):
    space = space_from_json(json.loads(json.dumps(Table.infer(frame).to_json())))
    x = space.encode(frame)
    assert x.shape == (len(frame), len(frame.columns))
    back = space.decode(x)
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert torch.equal(space.encode(back).isnan(), torch.tensor(frame.isna().to_numpy()))
    f = space.features(x)
    assert f.shape == (len(frame), len(space.feature_names))


def kinds(frame, **options):
    return {c.name: c.kind for c in Table.infer(frame, **options).columns}


def test_kinds_are_inferred():
    n = 100
    i = np.arange(n)
    frame = pd.DataFrame(
        {
            "real": np.sin(i),
            "price": np.round(np.abs(np.sin(i)), 1),
            "whole": i * 1.0,
            "count": i % 7,
            "flag": i % 2,
            "label": i % 3,
            "word": np.array(["a", "b", "c"])[i % 3],
            "size": np.array(["S", "M", "L"])[i % 3],
            "yes": i % 2 == 0,
            "when": pd.date_range("2020-01-01", periods=n, freq="h"),
            "day": pd.date_range("2020-01-01", periods=n).strftime("%Y-%m-%d"),
            "same": 3.5,
        }
    )
    assert kinds(frame, target="label", ordinals={"size": ["S", "M", "L"]}) == {
        "real": "real", "price": "decimal", "whole": "decimal", "count": "integer", "flag": "category",
        "label": "category", "word": "category", "size": "ordinal", "yes": "boolean", "when": "datetime",
        "day": "datetime", "same": "category",
    }  # fmt: skip
    space = Table.infer(frame, ordinals={"size": ["S", "M", "L"]})
    steps = {c.name: c.step for c in space.columns}
    assert (steps["price"], steps["whole"], steps["when"], steps["day"]) == (0.1, 1.0, 3600.0, 86400.0)
    x = space.encode(frame)
    assert x[:3, 7].tolist() == [0.0, 1.0, 2.0]  # the declared order, not the alphabet
    assert x[1, 9].item() == pd.Timestamp("2020-01-01 01:00").timestamp()
    assert [field.kind for field in space.fields][:5] == ["real", "grid", "grid", "grid", "category"]


def test_features_are_one_hot_with_missing_as_a_level():
    frame = pd.DataFrame({"a": [1.5, np.nan, 2.25, math.pi], "b": ["x", None, "y", "x"]})
    space = Table.infer(frame)
    assert space.feature_names == ["a", "b = x", "b = y", "b missing"]
    f = space.features(space.encode(frame))
    assert f[:, 1:].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert f[:, 0].isnan().tolist() == [False, True, False, False]


def test_many_categories_share_places():
    frame = pd.DataFrame({"code": [f"c{i}" for i in range(5000)] * 2, "v": np.arange(10000) % 9})
    space = Table.infer(frame)
    f = space.features(space.encode(frame))
    assert f.shape == (10000, 65)
    assert f[:, :64].sum(0).max() < 4 * 10000 / 64


def test_generated_whole_numbers_stay_inside_the_dtype():
    space = Table.infer(pd.DataFrame({"a": np.array([0, 7, 255], dtype=np.uint8)}))
    assert space.decode(torch.tensor([[-3.0], [300.0], [6.6]], dtype=torch.float64))["a"].tolist() == [0, 255, 7]


def test_decimals_come_back_as_written():
    frame = pd.DataFrame({"p": [0.1, 0.2, 0.3, 0.7] * 5})
    space = Table.infer(frame)
    assert space.decode(space.encode(frame) + 1e-9)["p"].tolist() == frame["p"].tolist()


@pytest.mark.parametrize(
    ("column", "match"),
    [
        ([None, None], "no values at all"),
        ([1.0, np.inf], "infinite"),
        ([[1], [2]], "nested|mixed"),
        ([1j, 2j], "complex"),
        ([b"a", b"b"], "bytes"),
        (pd.to_timedelta(["1D", "2D"]), "timedelta"),
        (pd.Categorical([pd.Interval(0, 1), pd.Interval(1, 2)]), "Interval"),
    ],
)
def test_columns_that_cannot_be_modelled_are_named(column, match):
    with pytest.raises(DataError, match=match) as caught:
        Table.infer(pd.DataFrame({"fine": [1, 2], "odd": column}))
    assert "'odd'" in str(caught.value)


def test_rows_that_do_not_fit_a_schema_are_named():
    space = Table.infer(pd.DataFrame({"a": [1, 2], "c": ["x", "y"], "d": ["2020-01-01", "2020-01-02"]}))
    good = {"a": [1, 2], "c": ["x", "y"], "d": ["2020-01-01", "2020-01-02"]}
    for change, match in [
        ({"c": ["x", "zebra"]}, "'c' holds 'zebra'.*row 1"),
        ({"a": [1, None]}, "'a' is missing in row 1"),
        ({"a": [1.5, 2]}, "multiple of 1 in row 0"),
        ({"a": ["one", "2"]}, "'a' holds a value that is not a number"),
        ({"d": ["2020-01-01", "soon"]}, "'d' holds a value that is not a date"),
    ]:
        with pytest.raises(DataError, match=match):
            space.encode(pd.DataFrame({**good, **change}))
    with pytest.raises(DataError, match="lacks the columns \\['c'"):
        space.encode(pd.DataFrame({"a": [1]}))
    shuffled = pd.DataFrame(good)[["d", "c", "a"]].assign(extra=0)
    assert torch.equal(space.encode(shuffled), space.encode(pd.DataFrame(good)))


def test_too_many_categories():
    with pytest.raises(DataError, match="120,000 distinct values"):
        Table.infer(pd.DataFrame({"a": np.arange(120_000).astype(str), "b": np.arange(120_000)}))


def test_microseconds_of_other_centuries_come_back():
    """A product of seconds and 10^6 rounds: 1832-12-31T23:53:20.000007 came back a microsecond early."""
    times = pd.to_datetime(
        ["2000-01-01", "1832-12-31T23:53:20.000007", "1700-01-01T00:00:00.000001", "2199-12-31T23:59:59.999999"],
        format="ISO8601",
    )
    frame = pd.DataFrame({"t": pd.Series(times).astype("datetime64[us]")})
    space = Table.infer(frame)
    pd.testing.assert_frame_equal(space.decode(space.encode(frame)), frame)


def test_the_target_is_remembered():
    frame = pd.DataFrame({"size": [1.5, 2.25, 3.1], "kind": ["a", "b", "a"]})
    space = Table.infer(frame, target="kind")
    assert (space.target, space.target_index) == ("kind", 1)
    written = json.loads(json.dumps(space.to_json()))
    assert Table.from_json(written) == space
    del written["target"]  # as older versions wrote it
    assert Table.from_json(written).target is None
    assert Table.infer(frame).target_index is None
    with pytest.raises(DataError, match="no column 'kid'"):
        Table(space.columns, target="kid")


def test_the_target_survives_opening():
    data = open_data("iris")
    assert data.space.target == data.target == "species"
    again = open_data("iris", space=data.space)
    assert again.target == "species"
    other = open_data(data.space.decode(data.train.x), space=Table(data.space.columns), target="species")
    assert other.space.target == other.target == "species"
