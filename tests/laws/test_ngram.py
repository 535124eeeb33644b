"""The n-gram keeps the contract: statistics add, files round-trip, caches agree, draws follow log_prob."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from protea.core import Countable, NextToken, Normalised
from protea.errors import ConfigError
from protea.models.autoregressive.ngram import ENTRY, NGram, NGramConfig, highest_order
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Tokens

SPACE = Tokens(10, vocabulary=4, tokenizer="ids")


def texts(n: int) -> torch.Tensor:
    return (torch.rand(n, 10, generator=torch.Generator().manual_seed(1)) ** 2 * 4).long()


def learnt(order: int = 3) -> NGram:
    model = NGram(SPACE, NGramConfig(order))
    model.maximise(model.expect(texts(64)))
    return model


def test_capabilities():
    assert all(isinstance(learnt(), kind) for kind in (Normalised, NextToken, Countable))


def test_statistics_add_over_batches():
    model = NGram(SPACE, NGramConfig(3))
    x = texts(64)
    a, b, c = model.expect(x), model.expect(x[:40]), model.expect(x[40:])
    total = {k: b[k] + c[k] for k in a}
    model.maximise(total)
    want = learnt().log_prob(x)
    assert torch.equal(model.log_prob(x), want)
    assert total["count"] == 64 and torch.isclose(a["log_prob"], total["log_prob"])
    again = model.expect(x)
    assert torch.isclose(again["log_prob"], want.sum())
    model.maximise(again)
    assert torch.equal(model.log_prob(x), want)  # the likelihood cannot fall: a second step changes nothing


def test_file_round_trip_with_other_sizes():
    model, other = learnt(), NGram(SPACE, NGramConfig(3))
    other.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(other.log_prob(texts(20)), model.log_prob(texts(20)))
    assert torch.equal(other.sample(5), model.sample(5))


def test_cached_logits_equal_uncached_at_every_split():
    model, x = learnt(4), texts(3)
    whole = model.logits(x)
    for t in range(1, 10):
        cache = model.new_cache(3, 10)
        parts = torch.cat((model.logits(x[:, :t], cache), model.logits(x[:, t:], cache)), 1)
        assert torch.equal(parts, whole)


def test_samples_do_not_depend_on_the_batch():
    model = learnt()
    x = model.sample(8, rng=3)
    assert torch.equal(x, torch.cat([model.sample(1, rng=Streams(3, [i])) for i in range(8)]))


def test_samples_follow_log_prob():
    """Chi-squared of 20,000 draws of 2 tokens over all 9 texts: below the 99.9 % quantile of 8 degrees."""
    space = Tokens(2, vocabulary=3, tokenizer="ids")
    model = NGram(space, NGramConfig(2))
    model.maximise(model.expect(torch.tensor([[0, 1], [0, 1], [1, 2], [2, 2], [0, 0]])))
    model.block = 5000
    n = 20_000
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    expected = model.log_prob(every).exp() * n
    seen = torch.bincount(model.sample(n) @ torch.tensor([3, 1]), minlength=9)
    assert ((seen - expected) ** 2 / expected).sum() < 26.1


def test_bad_configurations_name_the_remedy():
    assert highest_order(256) == 7 and highest_order(7) == 20
    with pytest.raises(ConfigError, match="1 to 7"):
        NGram(Tokens(8), NGramConfig(order=8))
    with pytest.raises(ConfigError, match="discount"):
        NGram(Tokens(8), NGramConfig(order=2, discount=1.5))


def test_suggest_grows_with_the_data():
    def order(n):
        x = torch.zeros(n, 100, dtype=torch.int64)
        return ENTRY.suggest(Tokens(100), Rows(x, None, torch.arange(n)), 60.0).order

    assert 1 <= order(1) < order(100) < order(10_000) <= 7
