"""The split is a function of content: the same on every machine and run, in every order of the rows."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from protea.data import open_data
from protea.data.arrays import from_array
from protea.data.dataset import split_rows
from protea.data.split import assign, digests, distinct, row_keys, split_hash
from protea.errors import DataError
from protea.spaces import Table, Vector

N = 2000
I = np.arange(N)
FRAME = pd.DataFrame({"a": np.sin(I), "n": I * I % 97, "c": np.array(["x", "y", None], dtype=object)[I % 3]})


def member(dataset) -> dict[str, int]:
    """Row (as text) to its part."""
    out = {}
    for p, rows in enumerate((dataset.train, dataset.validation, dataset.holdout)):
        frame = dataset.space.decode(rows.x)
        frame = frame[sorted(frame.columns)]
        out |= {repr(row): p for row in frame.itertuples(index=False, name=None)}
    return out


def test_shares():
    d = open_data(FRAME)
    sizes = np.array([len(d.train), len(d.validation), len(d.holdout)])
    assert sizes.sum() == N
    assert stats.chisquare(sizes, N * np.array([0.8, 0.1, 0.1])).pvalue > 1e-4
    ids = torch.cat((d.train.ids, d.validation.ids, d.holdout.ids))
    assert sorted(ids.tolist()) == list(range(N))
    pd.testing.assert_frame_equal(
        d.space.decode(d.holdout.x), FRAME.iloc[d.holdout.ids.tolist()].reset_index(drop=True)
    )


def test_order_of_rows_and_columns_does_not_matter():
    a = open_data(FRAME)
    b = open_data(FRAME.sample(frac=1, random_state=1)[["c", "a", "n"]])
    assert member(a) == member(b)
    assert (a.split_hash, a.fingerprint) == (b.split_hash, b.fingerprint)


def test_added_rows_and_categories_do_not_move_the_others():
    more = pd.concat((FRAME, pd.DataFrame({"a": [7.5], "n": [3], "c": ["another"]})), ignore_index=True)
    a, b = member(open_data(FRAME)), member(open_data(more))
    assert a.items() <= b.items()
    assert open_data(FRAME).fingerprint != open_data(more).fingerprint


def test_seed_gives_another_split_of_the_same_data():
    a, b = open_data(FRAME), open_data(FRAME, seed=1)
    assert a.fingerprint == b.fingerprint
    assert a.split_hash != b.split_hash
    same = np.mean([part == b for part, b in zip(member(a).values(), map(member(b).get, member(a)))])
    assert abs(same - (0.64 + 0.01 + 0.01)) < 0.04  # as for independent draws


def test_the_rule_is_the_documented_one():
    """u = first 64 bits of sha256("protea split SEED:" + sha256(content)) / 2^64, content = float64, little endian."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 2)))
    part = assign(row_keys(Vector(("x", "y")), x), seed=5)
    for row, p in zip(x.numpy(), part):
        content = hashlib.sha256(row.astype("<f8").tobytes()).digest()
        u = int.from_bytes(hashlib.sha256(b"protea split 5:" + content).digest()[:8], "big") / 2**64
        assert p == (0 if u < 0.8 else 1 if u < 0.9 else 2)


@pytest.mark.slow  # a second process imports torch
def test_other_processes_agree():
    code = (
        "from protea.data import open_data\n"
        "for n in ('iris', 'digits', 'rings'):\n"
        "    d = open_data(n); print(d.split_hash, d.fingerprint)"
    )
    here = []
    for name in ("iris", "digits", "rings"):
        d = open_data(name)
        here.append(f"{d.split_hash} {d.fingerprint}")
    env = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert there.stdout.split("\n")[:3] == here


def test_duplicates_never_straddle():
    rows = np.random.default_rng(0).integers(0, 12, size=(4000, 3)).astype(float)
    rows[::7] = -rows[::7] * 0.0  # minus zero is zero
    d = open_data(rows)
    parts = [set(map(tuple, p.x.tolist())) for p in (d.train, d.validation, d.holdout)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert d.preflight.exact_duplicates == 4000 - len(set(map(tuple, rows.tolist())))


def test_labels_do_not_part_copies():
    x = np.repeat(np.random.default_rng(0).integers(0, 256, size=(100, 4, 4), dtype=np.uint8), 2, axis=0)
    d = split_rows(from_array(x, np.arange(200) % 2), 0)
    for rows in (d.train, d.validation, d.holdout):
        assert sorted((rows.ids // 2).bincount().unique().tolist()) in ([0, 2], [2])


def test_few_rows_are_cut_exactly():
    for n in (10, 11, 25, 199):
        part = assign(digests(str(i).encode() for i in range(n)))
        sizes = np.bincount(part, minlength=3)
        assert sizes.min() >= 1
        assert np.abs(sizes - n * np.array([0.8, 0.1, 0.1])).max() <= 1
    with pytest.raises(DataError, match="9 are distinct: too few"):
        assign(digests(str(i % 9).encode() for i in range(100)))


def test_split_hash_tells_splits_apart():
    keys = digests(str(i).encode() for i in range(50))
    part = assign(keys)
    swapped = part.copy()
    swapped[[0, (part != part[0]).argmax()]] = swapped[[(part != part[0]).argmax(), 0]]
    assert split_hash(keys, part) == split_hash(keys[::-1], part[::-1])
    assert split_hash(keys, part) != split_hash(keys, swapped)


def test_distinct_agrees_with_numpy():
    keys = digests(str(i % 13).encode() for i in np.random.default_rng(0).integers(0, 999, 200))
    first, place = distinct(keys)
    unique, index, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    assert (keys[first] == unique).all()
    assert (first == index).all()
    assert (place == inverse.reshape(-1)).all()


def test_missing_is_a_content_of_its_own():
    frame = pd.DataFrame({"a": [1.25, np.nan, np.pi, np.nan], "c": ["missing", None, "missing", "x"]})
    space = Table.infer(frame)
    assert len(np.unique(row_keys(space, space.encode(frame)), axis=0)) == 4


def test_documents_are_split_as_wholes():
    documents = [f"document {i} " + "words of some length " * (3 + i % 5) for i in range(300)]
    d = open_data(documents + documents[:40], block=64)
    parts = [b"".join(d.space.decode_bytes(p.x)).decode() for p in (d.train, d.validation, d.holdout)]
    found = [{i for i in range(300) if f"document {i} " in text} for text in parts]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert len(found[0] | found[1] | found[2]) >= 297  # a ragged tail may hold a last document
    assert any("40 of 340 documents" in w for w in d.preflight.warnings)
