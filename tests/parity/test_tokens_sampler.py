"""Filters of next-token logits against transformers' warpers, and the loop that writes texts."""

from __future__ import annotations

import pytest
import torch

from protea.errors import ConfigError, DataError
from protea.models.autoregressive.transformer import TransformerConfig, build
from protea.rng import Streams
from protea.samplers.tokens import generate, greedy, min_p, pick, temperature, top_k, top_p, warp
from protea.spaces import Tokens

LOGITS = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)) * 3


def warpers():
    return pytest.importorskip("transformers.generation.logits_process")


@pytest.mark.parametrize(
    ("ours", "name", "values"),
    [
        (temperature, "TemperatureLogitsWarper", (0.3, 1.7)),
        (top_k, "TopKLogitsWarper", (1, 7, 50, 80)),
        (top_p, "TopPLogitsWarper", (0.05, 0.6, 0.99)),
        (min_p, "MinPLogitsWarper", (0.01, 0.2, 1.0)),
    ],
)
def test_filters_equal_transformers(ours, name, values, evidence):
    different = 0
    for value in values:
        got, want = ours(LOGITS, value), getattr(warpers(), name)(value)(None, LOGITS)
        different += int((got != want).sum())
    assert (ours(LOGITS, values[0]) != LOGITS).any()
    claim = ours.__name__.replace("_", "-")
    evidence(id="AR-01", system="Token samplers", claim=claim, reference=f"transformers {name}", reached=different,
             tolerance=0, unit="different logits of 3,200")  # fmt: skip


def test_filters_compose_in_the_order_of_transformers():
    want = LOGITS
    w = warpers()
    for step in (
        w.TemperatureLogitsWarper(0.7),
        w.TopKLogitsWarper(20),
        w.TopPLogitsWarper(0.9),
        w.MinPLogitsWarper(0.02),
    ):
        want = step(None, want)
    assert torch.equal(warp(LOGITS, 0.7, 20, 0.9, 0.02), want)
    assert torch.equal(greedy(LOGITS), LOGITS.argmax(-1))


def test_picks_follow_the_distribution():
    """Chi-squared of 50,000 picks of 5 tokens, one of them removed: below the 99.9 % quantile of 3 degrees."""
    p, n = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2]), 50_000
    seen = torch.bincount(pick(p.log().expand(n, 5), Streams(1, n).uniform(1)[:, 0]), minlength=5)
    assert seen[2] == 0
    keep = p > 0
    assert ((seen - n * p)[keep] ** 2 / (n * p)[keep]).sum() < 16.3


def model():
    return build(Tokens(12, vocabulary=7, tokenizer="ids"), TransformerConfig(2, 16, 2, 1, 24, context=20))


def test_a_longer_text_begins_like_a_shorter_one():
    net, prompt = model(), torch.tensor([[7, 1, 2], [7, 0, 0]])
    options = {"temperature": 1.3, "top_k": 5, "top_p": 0.95, "min_p": 0.01, "rng": 3}
    long, short = generate(net, prompt, 12, **options), generate(net, prompt, 5, **options)
    assert long.shape == (2, 12) and torch.equal(long[:, :5], short)
    assert generate(net, prompt, 0).shape == (2, 0)
    assert torch.equal(long, generate(net, prompt, 12, **options))
    assert not torch.equal(long, generate(net, prompt, 12, **(options | {"rng": 4})))


def test_bad_requests_name_the_remedy():
    net, prompt = model(), torch.tensor([[7]])
    with pytest.raises(DataError, match="prompt"):
        generate(net, prompt[:, :0], 3)
    with pytest.raises(DataError, match="context of 20"):
        generate(net, prompt, 25)
    for wrong in ({"temperature": -1}, {"max_new_tokens": -1}, {"top_k": 0}, {"top_p": 0.0}, {"min_p": 1.5}):
        with pytest.raises(ConfigError):
            generate(net, prompt, **({"max_new_tokens": 3} | wrong))
