"""The transformer keeps the contract of a normalised next-token model."""

from __future__ import annotations

import pytest
import torch

from protea.errors import DataError, NotSupported
from protea.models.autoregressive.language import LanguageModel
from protea.models.autoregressive.transformer import ENTRY, TransformerConfig, build
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Tokens

SMALL = TransformerConfig(n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_ff=24, context=16)


def made(length: int = 8, vocabulary: int = 3, classes: tuple[str, ...] = ()) -> LanguageModel:
    model = build(Tokens(length, vocabulary=vocabulary, tokenizer="ids", classes=classes), SMALL)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)  # far from uniform
    return model


@torch.no_grad()
def test_probabilities_of_all_texts_sum_to_one(evidence):
    every = torch.cartesian_prod(*[torch.arange(2)] * 10)
    worst = abs(made(10, 2).log_prob(every).double().exp().sum().item() - 1)
    evidence(id="AR-01", system="Autoregressive factorisation", claim="probabilities of all 1,024 texts sum to 1",
             reference="closed form", reached=worst, tolerance=1e-5, unit="abs")  # fmt: skip


@torch.no_grad()
def test_logits_are_causal():
    model, x = made(), torch.randint(0, 3, (2, 8))
    before = model.logits(x)
    for j in range(8):
        changed = x.clone()
        changed[:, j] = (x[:, j] + 1) % 3
        after = model.logits(changed)
        assert torch.equal(after[:, :j], before[:, :j])
        assert (after[:, j] != before[:, j]).any(-1).all()


@torch.no_grad()
def test_parallel_log_prob_equals_one_token_at_a_time(evidence):
    model, x = made(), torch.randint(0, 3, (4, 8))
    cache, token, total = model.new_cache(4, 8), torch.full((4, 1), 3), torch.zeros(4)
    for t in range(8):
        p = model.logits(token, cache)[:, -1].log_softmax(-1)
        token = x[:, t : t + 1]
        total += p.gather(1, token)[:, 0]
    evidence(id="AR-04", system="Decoder-only transformer", claim="parallel log-likelihood equals sequential",
             reference="step by step", reached=(model.log_prob(x) - total).abs().max().item(), tolerance=1e-5,
             unit="nats")  # fmt: skip


@torch.no_grad()
def test_cached_logits_equal_uncached_at_every_split(evidence):
    model, x = made(16), torch.randint(0, 3, (2, 16))
    whole, worst = model.logits(x), 0.0
    for a in range(1, 15):
        for b in range(a + 1, 16):
            cache = model.new_cache(2, 16)
            parts = torch.cat([model.logits(x[:, i:j], cache) for i, j in ((0, a), (a, b), (b, 16))], 1)
            worst = max(worst, (parts - whole).abs().max().item())
            assert cache.length == 16
    evidence(id="AR-05", system="KV cache", claim="cached logits equal uncached at every pair of splits",
             reference="uncached", reached=worst, tolerance=1e-5, unit="max abs")  # fmt: skip


def test_gradients_reach_every_parameter():
    for tie in (False, True):
        space = Tokens(8, vocabulary=3, tokenizer="ids")
        model = build(space, TransformerConfig(2, 16, 4, 2, 24, 16, tie=tie))
        model.log_prob(torch.randint(0, 3, (16, 8))).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_samples_do_not_depend_on_the_batch():
    model = made()
    x = model.sample(8, rng=5)
    assert torch.equal(x, torch.cat([model.sample(1, rng=Streams(5, [i])) for i in range(8)]))
    assert not torch.equal(x, model.sample(8, rng=6))


@torch.no_grad()
def test_samples_follow_log_prob():
    """Chi-squared of 20,000 draws of 3 binary tokens over 8 texts: below the 99.9 % quantile of 7 degrees."""
    model, n = made(3, 2), 20_000
    model.block = 2000
    every = torch.cartesian_prod(*[torch.arange(2)] * 3)
    expected = model.log_prob(every).exp() * n
    seen = torch.bincount(model.sample(n) @ torch.tensor([4, 2, 1]), minlength=8)
    assert ((seen - expected) ** 2 / expected).sum() < 24.3


@torch.no_grad()
def test_labels_are_what_a_text_begins_with():
    model, every = made(4, 2, ("a", "b")), torch.cartesian_prod(*[torch.arange(2)] * 4)
    model.initialise(Rows(every, (torch.arange(16) < 4).long(), torch.arange(16)))
    assert model.class_prior.tolist() == [0.75, 0.25]
    given = torch.stack([model.log_prob(every, torch.full((16,), y)) for y in (0, 1)])
    assert torch.allclose(given.exp().sum(1), torch.ones(2), atol=1e-5)
    assert (given[0] - given[1]).abs().max() > 1e-2
    mixed = (model.class_prior[:, None] * given.exp()).sum(0).log()
    assert torch.allclose(model.log_prob(every), mixed.to(given), atol=1e-5)
    labels = torch.tensor([0, 1] * 4)
    x = model.sample(8, labels, rng=1)
    assert torch.equal(x[3:4], model.sample(1, labels[3:4], rng=Streams(1, [3])))
    with pytest.raises(NotSupported, match="classes"):
        made().sample(2, torch.zeros(2, dtype=torch.int64))


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(DataError, match=r"17 tokens.*context of 16"):
        made(16).logits(torch.zeros(1, 17, dtype=torch.int64))


def test_suggested_size_grows_with_the_budget():
    space, x = Tokens(256), torch.zeros(4000, 256, dtype=torch.int64)
    sizes = []
    for seconds in (1, 60, 600, 36_000):
        config = ENTRY.suggest(space, Rows(x, None, torch.arange(4000)), float(seconds))
        assert isinstance(config, TransformerConfig) and config.d_model % config.n_heads == 0
        sizes.append(sum(p.numel() for p in ENTRY.build(space, config).parameters()))
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[3]
