"""Bad input gets an error that names the file, row or column, and the remedy."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from protea.data import open_data
from protea.errors import ConfigError, DataError, ProteaError

ROWS = "".join(f"{i},{i % 7},w{i % 3}\n" for i in range(0, 60, 2))
FILES = {  # name: (content, options, cause, remedy)
    "empty.csv": (b"", {}, "empty.csv is empty", "header and rows"),
    "blank.csv": (b" \n\n", {}, "is empty", ""),
    "header.csv": (b"a,b,c\n", {}, "header but no rows", ""),
    "one.csv": (b"a,b\n1,2\n", {}, "1 rows, of which 1 are distinct: too few to split", "at least 10"),
    "few.csv": (b"a,b\n" + b"1,2\n2,3\n" * 30, {}, "60 rows, of which 2 are distinct", ""),
    "ragged.csv": (f"a,b,c\n{ROWS}7,8\n".encode(), {}, r"Row 30 of .* \(line 32\) has 2 fields.*3", "delimiter"),
    "long.csv": (f"a,b,c\n1,2,3,4\n{ROWS}".encode(), {}, r"Row 0 of .*\(line 2\) has 4 fields", ""),
    "twice.csv": (f"a,b,a\n{ROWS}".encode(), {}, "'a' occurs more than once", "own name"),
    "void.csv": (b"a,b\n" + b"".join(b"%d,?\n" % i for i in range(20)), {}, r"no values at all", r"drop=\['b'\]"),
    "inf.csv": (f"a,b,c\n{ROWS}inf,3,w1\n".encode(), {}, "'a' holds 1 infinite values.* row 30", "Replace"),
    "latin.csv": ("a,b\nä,1\n".encode("latin-1"), {}, "not UTF-8: byte 0xe4 in line 2", "iconv"),
    "target.csv": (f"age,b,c\n{ROWS}".encode(), {"target": "agee"}, "no column 'agee'", "Did you mean age"),
    "drop.csv": (f"age,b,c\n{ROWS}".encode(), {"drop": ["x"]}, "no column 'x'", "Known"),
    "ids.csv": (b"k\n" + b"".join(b"key-%d\n" % i for i in range(200)), {}, "identifier or free text", r"keep=\['k'\]"),
    "bad.csv.gz": (b"not gzip", {}, "cannot be read", ""),
    "line.jsonl": (b'{"a": 1}\n\n{"a": 2\n{"a": 3}\n', {}, "Line 3 of .*line.jsonl is not JSON", "Correct the line"),
    "list.jsonl": (b'{"a": 1}\n[1]\n', {}, "Line 2 .* is list, not an object", ""),
    "empty.jsonl": (b"\n\n", {}, "is empty", ""),
    "nested.jsonl": (b'{"a": {"b": 1}, "c": 1}\n' * 20, {}, "'a' of .* holds nested values", "drop"),
    "field.jsonl": (b'{"q": "x", "r": "y"}\n' * 20, {"text": "qq"}, "no field 'qq'", "Did you mean q"),
    "hole.jsonl": (b'{"q": "x"}\n{"q": null}\n', {"text": "q"}, "Object 2 of .* has no text", ""),
    "broken.json": (b'{"a": [1, 2}', {}, "not JSON", ""),
    "scalar.json": (b"3", {}, "is not a table", "list of objects"),
    "uneven.json": (b'{"a": [1, 2], "b": [1]}', {}, "differ in length", ""),
    "broken.parquet": (b"PAR1 no", {}, "not a Parquet file", ""),
    "empty.npy": (b"", {}, "is empty", ""),
    "junk.npy": (b"junk" * 20, {}, "damaged|not a numpy|pickled", ""),
    "empty.txt": (b" \n", {}, "is empty", ""),
    "binary.txt": (b"MZ\0\0" * 30, {}, "zero bytes", ""),
    "short.txt": (b"one two three", {}, "too few to split|too few for one block", ""),
    "tiny.txt": (b"\n\n".join(b"p%d" % i for i in range(30)), {}, "too few for one block", "block="),
    "model.pkl": (pickle.dumps([1]), {}, "is a pickle, which could run code", "npz"),
    "what.xyz": (b"1", {}, "ending that says nothing: '.xyz'", "Known: .csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_bad_files(tmp_path, name):
    content, options, cause, remedy = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=cause) as caught:
        open_data(tmp_path / name, **options)
    assert pd.Series([caught.value.remedy]).str.contains(remedy).all()
    assert len(caught.value.remedy) > 5


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


X = np.zeros((20, 4, 4), np.uint8)
ARRAYS = {
    "pickled": (npz(x=np.array([{"a": 1}, None], dtype=object)), "pickled objects, which could run code"),
    "keys": (npz(foo=X), r"none of the keys x.*foo \(20, 4, 4\)"),
    "rank": (npz(x=np.zeros((20, 3, 4, 4, 4), np.uint8)), "neither images nor points"),
    "channels": (npz(x=np.zeros((20, 9, 9, 9), np.uint8)), "no axis is a number of channels"),
    "floats": (npz(x=np.zeros((20, 3, 4, 5))), "neither images nor points"),
    "text": (npz(x=np.array(["a", "b"])), "not numbers"),
    "none": (npz(x=np.zeros((0, 4))), "is empty"),
    "labels": (npz(x=X, y=np.zeros(7, int)), r"labels of shape \(7,\)"),
    "both": (npz(x=np.where(np.arange(40).reshape(20, 2) == 11, np.inf, np.nan)), "20 rows .* first row 0"),
    "empty column": (npz(x=np.where(np.arange(40).reshape(20, 2) % 2, np.nan, 1.0)), "'x1' has no values at all"),
    "inf": (npz(x=np.where(np.arange(40).reshape(20, 2) == 11, np.inf, 1.0)), "NaN or infinity"),
    "truncated": (npz(x=X)[:-40], "truncated|damaged"),
    "complex": (npz(x=np.zeros((20, 2), complex)), "not numbers"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_bad_arrays(tmp_path, name):
    content, cause = ARRAYS[name]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=cause):
        open_data(tmp_path / "a.npz")


def test_an_npy_pickle_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.save(tmp_path / "a.npy", np.array([Bomb(), Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="refused"):
        open_data(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


def png(width, height):
    """A valid PNG of zeros that is small on disk and huge in memory."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * (height * (width // 8 + 1)), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pictures(folder, n=12, size=(8, 8)):
    for i in range(n):
        Pillow.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match="no pictures"):
        open_data(tmp_path)
    pictures(tmp_path)
    good = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(good[:60])
    (tmp_path / "x.jpg").write_bytes(b"nonsense")
    (tmp_path / "bomb.png").write_bytes(png(9_000, 9_000))
    with pytest.raises(DataError, match="cannot be read") as caught:
        open_data(tmp_path)
    for said in ("bomb.png (9000x9000 pixels, a decompression bomb)", "x.jpg (not a picture)"):
        assert said in str(caught.value)
    (tmp_path / "x.jpg").unlink()
    (tmp_path / "bomb.png").unlink()
    with pytest.raises(DataError, match=r"1 files .* 3\.png"):
        open_data(tmp_path)
    (tmp_path / "3.png").write_bytes(good)
    assert open_data(tmp_path).space.event == (3, 8, 8)
    Pillow.new("RGB", (9, 9)).save(tmp_path / "z.png")
    with pytest.raises(DataError, match=r"2 sizes: 8x8 \(12\), 9x9 \(1\)") as caught:
        open_data(tmp_path)
    assert "size=8" in caught.value.remedy


@pytest.mark.parametrize(
    ("what", "options", "match"),
    [
        ("nowhere/data.csv", {}, "no file, folder or embedded set"),
        (3, {}, "int cannot be opened"),
        (np.zeros((0, 2)), {}, "empty"),
        (pd.DataFrame({"a": []}), {}, "no rows"),
        (pd.DataFrame([[1, 2]] * 20, columns=["a", "a"]), {}, "more than once"),
        ("rings", {"n": 0}, "not a number of points"),
        ("python", {"block": 0}, "not a length"),
        ("rings", {"fractions": (1, 0, 0)}, "three positive"),
        ("rings", {"n": 5}, "too few to split"),
        ("iris", {"target": "specis"}, "Did you mean species"),
    ],
    ids=str,
)
def test_bad_requests(what, options, match):
    with pytest.raises((DataError, ConfigError), match=match):
        open_data(what, **options)


def test_ten_million_categories(tmp_path):
    """A tenth of it, for time: the column is refused, or left out, by name."""
    names = pd.Series(np.arange(1_000_000)).astype(str) + "x"
    with pytest.raises(ProteaError, match="'k'"):
        open_data(
            pd.DataFrame({"k": pd.concat([names[:-1], names[:1]], ignore_index=True), "v": np.arange(10**6) % 50})
        )
