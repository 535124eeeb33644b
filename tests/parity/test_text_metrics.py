"""Text figures agree with nltk and with counting by hand."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from protea.evaluation.text import ReferenceNGram, bits_per_byte_ngram, bleu, distinct_n, self_bleu, words
from protea.spaces import Tokens

LINES = [
    "the cat sat on the mat and the dog sat on the cat",
    "the dog ran",
    "a cat and a dog sat down on the mat",
    "to be or not to be that is the question",
    "the cat sat on the mat",
]


@pytest.fixture(scope="module")
def nltk_bleu():
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    return lambda refs, hyp: sentence_bleu(refs, hyp, smoothing_function=SmoothingFunction().method1)


def test_bleu_and_self_bleu_agree_with_nltk(nltk_bleu, evidence):
    texts = [line.split() for line in LINES]
    theirs = [nltk_bleu(texts[:i] + texts[i + 1 :], t) for i, t in enumerate(texts)]
    ours = [bleu(texts[:i] + texts[i + 1 :], t) for i, t in enumerate(texts)]
    error = max(*(abs(a - b) for a, b in zip(ours, theirs)), abs(self_bleu(texts).value - float(np.mean(theirs))))
    evidence(
        id="EV-11", system="BLEU and self-BLEU", claim="agree with nltk", reference="nltk sentence_bleu, smoothing 1",
        reached=error, tolerance=1e-12, unit="max abs",
    )  # fmt: skip
    assert self_bleu([texts[0]] * 4).value == pytest.approx(1.0)


def test_distinct_counts_bigrams():
    texts = [line.split() for line in LINES]
    grams = Counter(g for t in texts for g in itertools.pairwise(t))
    assert distinct_n(texts).value == pytest.approx(len(grams) / sum(grams.values()))


def test_ngram_is_witten_bell_by_hand(evidence):
    train = [0, 1, 0, 2, 0, 1, 1]
    model = ReferenceNGram(torch.tensor([train]), vocabulary=3, order=2)
    uni = {w: (c + 3 / 3) / (7 + 3) for w, c in Counter(train).items()}  # 3 kinds of token in 7
    after_0 = {1: (2 + 2 * uni[1]) / 5, 2: (1 + 2 * uni[2]) / 5, 0: 2 * uni[0] / 5}  # 0 is followed by 1, 2, 1
    expected = -(math.log2(uni[0]) + math.log2(after_0[2])) / 2
    reached = abs(float(model.bits(torch.tensor([[0, 2]]))) - expected)
    evidence(
        id="EV-11", system="Reference n-gram", claim="Witten-Bell by hand", reference="closed form",
        reached=reached, tolerance=1e-12, unit="bits",
    )  # fmt: skip


def test_ngram_probabilities_sum_to_one():
    g = np.random.default_rng(0)
    model = ReferenceNGram(torch.from_numpy(g.integers(0, 4, (20, 12))), vocabulary=4)
    context = torch.from_numpy(g.integers(0, 4, (30, 6)))
    for t in (0, 2, 5):
        total = 0.0
        for w in range(4):
            row = context.clone()
            row[:, t] = w
            total = total + 2.0 ** model.log2_prob(row)[:, t]
        np.testing.assert_allclose(total, 1.0, atol=1e-12)


def test_ngram_prefers_real_text_to_shuffled_and_to_noise():
    text = (" ".join(LINES) + " ") * 30
    data = torch.tensor(list(text.encode()), dtype=torch.int64)[: 60 * 80].reshape(-1, 80)
    model = ReferenceNGram(data[:40], 256)
    held, shuffled = data[40:], data[40:][:, torch.randperm(80)]
    noise = torch.randint(0, 256, held.shape)
    costs = [bits_per_byte_ngram(x, model).value for x in (held, shuffled, noise)]
    assert costs[0] < 2 < costs[1] < costs[2]
    assert words(held[:1], Tokens(held.shape[1]))[0][0] in text.encode()
