"""Every kind of source opens, split and in its space."""

from __future__ import annotations

import gzip
import json
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pillow

from protea.data import EMBEDDED, open_data
from protea.data.tables import read_csv
from protea.errors import ConfigError, ConstraintError, DataError
from protea.spaces import Image, Table, Tokens, Vector

RNG = np.random.default_rng(0)


def whole(d):
    return len(d.train) + len(d.validation) + len(d.holdout)


@pytest.mark.parametrize(
    ("name", "rows", "target", "event"),
    [("wine", 178, "cultivar", (14,)), ("breast-cancer", 569, "diagnosis", (31,)), ("iris", 150, "species", (5,)),
     ("diabetes", 442, "progression", (11,))],
)  # fmt: skip
def test_embedded_tables(name, rows, target, event):
    d = open_data(name)
    assert (whole(d), d.target, d.space.event) == (rows, target, event)
    assert target in d.space.by_name


def test_embedded_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    d, bunch = open_data("digits"), load_digits()
    assert d.space == Image(1, 8, 8, levels=17, classes=tuple("0123456789"))
    assert np.array_equal(d.train.x[:, 0].numpy(), bunch.images[d.train.ids])
    assert np.array_equal(d.holdout.y.numpy(), bunch.target[d.holdout.ids])
    assert sum(d.preflight.classes.values()) == 1797
    assert d.preflight.exact_duplicates == 0


@pytest.mark.slow
def test_python_source():
    d = open_data("stdlib")
    assert d.name == "python"
    assert d.space == Tokens(128)
    assert 500_000 < whole(d) * 128 <= 2_100_000
    text = "".join(d.space.decode(d.train.x[:2000]))
    assert "def " in text and "import " in text


def test_names_are_forgiving_and_typos_are_explained():
    assert open_data("two_moons", n=100).name == "two-moons"
    with pytest.raises(DataError, match="Did you mean digits"):
        open_data("digit")
    with pytest.raises(ConfigError, match="Did you mean block"):
        open_data("digits", blok=3)
    with pytest.raises(ConfigError, match="'size' does not apply"):
        open_data("digits", size=3)
    with pytest.raises(ConfigError, match="'target' does not apply"):
        open_data("digits", target="y")
    assert len(EMBEDDED) == 11


CSV = "id,age,city,joined,paid,zip,amount\n" + "".join(
    f'k{i},{20 + i % 50},"{["Bonn", "Ulm, Donau", "?"][i % 3]}",2020-01-{1 + i % 28:02d},'
    f"{['true', 'false'][i % 2]},0{1000 + i % 9},{['1.5', ' ', '2.25'][i % 3]}\n"
    for i in range(200)
)


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_csv(tmp_path, ending):
    path = tmp_path / f"people.{ending}"
    path.write_bytes(gzip.compress(CSV.encode()) if ending.endswith("gz") else CSV.encode())
    d = open_data(path, target="paid")
    assert {c.name: c.kind for c in d.space.columns} == {
        "age": "integer", "city": "category", "joined": "datetime", "paid": "boolean", "zip": "category",
        "amount": "decimal",
    }  # fmt: skip
    assert (d.name, d.target) == ("people", "paid")
    assert "'?' (66)" in d.preflight.notes[0] and "'' (67)" in d.preflight.notes[0]
    assert any("'id' is left out" in w for w in d.preflight.warnings)
    assert d.preflight.classes == {"False": 100, "True": 100}
    frame = d.space.decode(d.train.x)
    assert set(frame["city"].dropna()) == {"Bonn", "Ulm, Donau"}
    assert frame["zip"].iloc[0].startswith("0")
    kept = open_data(path, keep=["id"], drop=["city"])
    assert "id" in kept.space.by_name and "city" not in kept.space.by_name


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_and_crlf_and_bom(tmp_path, delimiter):
    path = tmp_path / "t.csv"
    lines = [delimiter.join(("a", "b")), *(delimiter.join((str(i / 3), f"w{i % 4}")) for i in range(20))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    frame, _ = read_csv(path)
    assert frame["a"].tolist() == [float(str(i / 3)) for i in range(20)]  # to the nearest double
    assert frame["b"].tolist()[:5] == ["w0", "w1", "w2", "w3", "w0"]


def test_csv_parquet_json_and_frames_agree(tmp_path):
    frame = pd.DataFrame({"a": RNG.normal(size=100), "b": RNG.integers(0, 50, 100), "c": RNG.choice(["x", "y"], 100)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True, double_precision=15)
    (tmp_path / "t.json").write_text(json.dumps(frame.to_dict("list")))
    want = open_data(frame)
    for ending in ("csv", "parquet", "json"):
        d = open_data(tmp_path / f"t.{ending}")
        assert (d.fingerprint, d.split_hash) == (want.fingerprint, want.split_hash), ending
    rows = open_data(tmp_path / "t.jsonl")
    assert rows.space.kind == "table" and whole(rows) == 100


def test_a_known_space_reads_other_rows():
    a = open_data("iris")
    frame = a.space.decode(a.holdout.x)
    again = open_data(pd.concat([frame] * 2), space=a.space)
    assert again.space is a.space
    with pytest.raises(DataError, match="not a image"):
        open_data(frame, space=Image(1, 8, 8))


def test_constraints_reach_the_table():
    a = np.arange(50) % 7
    frame = pd.DataFrame({"a": a, "b": a + np.arange(50) % 8 + 1})
    assert len(open_data(frame, constraints=[{"kind": "inequality", "low": "a", "high": "b"}]).space.constraints) == 1
    with pytest.raises(ConstraintError, match="50 rows"):
        open_data(frame, constraints=[{"kind": "inequality", "low": "b", "high": "a"}])


def test_arrays(tmp_path):
    grey = RNG.integers(0, 256, (50, 5, 6), dtype=np.uint8)
    colour = RNG.integers(0, 256, (50, 5, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", x=colour, y=np.arange(50) % 2, class_names=np.array(["cat", "dog"]))
    d = open_data(tmp_path / "i.npz")
    assert d.space == Image(3, 5, 6, classes=("cat", "dog"))
    assert np.array_equal(d.train.x.permute(0, 2, 3, 1).numpy(), colour[d.train.ids])
    assert np.array_equal(d.train.y.numpy(), (np.arange(50) % 2)[d.train.ids])
    np.savez(tmp_path / "g.npz", images=grey, labels=np.array(["b", "a"] * 25))
    assert open_data(tmp_path / "g.npz").space == Image(1, 5, 6, classes=("a", "b"))
    assert open_data(colour.transpose(0, 3, 1, 2)).space.event == (3, 5, 6)
    np.save(tmp_path / "p.npy", RNG.normal(size=(60, 3)).astype(np.float32))
    assert open_data(tmp_path / "p.npy").space == Vector(("x0", "x1", "x2"))
    assert isinstance(open_data(RNG.integers(0, 999, (60, 2))).space, Table)
    assert open_data(torch.randn(40, 2)).space == Vector(("x0", "x1"))


def save(folder, i, size=(8, 6), mode="RGB", ending="png"):
    picture = Pillow.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    folder.mkdir(exist_ok=True, parents=True)
    picture.save(folder / f"{i:03d}.{ending}")
    return picture


def test_folders_of_images(tmp_path):
    pictures = [save(tmp_path / "flat", i) for i in range(20)]
    d = open_data(tmp_path / "flat")
    assert d.space == Image(3, 6, 8)
    assert all(d.space.decode(d.train.x)[j].tobytes() == pictures[i].tobytes() for j, i in enumerate(d.train.ids[:5]))
    for kind in ("cat", "dog"):
        for i in range(10):
            save(tmp_path / "classes" / kind, i, mode="L", ending=["png", "jpg", "webp", "jpeg"][i % 4])
    grey = open_data(tmp_path / "classes")
    assert grey.space.classes == ("cat", "dog")
    assert grey.train.y is not None
    assert sum(grey.preflight.classes.values()) == 20


def test_resizing_cuts_to_the_shape_and_keeps_flat_colours(tmp_path):
    for i in range(12):
        (tmp_path / "r").mkdir(exist_ok=True)
        Pillow.new("RGB", (10 + i, 20), (10 * i, 50, 200)).save(tmp_path / "r" / f"{i:02d}.png")
    with pytest.raises(DataError, match=r"12 sizes.*size="):
        open_data(tmp_path / "r")
    d = open_data(tmp_path / "r", size=(4, 6))
    assert d.space.event == (3, 4, 6)
    assert bool((d.train.x[:, 0].flatten(1).long() == 10 * d.train.ids[:, None]).all())
    assert "resized to 4x6" in d.preflight.notes[0]


def test_text_files(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("\n\n".join(f"SPEAKER {i}:\nIt is a speech of some length, number {i}." for i in range(60)))
    d = open_data(path, block=32)
    assert d.space == Tokens(32)
    assert "documents are paragraphs" in d.preflight.notes
    assert "SPEAKER" in d.space.decode(d.train.x)[0] + d.space.decode(d.train.x)[1]
    (tmp_path / "lines.txt").write_text("\n".join(f"line number {i} without any blank" for i in range(200)))
    assert "documents are lines" in open_data(tmp_path / "lines.txt", block=32).preflight.notes
    (tmp_path / "one.txt").write_text("abc" * 20_000 + "".join(map(str, range(9000))))
    assert any("pieces of 1024" in note for note in open_data(tmp_path / "one.txt", block=32).preflight.notes)


def test_text_that_is_not_utf8_is_modelled_as_bytes(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("\n\n".join(f"Größe {i} und noch ein paar Wörter mehr" for i in range(60)).encode("latin-1"))
    d = open_data(path, block=32)
    assert any("not UTF-8 from line 1" in note for note in d.preflight.notes)
    assert b"Gr\xf6\xdfe" in b"".join(d.space.decode_bytes(d.train.x))


def test_jsonl_text(tmp_path):
    rows = [{"question": f"what is {i} plus {i}?", "answer": f"it is {i + i}, of course"} for i in range(100)]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    d = open_data(path, text=["question", "answer"], block=32)
    assert "?\nit is" in "".join(d.space.decode(d.train.x))
    path.write_text("\n".join(json.dumps({"text": row["question"] * 3}) for row in rows))
    assert open_data(path, block=32).space.kind == "tokens"
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"file {i} " * 20)
    assert open_data(folder, block=32).space.kind == "tokens"


@pytest.mark.slow
@pytest.mark.shared
def test_adult(shared_data):
    start = time.perf_counter()
    d = open_data(shared_data / "tabular" / "adult.csv", target="income")
    assert whole(d) == 32_561
    assert d.preflight.exact_duplicates == 24  # as its documentation says
    assert round(100 * d.preflight.classes[">50K"] / 32_561, 1) == 24.1
    missing = {c["name"]: c["missing"] for c in d.preflight.columns if c["missing"]}
    assert set(missing) == {"workclass", "occupation", "native-country"}
    raw = pd.read_csv(shared_data / "tabular" / "adult.csv", na_values=["?"])
    assert missing == {k: int(v) for k, v in raw.isna().sum().items() if v}
    back = d.space.decode(d.space.encode(raw))
    pd.testing.assert_frame_equal(back, raw)
    test = open_data(shared_data / "tabular" / "adult_test.csv", space=d.space, target="income")
    assert whole(test) == 16_281
    assert time.perf_counter() - start < 60


@pytest.mark.slow
@pytest.mark.shared
def test_california_and_telco(shared_data):
    d = open_data(shared_data / "tabular" / "california_housing.csv", target="median_house_value")
    assert whole(d) == 20_640
    assert {c["name"]: c["missing"] for c in d.preflight.columns if c["missing"]} == {"total_bedrooms": 207}
    d = open_data(shared_data / "tabular" / "telco_churn.csv", target="Churn")
    assert d.space.by_name["TotalCharges"].kind == "decimal"
    assert d.space.by_name["SeniorCitizen"].kind == "category"
    assert {c["name"]: c["missing"] for c in d.preflight.columns if c["missing"]} == {"TotalCharges": 11}
    assert list(d.preflight.left_out) == ["customerID"]


@pytest.mark.slow
@pytest.mark.shared
def test_shakespeare_and_gsm8k(shared_data):
    d = open_data(shared_data / "text" / "tinyshakespeare.txt")
    assert whole(d) * 128 > 1_100_000
    d = open_data(shared_data / "math" / "gsm8k_test.jsonl", text=["question", "answer"])
    assert d.space.kind == "tokens"
    with pytest.raises(DataError, match="text='answer'"):
        open_data(shared_data / "math" / "gsm8k_test.jsonl")


def test_a_column_in_a_constraint_is_no_identifier():
    frame = pd.DataFrame({"row": np.arange(200), "next": np.arange(200) + 1 + RNG.integers(0, 3, 200)})
    said = [{"kind": "inequality", "low": "row", "high": "next"}]
    assert open_data(frame, constraints=said).space.event == (2,)
