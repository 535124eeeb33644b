"""The probes of tokenisation at reduced size: they run, and spelling points the way it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.slow
def test_bytes_spell_better_than_bpe(evidence):
    """At equal parameters and steps, on words that neither has seen."""
    from recipes.spelling import probe

    of_bytes, of_bpe = probe(steps=500, seeds=1, copies=10)
    assert abs(of_bytes["parameters"] / of_bpe["parameters"] - 1) < 0.01
    evidence(
        id="AR-41", system="spelling probe", at_least=True, unit="of held-out answers",
        claim="letters counted in held-out words: a model of bytes less one of BPE, 500 steps, 60,000 parameters",
        reference="the other tokenizer", reached=of_bytes["accuracy"][0] - of_bpe["accuracy"][0], tolerance=0.1,
    )  # fmt: skip
    assert of_bytes["accuracy"][0] > of_bytes["guess"] + 0.2


def test_questions_have_true_answers():
    from recipes.arithmetic import aligned, sums, written
    from recipes.spelling import questions

    for row in questions(["strawberry", "mississippi"], 6, 0):
        word = row[0].split()[0]
        letters = [row[0].split()[1], *(piece.strip() for piece in row[2::2])]
        assert [int(n) for n in row[1::2]] == [sum(c == letter for c in word) for letter in letters]
    pairs = sums(500, 6, 0)
    assert {len(str(a)) for a in pairs[:, 0].tolist()} == {1, 2, 3, 4, 5, 6}
    for (question, answer), (a, b) in zip(written(pairs), pairs.tolist()):
        assert question == f"{a}+{b}=" and int(answer) == a + b
    both = aligned(np.array([[123, 456], [123, 999], [123456, 1], [12, 34], [1234, 5]])).tolist()
    assert both == [True, False, True, True, False]


def test_every_row_is_tokenised_as_text_is():
    """Pieces are encoded apart; the text would be cut in the same places by each rule."""
    from protea.spaces.tokenizers import make_tokenizer
    from recipes.answers import tokenise
    from recipes.arithmetic import RULES, sums, written

    for rule in RULES.values():
        t = make_tokenizer(f"bpe:1500:{rule}", [f"{i:03d}\n" for i in range(1000)])
        rows = written(sums(50, 6, 1))
        data = tokenise(t, rows)
        for row, x, answer in zip(rows, data.x, data.answer):
            ids = t.encode("".join(row))
            assert x[: len(ids)].tolist() == ids
            assert t.decode(x[answer].tolist()) == row[1]
