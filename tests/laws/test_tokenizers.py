"""Tokenizers in the space of text: units, JSON, bad input, and a run that samples strings."""

from __future__ import annotations

import json
import math

import pytest
import torch

import protea
from protea.data.open import open_data
from protea.errors import ConfigError, DataError
from protea.evaluation.likelihood import likelihood
from protea.models.autoregressive.ngram import NGram, NGramConfig
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Tokens, space_from_json
from protea.spaces.chat import Chat
from protea.spaces.tokenizers import Bytes, Characters, Ids, Specials, Tokenizer, make_tokenizer, train
from protea.spaces.tokenizers.characters import CHARACTERS
from protea.spaces.tokenizers.folder import read_folder, write_folder

TEXT = ["the cat sat on the mat and the dog sat on the cat. " * 8, "Größe 12345, to be or not to be? " * 8]
TOKENIZERS = {
    "bytes": Bytes(), "chars": Characters.train(TEXT), "chars:9": Characters.train(TEXT, 9),
    "bpe": train("bpe", TEXT, 290), "wordpiece": train("wordpiece", TEXT, 330), "unigram": train("unigram", TEXT, 280),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_space_round_trip(name):
    t = TOKENIZERS[name]
    space = Tokens(5, tokenizer=t, chat=Chat("{{ 1 }}", (3,)))
    assert space.vocabulary == t.vocabulary
    assert space_from_json(json.loads(json.dumps(space.to_json()))) == space
    x = space.encode(TEXT)
    if name != "chars:9":
        assert b"".join(space.decode_bytes(x)) == "".join(TEXT).encode()[: sum(map(len, space.decode_bytes(x)))]
    assert all(isinstance(s, str) for s in space.decode(x))


def test_runs_saved_before_tokenizers_open():
    old = {"kind": "tokens", "length": 4, "vocabulary": 256, "tokenizer": "bytes", "classes": []}
    space = space_from_json(old)
    assert space == Tokens(4) and space.to_json() == old
    assert Tokens(4, tokenizer=Bytes()) == Tokens(4)
    assert Tokens(4, tokenizer=Ids(9), vocabulary=9) == Tokens(4, 9, "ids")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bits_per_byte_is_a_ratio_of_totals(name, evidence):
    """A uniform model of V tokens costs T log2 V bits a block, whatever the block's bytes (counted here from text)."""
    t = TOKENIZERS[name]
    space = Tokens(6, tokenizer=t)
    model = NGram(space, NGramConfig(order=1))
    x = space.encode(TEXT)
    found = likelihood(model, Rows(x, None, torch.arange(len(x))))
    assert found is not None and found.unit == "bits per byte" and found.exactness == "exact"
    bits, size = x.numel() * math.log2(space.vocabulary), sum(len(b) for b in space.decode_bytes(x))
    if name == "chars:9":  # an unknown character counts one byte, and is one of those left
        unknown = int((x == 9).sum())
        bits += unknown * math.log2(CHARACTERS - 9)
        size -= unknown * len("\ufffd".encode()) - unknown
    evidence(
        id="AR-40", system="bits per byte", claim=f"{name}: uniform model, total bits over total bytes",
        reference="closed form", reached=abs(found.figure.value - bits / size), tolerance=1e-9,
    )  # fmt: skip


def test_bits_per_byte_compares_tokenizers():
    """The same distribution over text through two tokenizers has the same bits per byte: a model that knows each block.

    p(text) = 1/2 for two texts: one bit a block, whatever the ids."""
    figures = []
    for name in ("bytes", "chars", "bpe", "wordpiece", "unigram"):
        t = TOKENIZERS[name]
        texts = ["the cat sat. the dog", "on the mat. the cat."]
        for text in texts:
            space = Tokens(len(t.encode(text)), tokenizer=t)
            found = space.measure(torch.tensor([-math.log(2)], dtype=torch.float64), space.encode(text))
            figures.append(found.values.item())
    assert figures == pytest.approx([1 / 20] * 10, rel=1e-12)


def test_unknown_characters_are_charged():
    """An unknown character costs what one of all the others does."""
    t = Characters.train(["ab"])
    size, unsaid = t.sizes(torch.tensor([t.encode("a汉")]))
    assert size.tolist() == [2] and unsaid.item() == pytest.approx(math.log(CHARACTERS - 2))
    others = sum(1 for c in range(0x110000) if not 0xD800 <= c < 0xE000) + 128
    assert others == CHARACTERS


def test_special_tokens_stand_for_no_text():
    t = train("bpe", TEXT, 300, specials=Specials(bos="<s>", eos="</s>"))
    ids = [t.id("<s>"), *t.encode("the cat"), t.id("</s>")]
    assert t.decode(ids) == "the cat" and t.role("bos") == 0 and t.role("pad") is None
    assert t.decode(t.encode("a</s>b")) == "a</s>b" and t.id("</s>") not in t.encode("a</s>b")
    assert t.id("</s>") in t.encode_marked("a</s>b")
    space = Tokens(len(ids), tokenizer=t)
    assert space.measure(torch.zeros(1), torch.tensor([ids])).weights.tolist() == [7]


def test_a_padded_vocabulary_is_allowed():
    t = TOKENIZERS["bpe"]
    space = Tokens(3, vocabulary=512, tokenizer=t)
    x = torch.tensor([[*t.encode("the")[:1], 511, 400]])
    assert space.decode(x) == [t.decode(t.encode("the")[:1])]
    assert space.measure(torch.tensor([-1.0]), x).weights.tolist() == [len(t.decode_bytes(t.encode("the")[:1]))]


@pytest.mark.parametrize(
    ("act", "error", "match"),
    [
        (lambda: TOKENIZERS["bpe"].decode([290]), DataError, "no token 290"),
        (lambda: TOKENIZERS["bytes"].decode([-1]), DataError, "no token -1"),
        (lambda: TOKENIZERS["chars"].decode([10**6]), DataError, "no token"),
        (lambda: TOKENIZERS["bpe"].id("catt"), DataError, "no token 'catt'"),
        (lambda: TOKENIZERS["bpe"].encode("a\ud800"), DataError, "UTF-8"),
        (lambda: Ids(4).encode("a"), DataError, "no text"),
        (lambda: train("bpe", TEXT, 255), DataError, "too small"),
        (lambda: train("wordpiece", TEXT, 256), DataError, "too small"),
        (lambda: train("bpe", [], 300), DataError, "no text"),
        (lambda: train("bpe", [b"\xff"], 300), DataError, "no text"),
        (lambda: train("bqe", TEXT, 300), ConfigError, "Did you mean bpe"),
        (lambda: train("bpe", TEXT, 300, rule="lama3"), ConfigError, "llama3"),
        (lambda: Characters.train([]), DataError, "no text"),
        (lambda: make_tokenizer("bpe", TEXT), ConfigError, "bpe:512"),
        (lambda: make_tokenizer("bpe:x", TEXT), ConfigError, "cannot be read"),
        (lambda: make_tokenizer("bpe:300:lama3", TEXT), ConfigError, "llama3"),
        (lambda: make_tokenizer("unigrm:300", TEXT), ConfigError, "unigram"),
        (lambda: Tokens(4, tokenizer="bpe"), DataError, "no tokenizer"),
        (lambda: Tokens(4, vocabulary=100, tokenizer=TOKENIZERS["bpe"]), DataError, "does not hold"),
        (lambda: Tokens(4, tokenizer="ids"), DataError, "vocabulary"),
        (lambda: Tokens(64, tokenizer=TOKENIZERS["bpe"]).encode("short"), DataError, "tokens, too few"),
    ],
)
def test_bad_input(act, error, match):
    with pytest.raises(error, match=match):
        act()


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        read_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(DataError, match="no SentencePiece model"):
        read_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Hologram"}}')
    with pytest.raises(DataError, match="cannot be read"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="no text"):
        write_folder(tmp_path / "out", Ids(4))


@pytest.fixture
def book(tmp_path):
    lines = [f"Number {i}: the cat sat on mat {i * 7919 % 1000}, not on the dog." for i in range(300)]
    (tmp_path / "book.txt").write_text("\n\n".join(lines))
    return tmp_path / "book.txt"


def test_tokenizers_learn_from_the_training_part_alone(book):
    """A character that only held-out text has is unknown."""
    book.write_text(book.read_text().replace("Number 7:", "Number 7Ж:"))
    seen = set()
    for seed in range(20):
        data = open_data(book, block=8, tokenizer="chars", seed=seed)
        learnt = "Ж" in data.space.tokenizer.charset
        held = "".join(data.space.decode(data.validation.x) + data.space.decode(data.holdout.x))
        assert learnt != ("\ufffd" in held)
        seen.add(learnt)
    assert seen == {True, False}


def test_a_run_keeps_its_tokenizer(book, tmp_path):
    """Fit, load, sample strings, score, evaluate: all with the tokenizer that was learnt."""
    run = protea.fit(
        "ngram", book, budget="1epochs", out=tmp_path / "run", tokenizer="bpe:300", block=16, progress="none"
    )
    loaded = protea.load(tmp_path / "run")
    space = loaded.space
    assert isinstance(space, Tokens) and isinstance(space.tokenizer, Tokenizer) and space.vocabulary == 300
    texts = loaded.sample(4)
    assert texts == run.sample(4) and all(isinstance(t, str) for t in texts) and any("the" in t for t in texts)
    scores = loaded.score("Number 5: the cat sat on mat 17, not on the dog. " * 4)
    assert scores.unit == "bits per byte" and float(scores.values.mean()) < 3
    dataset = loaded.data()
    assert dataset.space == space
    moved = protea.fit("ngram", dataset, budget="1epochs", out=tmp_path / "again", progress="none")
    assert moved.data().fingerprint == dataset.fingerprint
    row = loaded.evaluate()
    assert row["likelihood"]["unit"] == "bits per byte"
    assert 0.1 < row["likelihood"]["value"] < 3
    assert loaded.model.sample(2, rng=Streams(0, 2)).shape == (2, 16)


def test_command_line(book, tmp_path, monkeypatch, capsys):
    from protea.cli import main

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["protea", *arguments])
        try:
            main()
        except SystemExit as stop:
            said = capsys.readouterr()
            return int(stop.code or 0), said.out, said.err
        raise AssertionError("the command did not end")

    arguments = ("--tokenizer", "chars", "--budget", "1epochs", "--json", "--option", "block=16", "--out")
    code, out, _ = run("fit", "ngram", str(book), *arguments, str(tmp_path / "run"))
    assert code == 0 and json.loads(out)["space"] == "tokens"
    assert protea.load(tmp_path / "run").space.codec.kind == "chars"
    code, _, err = run("fit", "ngram", "digits", "--tokenizer", "chars")
    assert code == 2 and "does not apply" in err
    code, _, err = run("fit", "ngram", str(book), "--tokenizer", "bpe:200", "--out", str(tmp_path / "no"))
    assert code == 2 and "too small" in err and not (tmp_path / "no").exists()
