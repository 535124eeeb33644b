"""Token shards on disk, packed rows, intra-document masks, exact accumulation by tokens, exact resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from protea.core import Batch, Phase
from protea.data.packing import PAD, best_fit, cut, documents_of, fit_rows
from protea.data.shards import TokenShards, tokenizer_hash, write_shards
from protea.errors import ConfigError, DataError
from protea.models.autoregressive.transformer import TransformerConfig, build
from protea.objectives.language import packed_nll, token_losses
from protea.rng import Streams
from protea.spaces import Tokens
from protea.training import Budget, Gradient, Saving, fit
from protea.training.language import BitsPerByte
from protea.training.schedule import constant

V, BEGIN = 11, 11  # ids 0 .. 10, and one that begins documents


def texts(n: int = 40, seed: int = 0) -> list[np.ndarray]:
    g = np.random.default_rng(seed)
    return [g.integers(0, V, g.integers(1, 30)) for _ in range(n)]


def shards(folder: Path, documents=None, **options) -> TokenShards:
    made = {"vocabulary": V, "begin": BEGIN, "tokenizer": "t", "shard_tokens": 100} | options
    return write_shards(folder, texts() if documents is None else documents, **made)


def model(context: int = 16):
    torch.manual_seed(0)
    config = TransformerConfig(n_layers=2, d_model=16, n_heads=2, n_kv_heads=2, d_ff=32, context=context)
    return build(Tokens(context, vocabulary=V, tokenizer="ids"), config)


# ---- shards


@pytest.mark.parametrize(("vocabulary", "dtype"), [(V, "uint16"), (65536, "uint16"), (100_000, "uint32")])
def test_round_trip(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    documents = [*texts(), np.array([vocabulary - 1])]
    held = shards(tmp_path, documents, vocabulary=vocabulary, begin=0)
    assert len(held.headers) > 3 and held.headers[0].dtype == dtype
    whole = np.concatenate([np.append(0, d) for d in documents])
    assert np.array_equal(held.read(0, len(held)), whole)
    edge = int(held.starts[1])
    assert np.array_equal(held.read(edge - 7, edge + 9), whole[edge - 7 : edge + 9])  # across two files
    for d, a, b in zip(documents, held.documents, held.documents[1:]):
        assert np.array_equal(held.read(int(a) + 1, int(b)), d)
    held.verify()
    plain = np.fromfile(tmp_path / "00000.bin", "<u2" if dtype == "uint16" else "<u4")  # no format but numbers
    assert np.array_equal(plain, whole[: len(plain)])


def test_a_stopped_writer_continues(tmp_path: Path) -> None:
    documents = texts()

    def breaking():
        yield from documents[:25]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards(tmp_path / "a", breaking())
    assert list((tmp_path / "a").glob("*.json")), "some shards were complete"
    (tmp_path / "a" / ".00009.bin.1.partial").write_bytes(b"half")
    shards(tmp_path / "a", documents)
    shards(tmp_path / "b", documents)
    names = sorted(p.name for p in (tmp_path / "b").iterdir())
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_bad_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no token shards"):
        TokenShards(tmp_path)
    held = shards(tmp_path)
    with pytest.raises(DataError, match="'t', not 'u'"):
        TokenShards(tmp_path, tokenizer="u")
    with pytest.raises(DataError, match="another tokenizer"):
        shards(tmp_path, tokenizer="u")
    with pytest.raises(DataError, match="outside 0"):
        shards(tmp_path / "x", [np.array([V])])
    with pytest.raises(DataError, match="Document 1 has no tokens"):
        shards(tmp_path / "y", [[1], []])
    with pytest.raises(DataError, match="asked for"):
        held.read(0, len(held) + 1)
    first = tmp_path / "00000.bin"
    data = bytearray(first.read_bytes())
    data[4] ^= 1
    first.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        TokenShards(tmp_path).verify()
    first.write_bytes(data[:-2])
    with pytest.raises(DataError, match="its header says"):
        TokenShards(tmp_path)
    (tmp_path / "00000.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError, match="no header"):
        TokenShards(tmp_path)


def test_tokenizer_hash_tells_apart() -> None:
    assert tokenizer_hash({"a": 1, "b": 2}) == tokenizer_hash({"b": 2, "a": 1}) != tokenizer_hash({"a": 1, "b": 3})


# ---- packing


def test_cut_covers_the_stream(tmp_path: Path) -> None:
    held = shards(tmp_path)
    rows = cut(held, 16)
    x = rows[torch.arange(len(rows))].x
    assert torch.equal(x[:, 1:].flatten(), torch.from_numpy(held.read(1, 1 + 16 * len(rows))))
    assert torch.equal(x[1:, 0], x[:-1, -1])
    with pytest.raises(ConfigError, match="do not fill"):
        cut(held, 10**6)


def test_best_fit_keeps_documents_whole(tmp_path: Path) -> None:
    held = shards(tmp_path)
    rows = best_fit(held, 32)  # every text fits
    x = rows[torch.arange(len(rows))].x
    found = []
    for row in x:
        row = row[row != PAD].numpy()
        found += [tuple(d.tolist()) for d in np.split(row, np.flatnonzero(row == BEGIN))[1:]]
    assert sorted(found) == sorted((BEGIN, *d.tolist()) for d in texts())
    assert float((x == PAD).float().mean()) < 0.1
    fewest = -(-sum(len(d) + 1 for d in texts()) // 33)
    assert len(rows) <= fewest * 11 / 9 + 1  # the bound of best-fit decreasing (Johnson 1974)
    plan = fit_rows(np.array([0, 100]), 9)  # a document longer than a row is cut into rows
    assert plan[:, 1].tolist() == list(range(0, 100, 10))


def test_rows_equal_documents_alone(tmp_path: Path, evidence) -> None:
    """The loss of packed rows is the sum of the documents' own, each from position 0."""
    net = model(33)
    held = shards(tmp_path)
    x = best_fit(held, 32)[slice(None)].x
    with torch.no_grad():
        total, count = token_losses(net, x, BEGIN)
        leak, _ = token_losses(net, torch.where(x == BEGIN, 0, x), BEGIN)  # one document: tokens see the others
        alone = [-float(net.log_prob(torch.from_numpy(d)[None])) for d in texts()]
    evidence(id="AR-04", system="Packed documents", claim="loss of packed rows with intra-document masks", unit="nats",
             reference="each document alone", tolerance=1e-3, reached=abs(float(total) - sum(alone)))  # fmt: skip
    assert int(count) == sum(len(d) for d in texts())
    assert abs(float(leak - total)) > 1.0


def test_documents_of_restart() -> None:
    x = torch.tensor([[3, BEGIN, 1, 2, BEGIN, PAD]])
    assert documents_of(x, BEGIN).tolist() == [[0, 1, 1, 1, 2, -1]]


# ---- learning


def learner(net, microbatch: int | None = None, z: float = 0.0) -> Gradient:
    phase = Phase("nll", list(net.parameters()), packed_nll(net, BEGIN, z=z))
    return Gradient(net, [phase], microbatch=microbatch, clip=None, ema=None, schedule=constant())


@pytest.mark.parametrize("microbatch", [1, 3, 7])
def test_accumulation_counts_tokens(tmp_path: Path, microbatch: int, evidence) -> None:
    """Rows of unlike numbers of predicted tokens, in microbatches: the gradient of the mean over all tokens."""
    x = best_fit(shards(tmp_path), 32)[slice(None)].x
    x[0, 3:] = PAD  # a row of very few
    net = model(33)
    total, count = token_losses(net, x, BEGIN, z=1e-2)
    want = torch.autograd.grad(total / count, list(net.parameters()))
    step = learner(net, microbatch, z=1e-2)
    step.step(Batch(x, None, Streams(0, len(x))))
    got = [p.grad for p in net.parameters()]
    evidence(id="TS-02", system="Gradient accumulation", claim=f"packed rows, microbatches of {microbatch}, by tokens",
             reference="torch.autograd on the whole batch", tolerance=1e-6, unit="max abs",
             reached=max(float((a - b).abs().max()) for a, b in zip(got, want)))  # fmt: skip


def test_z_loss_is_the_squared_normaliser(tmp_path: Path) -> None:
    x = best_fit(shards(tmp_path), 32)[slice(0, 4)].x
    net = model(33)
    with torch.no_grad():
        plain, _ = token_losses(net, x, BEGIN)
        more, _ = token_losses(net, x, BEGIN, z=0.5)
        logits = net.logits(x[:, :-1].clamp_min(0), documents=documents_of(x[:, :-1], BEGIN))
        keep = (x[:, 1:] != BEGIN) & (x[:, 1:] != PAD)
        want = 0.5 * (logits.double().exp().sum(-1).log() ** 2)[keep].sum()
    assert float(more - plain) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("pack", [cut, best_fit])
def test_resume_from_shards_is_exact(tmp_path: Path, pack) -> None:
    held = shards(tmp_path / "tokens")

    def run(name: str, steps: int, resume: bool = False) -> dict:
        net = model(17)
        rows = pack(TokenShards(held.folder), 16)
        fit(net, rows, learner=learner(net), budget=Budget(steps=steps), batch_size=8, patience=None, judge=None,
            run=Saving(tmp_path / name, resume), progress=None)  # fmt: skip
        return load_file(tmp_path / name / "model.safetensors")

    whole = run("whole", 20)
    run("parts", 7)
    again = run("parts", 20, resume=True)
    assert all(torch.equal(whole[n], again[n]) for n in whole)


def test_bits_per_byte_of_the_uniform_model(tmp_path: Path) -> None:
    net = model(17)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    rows = cut(shards(tmp_path), 16)
    got = BitsPerByte(rows, BEGIN, bytes_per_token=2.0)(net)
    assert got["bits_per_byte"] == pytest.approx(np.log2(V) / 2, rel=1e-6)
    with pytest.raises(DataError, match="Hold some text out"):
        BitsPerByte(rows, BEGIN, bytes_per_token=0.0)
