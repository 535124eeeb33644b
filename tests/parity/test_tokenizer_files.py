"""Tokenizers of older folders: SentencePiece's models against its own program, GPT-2's files against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from protea.errors import DataError
from protea.interop.huggingface import from_pretrained, save_pretrained
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.rng import Streams
from protea.spaces import Tokens
from protea.spaces.tokenizers import make_tokenizer, train
from protea.spaces.tokenizers.folder import read_folder
from protea.spaces.tokenizers.sentencepiece import fields

TEXT = """the cat sat on a mat while dogs ran to their own house in 1984 , 12345 times ! Größe naïve café 汉字
don't we'll it's THE Cat re-read 3.14 foo_bar x=y; http://a.b/c?d=e 😀 ﬁne ﾊﾝ ① Å"""
WORDS = TEXT.split()
MARKED = [
    "<s>",
    "</s>",
    "<unk>",
    "<sep>",
    "<0x41>",
    "▁",
    "a<s>b",
    "<sep><sep>",
    "cat<sep> sat <sep>",
    "☃",
    "\t",
    "\n\n",
]


def texts(n: int = 400, seed: int = 0) -> list[str]:
    """Words in any order between blanks of all kinds, with marks among them."""
    gaps = [" ", " ", " ", "  ", "\n", "", " \t "]
    u = Streams(seed, n).uniform(25)
    out = []
    for row in u.tolist():
        parts = []
        for a, b in zip(row[1::2], row[2::2]):
            pool = MARKED if a > 0.93 else WORDS
            parts += [pool[int(a * 997) % len(pool)], gaps[int(b * len(gaps))]]
        out.append(("  " if row[0] < 0.1 else "") + "".join(parts[: int(row[0] * 25)]))
    return out


CORPUS = [line for line in texts(2000, seed=7) if line.strip()]
SETTINGS = {
    "unigram": {"model_type": "unigram", "vocab_size": 130},
    "unigram, as T5": {"model_type": "unigram", "vocab_size": 130, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "unigram, byte fallback": {"model_type": "unigram", "vocab_size": 390, "byte_fallback": True},
    "bpe": {"model_type": "bpe", "vocab_size": 150},
    "bpe, as Llama 2": {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "split_digits": True,
                        "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "bpe, as Gemma": {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "add_dummy_prefix": False,
                      "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
                      "user_defined_symbols": ["<sep>"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A function that trains and keeps a SentencePiece model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("models")

    def made(name: str) -> Path:
        prefix = folder / name.replace(",", "").replace(" ", "-")
        if not prefix.with_suffix(".model").is_file():
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(CORPUS), model_prefix=str(prefix), character_coverage=0.98, minloglevel=2,
                num_threads=1, hard_vocab_limit=False, **SETTINGS[name],
            )  # fmt: skip
        return prefix.with_suffix(".model")

    return made


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_are_sentencepieces(name, model_file, evidence):
    import sentencepiece

    file = model_file(name)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_file=str(file)), read_folder(file).tokenizer
    told = texts()
    found, want = ours.encode_batch(told), theirs.encode(told)
    wrong = [(t, a, b) for t, a, b in zip(told, found, want) if a != b]
    assert not wrong, (len(wrong), wrong[0])
    assert ours.vocabulary == theirs.vocab_size()
    known = [
        ids for ids in want if theirs.unk_id() not in ids
    ]  # it writes a sign for unknown pieces, which say nothing
    assert len(known) > 100
    back = [(ours.decode(ids), theirs.decode(ids)) for ids in known]
    evidence(id="AR-40", system="SentencePiece models", claim=f"ids and text of {len(told)} texts, {name}",
             reference="sentencepiece", reached=len(wrong) + sum(a != b for a, b in back), tolerance=0,
             unit="texts")  # fmt: skip
    roles = {"bos": theirs.bos_id(), "eos": theirs.eos_id(), "unk": theirs.unk_id(), "pad": theirs.pad_id()}
    assert {role: ours.role(role) for role in roles} == {r: i if i >= 0 else None for r, i in roles.items()}
    assert set(theirs.encode("a<s>b</s>")).isdisjoint({ours.role("bos"), ours.role("eos")})


@pytest.mark.parametrize("name", ["bpe, as Llama 2", "bpe, as Gemma"])
def test_ids_are_those_of_transformers(name, model_file, tmp_path, evidence):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("google.protobuf")
    file = model_file(name)
    (tmp_path / "tokenizer.model").write_bytes(file.read_bytes())
    slow = transformers.LlamaTokenizer if "Llama" in name else transformers.GemmaTokenizer
    theirs = slow.from_pretrained(tmp_path)
    ours = read_folder(tmp_path).tokenizer
    # of spaces that begin a text it takes one, unlike SentencePiece; and it looks for special tokens in text
    told = [t for t in texts() if not any(m in t for m in MARKED) and t == t.lstrip(" ")]
    assert len(told) > 90
    wrong = sum(ours.encode(t) != theirs.encode(t, add_special_tokens=False) for t in told)
    evidence(id="AR-40", system="SentencePiece models", claim=f"ids of {len(told)} texts, {name}",
             reference=f"transformers.{slow.__name__}", reached=wrong, tolerance=0, unit="texts")  # fmt: skip


def gpt2_folder(folder: Path, rule: str = "gpt2", **config) -> None:
    """GPT-2's files of a tokenizer trained here, with an end of text and a token told beside."""
    model = train("bpe", CORPUS, 400, rule=rule).definition()["model"]
    vocab = {**model["vocab"], "<|endoftext|>": 400}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n")
    (folder / "added_tokens.json").write_text('{"<sep>": 401}')
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("rule", "config"),
    [
        ("gpt2", {}),
        ("gpt2", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
        ("digits", {"tokenizer_class": "Qwen2Tokenizer"}),
    ],
)
def test_vocab_and_merges_are_read_as_by_transformers(rule, config, tmp_path, evidence):
    transformers = pytest.importorskip("transformers")
    gpt2_folder(tmp_path, rule, **config)
    made = getattr(transformers, config.get("tokenizer_class", "GPT2Tokenizer"))
    theirs = made.from_pretrained(tmp_path)
    ours = read_folder(tmp_path).tokenizer
    told = [*texts(), "e\u0301 ﬁ  x", "1234567 12", "\u2028 \x00"]
    found = ours.encode_batch(told)
    want = [theirs.encode(t, add_special_tokens=False, split_special_tokens=True) for t in told]
    wrong = [(t, a, b) for t, a, b in zip(told, found, want) if a != b]
    assert not wrong, (len(wrong), wrong[0])
    evidence(id="AR-40", system="vocab.json and merges.txt", claim=f"ids of {len(told)} texts, {config}",
             reference=f"transformers.{made.__name__}", reached=len(wrong), tolerance=0, unit="texts")  # fmt: skip
    assert ours.role("eos") == 400 and ours.id("<sep>") == 401
    assert ours.encode("<|endoftext|>") != [400] and ours.encode_marked("<|endoftext|>") == [400]


@torch.no_grad()
def test_a_folder_with_either_is_imported(model_file, tmp_path):
    """The tokenizer of an older folder travels with the model, and is written as tokenizer.json afterwards."""
    torch.manual_seed(0)
    for name in ("sp", "gpt2"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "gpt2":
            gpt2_folder(folder)
        space = Tokens(12, tokenizer=read_folder(model_file("bpe, as Llama 2") if name == "sp" else folder).tokenizer)
        model = language_model("llama", space, ARCHITECTURES["llama"].scaled(1, 16, 12))
        save_pretrained(model, folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / file).unlink()
        config = json.loads((folder / "config.json").read_text())
        del config["protea"]  # as others write it
        (folder / "config.json").write_text(json.dumps(config))
        if name == "sp":
            (folder / "tokenizer.model").write_bytes(model_file("bpe, as Llama 2").read_bytes())
        back = from_pretrained(folder)
        assert back.space.codec.encode_batch(CORPUS[:50]) == space.codec.encode_batch(CORPUS[:50])
        again = from_pretrained(save_pretrained(back, tmp_path / f"{name}2"))
        assert again.space.codec == back.space.codec
        assert make_tokenizer(str(folder), []) == back.space.codec


def test_damaged_files_are_refused(model_file, tmp_path):
    whole = model_file("bpe").read_bytes()
    for data in (whole[:-7], b"\xff" * 40, b"", whole[:200]):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(DataError, match=r"no SentencePiece model|no unknown piece"):
            read_folder(tmp_path)
    with pytest.raises(ValueError, match="kind 3"):
        list(fields(b"\x0b"))
    (tmp_path / "tokenizer.model").unlink()
    gpt2_folder(tmp_path, tokenizer_class="GPT3Tokenizer")
    with pytest.raises(DataError, match="Did you mean GPT2Tokenizer"):
        read_folder(tmp_path)
    gpt2_folder(tmp_path)
    (tmp_path / "merges.txt").write_text("q zz\n")
    with pytest.raises(DataError, match="has 'q zz'"):
        read_folder(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"only vocab\.json"):
        read_folder(tmp_path)
