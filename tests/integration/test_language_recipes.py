"""The recipes of language models: same parameters at every depth, shared layers, the ladder, the speedrun's rules."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.models.autoregressive.footprint import footprint
from protea.nn.context import plain_context
from protea.nn.ngram_embedding import NGramEmbedding
from protea.spaces import Tokens

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # recipes/ lies beside src/

from recipes import ablation, depth_width, efficiency, modalities, scaling, speedrun


def count(model) -> int:
    return sum(p.numel() for p in model.net.blocks.parameters())


def test_shapes_have_the_same_parameters(evidence) -> None:
    counts = [count(depth_width.build(shape, 65)) for shape in depth_width.SHAPES]
    evidence(id="AR-39", system="Depth against width", claim="parameters of all shapes", unit="relative",
             reference="180,000", tolerance=0.02, reached=max(abs(n / 180_000 - 1) for n in counts))  # fmt: skip


def test_shared_layers_are_one(evidence) -> None:
    shared = depth_width.build(depth_width.Shape(2, 32, uses=2), 11, wanted=20_000)
    plain = depth_width.build(depth_width.Shape(2, 32), 11, wanted=20_000)
    layers = list(shared.net.blocks)
    assert len(layers) == 4 and layers[0] is layers[1] and layers[2] is layers[3] and layers[0] is not layers[2]
    evidence(id="AR-39", system="Layer sharing", claim="parameters beside those of unshared layers", unit="parameters",
             reference="the same", tolerance=0, reached=abs(count(shared) - count(plain)))  # fmt: skip
    x = torch.randint(11, (2, 9))
    with torch.no_grad():
        for p in shared.parameters():
            p.add_(0.1 * torch.randn_like(p))
        whole = shared.logits(x)
        cache = shared.new_cache(2, 9)  # every use of a block has keys of its own
        steps = torch.cat([shared.logits(x[:, :4], cache), shared.logits(x[:, 4:], cache)], 1)
    assert torch.allclose(whole, steps, atol=1e-5)


def text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("the cat sat on the mat, and the dog lay on the log. " * 120)
    return path


def test_the_ladder_foretells(tmp_path: Path) -> None:
    found = scaling.ladder(str(text(tmp_path)), widths=(16, 32, 48, 64), tokens_per_parameter=0.5)
    assert [r["compute"] for r in found["rows"]] == sorted(r["compute"] for r in found["rows"])
    assert found["rows"][-1]["loss"] < found["rows"][0]["loss"]
    assert found["E"] > 0 and found["foretold"] < found["rows"][0]["loss"]


def test_speedrun_follows_the_rules(tmp_path: Path) -> None:
    train, validation, vocabulary = speedrun.characters(text(tmp_path))
    whole = text(tmp_path).read_text()
    assert len(train) == int(0.9 * len(whole)) and len(train) + len(validation) == len(whole)
    rows = speedrun.blocks(validation)
    assert rows.shape[1] == 65 and torch.equal(rows[1:, 0], rows[:-1, -1])
    for name in ("ours", "blocks"):
        rung = replace(speedrun.RUNGS[name], steps=3, width=32, layers=1)
        found = speedrun.run(rung, text(tmp_path))
        model = speedrun.build(rung, vocabulary)
        with torch.no_grad():
            start = speedrun.validation_loss(model, validation)
        assert start == pytest.approx(torch.tensor(float(vocabulary)).log().item(), abs=1e-4)  # a zero head is uniform
        assert found["validation_loss"] < start


@pytest.mark.slow
def test_speedrun_reaches_nanogpts_loss(shared_data: Path, evidence) -> None:
    found = speedrun.run(speedrun.RUNGS["ours"], shared_data / "text" / "tinyshakespeare.txt")
    evidence(id="TS-10", system="Speedrun", claim=f"validation loss after {found['steps']} steps of 12 x 64 characters",
             reference="nanoGPT's after 2,000", unit="nats per character", tolerance=speedrun.TARGET,
             reached=found["validation_loss"])  # fmt: skip


def test_ngram_embeddings_stop_at_documents() -> None:
    """An n-gram sees the tokens of its own document only, and a text in pieces is as the whole."""
    embed = NGramEmbedding(7, 8, (2, 3), 101)
    torch.nn.init.normal_(embed.grams.weight)
    a, b = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6, 1]])
    packed = embed(torch.cat((a, b), 1), plain_context(7, documents=torch.tensor([[0, 0, 0, 1, 1, 1, 1]])))
    apart = torch.cat((embed(a, plain_context(3)), embed(b, plain_context(4))), 1)
    assert torch.allclose(packed, apart, atol=1e-6)
    from protea.nn.cache import Cache

    cache, parts = Cache(7), []
    for piece in torch.cat((a, b), 1).split([2, 1, 4], 1):
        parts.append(embed(piece, cache.context(piece.shape[1])))
        cache.advance(piece.shape[1])
    assert torch.allclose(torch.cat(parts, 1), embed(torch.cat((a, b), 1), plain_context(7)), atol=1e-6)


def test_counted_operations_are_six_n_and_attention(evidence) -> None:
    """Of dense decoders: 6 for each weight that a token multiplies with, and 14 L T d of attention's products."""
    torch.manual_seed(0)
    for name in ("gpt2", "llama", "qwen2"):
        model = language_model(name, Tokens(64), ARCHITECTURES[name].scaled(3, 64, 64)).train()
        n, attention = footprint(model.net).active, 14 * 3 * 64 * 64
        counted = efficiency.operations(model, torch.randint(256, (2, 64)))
        looked_up = 64 * 64 if name == "gpt2" else 0  # learnt positions are read, not multiplied with
        evidence(id="AR-49", system="Cost of an architecture", claim=f"operations a token of a training step, {name}",
                 reference="6 N + 14 L T d", unit="relative", tolerance=0.05,
                 reached=abs(counted / (6 * (n - looked_up) + attention) - 1))  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "mistral", "deepseek-v3", "mixtral"])
def test_counted_memory_is_the_formulas(name: str, evidence) -> None:
    model = language_model(name, Tokens(32), ARCHITECTURES[name].scaled(2, 32, 32)).eval()
    held = efficiency.memory(model, torch.randint(256, (1, 32)))
    evidence(id="AR-49", system="Cost of an architecture", claim=f"bytes remembered of a text, {name}", unit="bytes",
             reference="2 H_kv d_h (or d_c + d_R) a token and layer", tolerance=0,
             reached=abs(held - footprint(model.net).text_bytes(32, 4)))  # fmt: skip


def test_an_ablation_changes_one_setting(tmp_path: Path) -> None:
    (corpus := tmp_path / "corpus.txt").write_text("".join(f"{i} times {i} is {i * i}.\n\n" for i in range(300)))
    rows = ablation.ablate(str(corpus), "deepseek-v3", "n_dense", [0, 1], steps=2, seeds=2, layers=2, width=32,
                           block=32)  # fmt: skip
    assert [len(r["bits"]) for r in rows] == [2, 2] and rows[0]["parameters"] != rows[1]["parameters"]
    assert ablation.interval([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, 3.79456), abs=1e-4)  # t(2) 4.30265 sd / sqrt 3


def test_mu_law_keeps_quiet_sounds(evidence) -> None:
    """256 levels: the error is a share of the loudness, as G.711 means it to be (decoded by the formula's inverse)."""
    wave = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    coded = modalities.mu_law(wave).double() / 127.5 - 1
    back = coded.sign() * ((1 + 255) ** coded.abs() - 1) / 255
    bound = torch.log1p(torch.tensor(255.0, dtype=torch.float64)) / 255 * (wave.abs() + 1 / 255) * 1.03
    assert ((back - wave).abs() <= bound).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "file"),
    [("text", "text/tinyshakespeare.txt"), ("pictures", "images/mnist10k.npz"), ("audio", "audio/spoken_digits.npz")],
)
def test_one_decoder_learns_every_sequence(kind: str, file: str, shared_data: Path, evidence) -> None:
    x = getattr(modalities, kind)(shared_data / file)[:4000]
    ours, alone = modalities.learn(x, 60, layers=2, width=48)
    evidence(
        id="AR-50", system="One decoder for any sequence", unit="bits", reached=ours - alone, tolerance=-0.1,
        claim=f"bits a symbol less those of single symbols, {kind}", reference=f"single symbols ({alone:.2f})",
    )  # fmt: skip
