"""The n-gram against nltk's interpolated Kneser-Ney, and against sums that must be one."""

from __future__ import annotations

import itertools

import pytest
import torch

from protea.models.autoregressive.ngram import NGram, NGramConfig
from protea.spaces import Tokens

V, T = 5, 12


def corpus(rows: int = 40) -> torch.Tensor:
    """Texts of a first-order Markov chain with a skewed transition table."""
    g = torch.Generator().manual_seed(3)
    table = torch.rand(V, V, generator=g) ** 4
    x = torch.randint(0, V, (rows, T), generator=g)
    for t in range(1, T):
        x[:, t] = torch.multinomial(table[x[:, t - 1]], 1, generator=g)[:, 0]
    return x


def learnt(order: int, discount: float | None = None, rows: int = 40) -> NGram:
    model = NGram(Tokens(T, vocabulary=V, tokenizer="ids"), NGramConfig(order, discount))
    model.maximise(model.expect(corpus(rows)))
    return model


@pytest.mark.parametrize("order", [2, 3, 4])
def test_probabilities_equal_nltk(order, evidence):
    lm = pytest.importorskip("nltk.lm")
    d = 0.35
    x = corpus()
    theirs = lm.KneserNeyInterpolated(order, discount=d)
    texts = [["<s>", *map(str, row.tolist())] for row in x]
    grams = [
        [tuple(t[max(i - n + 1, 0) : i + 1]) for i in range(1, len(t)) for n in range(1, order + 1) if n <= i + 1]
        for t in texts
    ]
    theirs.fit(grams, vocabulary_text=list(map(str, range(V))))
    estimator = theirs.estimator

    def smoothed(word: str) -> float:  # nltk stops at unigrams; ours go on to the uniform
        share = [estimator._continuation_counts(str(w)) for w in range(V)]
        count, total = estimator._continuation_counts(word)
        return max(count - d, 0) / total + d * sum(c > 0 for c, _ in share) / total / V

    estimator.unigram_score = smoothed
    ours = learnt(order, d)

    worst = 0.0
    for context in itertools.product(range(V), repeat=order - 1):
        p = ours.logits(torch.tensor([context]))[0, -1].exp()
        q = [theirs.score(str(w), tuple(map(str, context))) for w in range(V)]
        worst = max(worst, (p - torch.tensor(q, dtype=torch.float64)).abs().max().item())
    evidence(
        id="AR-01", system="Kneser-Ney n-gram", claim=f"next-token probabilities, order {order}",
        reference="nltk.lm.KneserNeyInterpolated", reached=worst, tolerance=1e-9, unit="max abs",
    )  # fmt: skip


def test_all_texts_sum_to_one(evidence):
    x = torch.cartesian_prod(*[torch.arange(3)] * 5)
    worst = 0.0
    for order in (1, 2, 4, 7):
        model = NGram(Tokens(5, vocabulary=3, tokenizer="ids"), NGramConfig(order))
        assert torch.allclose(model.log_prob(x).exp(), torch.full((243,), 3.0**-5, dtype=torch.float64))
        model.maximise(model.expect(x[torch.randperm(243)[:30]]))
        worst = max(worst, abs(model.log_prob(x).exp().sum().item() - 1))
        assert (model.log_prob(x) > -torch.inf).all()
    evidence(
        id="AR-01", system="Kneser-Ney n-gram", claim="probabilities of all 243 texts sum to 1",
        reference="closed form", reached=worst, tolerance=1e-12, unit="abs",
    )  # fmt: skip


def test_log_prob_is_the_sum_of_logits():
    model, x = learnt(4), corpus()[:7]
    begin = torch.full((7, 1), V)
    logits = model.logits(torch.cat((begin, x[:, :-1]), 1))
    assert torch.allclose(logits.exp().sum(-1), torch.ones(7, T, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(model.log_prob(x), logits.gather(2, x[..., None])[..., 0].sum(1), atol=1e-10)


def test_estimated_discounts_are_chen_and_goodmans():
    """Four n-grams seen once, two twice, one thrice, one four times: Y = 1/2, D = 1/2, 5/4, 1 by hand."""
    x = torch.tensor([[0], [1], [2], [3], [4], [4], [5], [5], [6], [6], [6], [7], [7], [7], [7]])
    model = NGram(Tokens(1, vocabulary=10, tokenizer="ids"), NGramConfig(1))
    model.maximise(model.expect(x))
    assert model.levels[0].discounts.tolist() == [0.0, 0.5, 1.25, 1.0]
    freed = 4 * 0.5 + 2 * 1.25 + 2 * 1.0
    kept = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.75, 0.75, 2.0, 3.0, 0.0, 0.0], dtype=torch.float64)
    want = kept / 15 + freed / 15 / 10
    assert torch.allclose(model.log_prob(torch.arange(10)[:, None]).exp(), want, atol=1e-14)


def test_texts_open_with_their_own_counts():
    """Openings cannot be preceded, so they count occurrences: 'a' opens three texts of four, by hand."""
    x = torch.tensor([[0, 1], [0, 1], [0, 2], [1, 0]])
    model = NGram(Tokens(2, vocabulary=3, tokenizer="ids"), NGramConfig(3, discount=0.5))
    model.maximise(model.expect(x))
    unigram = {0: (2 - 0.5) / 5, 1: (2 - 0.5) / 5, 2: (1 - 0.5) / 5}  # left neighbours: {begin, 1}, {begin, 0}, {0}
    p1 = {w: a + 0.5 * 3 / 5 / 3 for w, a in unigram.items()}
    want = {0: 2.5 / 4, 1: 0.5 / 4, 2: 0.0}  # after begin-of-text: counts 3, 1, 0
    got = model.logits(torch.tensor([[3]]))[0, 0].exp()
    for w in range(3):
        assert got[w].item() == pytest.approx(want[w] + 0.5 * 2 / 4 * p1[w], abs=1e-12)
