"""Counter-based streams: Random123's known answers, independence of the batch, and distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from protea.rng import Streams, fold, permutation, philox

# Known-answer vectors of Random123 1.14 (kat_vectors): philox4x32, 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    out = philox([torch.tensor([c]) for c in counter], key)
    assert tuple(int(word) for word in out) == expected


def test_a_stream_does_not_depend_on_its_batch() -> None:
    whole = Streams(11, 100)
    z, u = whole.normal(7), whole.uniform(3, 2)
    for i in (0, 42, 99):
        alone = Streams(11, [i])
        assert torch.equal(alone.normal(7)[0], z[i]) and torch.equal(alone.uniform(3, 2)[0], u[i])


def test_draws_children_seeds_and_ids_differ() -> None:
    rng = Streams(0, 1000)
    columns = [
        rng.normal(1),
        rng.normal(1),
        rng.child("a").normal(1),
        rng.child("b").normal(1),
        Streams(1, 1000).normal(1),
    ]
    correlation = torch.corrcoef(torch.cat(columns, 1).T) - torch.eye(5)
    assert correlation.abs().max() < 4 / math.sqrt(1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions(dtype: torch.dtype) -> None:
    """Kolmogorov-Smirnov over elements of many streams; each test has a false-alarm rate of 1e-4."""
    rng = Streams(5, 500)
    assert stats.kstest(rng.normal(100, dtype=dtype).flatten().numpy(), "norm").pvalue > 1e-4
    u = rng.uniform(100, dtype=dtype)
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
    assert u.min() > 0 and u.max() < 1
    across_streams = Streams(9, 20_000).normal(1, dtype=dtype)[:, 0]
    assert stats.kstest(across_streams.numpy(), "norm").pvalue > 1e-4


def test_categorical_follows_its_logits() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    index = Streams(3, 20_000).categorical(p.log().expand(20_000, 5))
    observed = torch.bincount(index, minlength=5)
    assert observed[4] == 0
    assert stats.chisquare(observed[:4].numpy(), (p[:4] * 20_000).numpy()).pvalue > 1e-4


def test_permutation_and_fold_are_functions_of_their_arguments() -> None:
    p = permutation(1000, 0, "epoch", 3)
    assert torch.equal(p.sort().values, torch.arange(1000))
    assert torch.equal(p, permutation(1000, 0, "epoch", 3)) and not torch.equal(p, permutation(1000, 0, "epoch", 4))
    assert len({fold(0, "x", i) for i in range(1000)}) == 1000


def test_coins_are_numpys_philox_and_do_not_depend_on_the_batch() -> None:
    """The words of stream 5, draw 1, from numpy's own generator advanced to its place."""
    rng = Streams(11, 100)
    first, second = rng.bernoulli(torch.full((100, 13), 0.5)), rng.bernoulli(torch.full((100, 3, 7), 0.3))
    for ids in ([5], [5, 6, 42], [42, 5]):
        alone = Streams(11, ids)
        assert torch.equal(alone.bernoulli(torch.full((len(ids), 13), 0.5)), first[ids])
        assert torch.equal(alone.bernoulli(torch.full((len(ids), 3, 7), 0.3)), second[ids])
    words = np.random.Philox(key=[11, 0], counter=[0, 1, 0, 0]).advance(5 * 3).random_raw(12).view(np.uint32)
    want = (words[:21].astype(np.int32) >> 8) * 2.0**-24 + 0.5 < np.float32(0.3)
    assert second[5].flatten().tolist() == want.astype(float).tolist()


def test_coins_follow_their_probabilities() -> None:
    p = torch.tensor([0.0, 1e-3, 0.25, 0.5, 0.9, 1.0], dtype=torch.float64).expand(20_000, 6)
    x = Streams(3, 20_000).bernoulli(p)
    assert x.dtype == torch.float64 and x[:, 0].sum() == 0 and x[:, 5].sum() == 20_000
    for j in range(1, 5):
        assert stats.binomtest(int(x[:, j].sum()), 20_000, float(p[0, j])).pvalue > 1e-4
    assert (torch.corrcoef(x[:, 1:5].T) - torch.eye(4)).abs().max() < 4 / math.sqrt(20_000)
    assert Streams(3, 0).bernoulli(torch.zeros(0, 4)).shape == (0, 4)
