"""Spaces: canonical units and back, units of likelihood, and what bad objects get."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from scipy import stats

from protea.errors import CheckpointError, DataError
from protea.spaces import Image, Tokens, Vector, space_from_json

SPACES = [
    Vector(("a", "b"), ("u", "v")),
    Image(3, 4, 5, levels=256, classes=("cat", "dog")),
    Image(1, 8, 8, levels=17),
    Tokens(16),
    Tokens(4, vocabulary=3, tokenizer="ids"),
]


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_json_round_trip(space):
    assert space_from_json(json.loads(json.dumps(space.to_json()))) == space
    assert len(space.fields) == math.prod(space.event)


def test_damaged_json_is_an_error():
    with pytest.raises(CheckpointError, match="kind 'hologram'"):
        space_from_json({"kind": "hologram"})
    with pytest.raises(CheckpointError, match="damaged"):
        space_from_json({"kind": "tokens", "length": 4})


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_images_survive_pillow(channels, levels):
    space = Image(channels, 6, 7, levels=levels)
    x = torch.randint(0, levels, (5, *space.event), dtype=torch.uint8)
    pictures = space.decode(x)
    assert pictures[0].size == (7, 6)
    assert torch.equal(space.encode(pictures), x)
    assert torch.equal(space.encode(x), x)
    assert torch.equal(space.encode(x.permute(0, 2, 3, 1).numpy()), x)


def test_image_arrays_are_not_turned():
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    x = Image(1, 2, 3).encode(picture)
    assert x[0, 0].tolist() == picture.tolist()
    assert Image(1, 2, 3).decode(x)[0].getpixel((2, 0)) == 2  # Pillow's (column, row)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (np.full((2, 2, 3), 17, np.uint8), "17 to 17, outside 0 .. 16"),
        (np.full((2, 2, 3), -1), "outside"),
        (np.full((2, 2, 3), 0.5), "not whole"),
        (np.full((2, 2, 3), np.nan), "not whole"),
        (np.zeros((2, 5, 3), np.uint8), "expected"),
        (torch.zeros(2, 3, 2, 2), "expected"),
        ([Pillow.new("L", (9, 9))], "9x9"),
        (np.array([["a"]]), "not numbers"),
    ],
)
def test_bad_images(raw, match):
    with pytest.raises(DataError, match=match):
        Image(1, 2, 3, levels=17).encode(raw)


def test_bits_per_dimension_of_noise():
    """Uniform noise over L levels costs log2 L bits a dimension."""
    space = Image(3, 4, 4, levels=16)
    nats = torch.tensor([-3 * 4 * 4 * math.log(16)])
    value, unit = space.likelihood(nats)
    assert unit == "bits per dimension"
    assert value.item() == pytest.approx(4.0, rel=1e-6)


def test_bits_per_byte_of_noise():
    value, unit = Tokens(32).likelihood(torch.tensor([-32 * math.log(256)], dtype=torch.float64))
    assert (value.item(), unit) == (pytest.approx(8.0, rel=1e-12), "bits per byte")


def test_text_survives_byte_by_byte():
    raw = bytes(range(256)) * 2
    space = Tokens(64)
    x = space.encode(raw)
    assert b"".join(space.decode_bytes(x)) == raw
    assert space.decode(space.encode("Größe" * 20))[0].startswith("Größe")


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ("short", "5 bytes, too few"),
        (np.zeros((2, 3), int), "shape"),
        (np.full((1, 16), 256), "outside"),
        ([], "shape"),
    ],
)
def test_bad_text(raw, match):
    with pytest.raises(DataError, match=match):
        Tokens(16).encode(raw)


def test_token_features_are_shares_of_ngrams():
    """'abab' has n-grams a a b b, ab ab ba, aba bab: shares 2/9 2/9, 2/9 1/9, 1/9 1/9 where nothing collides."""
    f = Tokens(4).features(Tokens(4).encode("abab"))
    assert f.sum().item() == pytest.approx(1.0)
    assert sorted(f[0][f[0] > 0].tolist()) == pytest.approx(sorted([2 / 9, 2 / 9, 2 / 9, 1 / 9, 1 / 9, 1 / 9]))


def test_token_features_depend_on_the_order():
    space = Tokens(6)
    f = space.features(space.encode("abcdefbadcfe"))
    assert (f[0] - f[1]).abs().sum() > 0.5


def test_token_features_spread_over_the_places():
    """As a random hash would: 256 tokens fill about 512 (1 - e^(-1/2)) places, 96^2 pairs fill them evenly."""
    one = Tokens(1).features(torch.arange(256)[:, None])
    assert 180 < int((one.sum(0) > 0).sum()) < 225
    a, b = (t.flatten() for t in torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij"))
    pairs = 3 * Tokens(2).features(torch.stack((a, b), 1)) - one[a] - one[b]
    count = pairs.sum(0).numpy()
    assert stats.chisquare(count).pvalue > 1e-4


def test_vectors():
    space = Vector(("x", "y"))
    raw = np.array([[0.1, -1e300], [3.0, 5e-324]])
    assert np.array_equal(space.decode(space.encode(raw)), raw)
    with pytest.raises(DataError, match="row 1"):
        space.encode([[0.0, 0.0], [0.0, math.inf]])
    with pytest.raises(DataError, match="2 coordinates"):
        space.encode(np.zeros((3, 5)))
