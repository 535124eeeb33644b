"""GGUF files: what llama.cpp makes of them where it is installed, and what is in them everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from protea.errors import NotSupported, ParityError
from protea.interop.export import _gguf, export
from protea.interop.gguf_kinds import KINDS, interleave_rows
from protea.interop.gguf_tokens import vocabulary_of
from protea.interop.readers import open_with_llama_cpp
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.nn.position import interleaved
from protea.spaces import Tokens
from protea.spaces.tokenizers import make_tokenizer

NAMES = [a.name for a in ARCHITECTURES.values() if a.hf is not None and a.hf.model_type in KINDS]


AS_THERE = {"cohere2": {"layers": 4}, "qwen2-moe": {"normalise": False}}  # what llama.cpp fixes
YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 32,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
}
VARIANTS = [
    ("deepseek-v2", {"q_rank": 16}),
    pytest.param(
        "deepseek-v2", {"layers": 27}, marks=pytest.mark.slow
    ),  # by its depth a lite one: queries are not compressed
    ("deepseek-v3", {"q_rank": 16, "interleave": False, "n_groups": 4, "top_groups": 2}),
    ("deepseek-v3", {"n_ahead": 1, "n_dense": 0, "scale": 2.5, "normalise": False, "rope_scaling": YARN}),
    ("jamba", {"layers": 4, "n_experts": 4}),
    ("mamba", {"tie": False, "conv_bias": False}),
    ("mamba2", {"tie": True}),
    ("mpt", {"d_model": 48, "n_heads": 3, "tie": False}),  # slopes of heads that are no power of two
    ("qwen2-moe", {"normalise": False, "tie": True}),
]


def made(name: str, space: Tokens | None = None, layers: int = 2, **over):
    torch.manual_seed(0)
    config = replace(ARCHITECTURES[name].scaled(layers, 64, 64), **over)
    model = language_model(name, space or Tokens(64), config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:  # gains and biases must matter
                p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_says_the_same(name, tmp_path, evidence):
    """Its GELU is a table in half precision, so that GPT-2, Gemma and MPT agree to a few 1e-4 only."""
    pytest.importorskip("llama_cpp")
    done = export(made(name, **AS_THERE.get(name, {})), "gguf", tmp_path / "m.gguf")
    assert done.agreement is not None
    evidence(id="AR-12", system=f"GGUF export, {name}", claim="logits and greedy text", reference="llama.cpp",
             reached=done.agreement.gap, tolerance=1e-3, unit="relative")  # fmt: skip


@pytest.mark.parametrize(("name", "over"), VARIANTS)
def test_llama_cpp_says_the_same_of_variants(name, over, tmp_path, evidence):
    pytest.importorskip("llama_cpp")
    done = export(made(name, **over), "gguf", tmp_path / "m.gguf")
    assert done.agreement is not None
    shown = ", ".join(f"{k} {'yarn' if v is YARN else v}" for k, v in over.items())
    evidence(id="AR-12", system=f"GGUF export, {name}", claim=f"logits and greedy text; {shown}",
             reference="llama.cpp", reached=done.agreement.gap, tolerance=1e-3, unit="relative")  # fmt: skip


@pytest.mark.parametrize("name", ["jamba", "mamba2", "deepseek-v3", "qwen3-moe"])
def test_half_precision_opens(name, tmp_path):
    """Routers, taps and decays stay whole, for llama.cpp's kernels read nothing else."""
    pytest.importorskip("llama_cpp")
    done = export(made(name), "gguf", tmp_path / "m.gguf", dtype="float16")
    assert done.agreement is not None and done.agreement.gap < 2e-2


def test_what_a_file_holds(tmp_path):
    gguf = pytest.importorskip("gguf")
    model = made("llama")
    _gguf(tmp_path / "m.gguf", model, None)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    held = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    attention = model.net.blocks[1].branches[0].mixer
    heads = attention.q.out_features // attention.d_head
    per_head = attention.q.weight.unflatten(0, (heads, -1))
    want = interleaved(per_head.transpose(1, 2)).transpose(1, 2).flatten(0, 1)  # pairs (j, j + d/2) become neighbours
    assert torch.equal(held["blk.1.attn_q.weight"], want.detach())
    assert torch.equal(held["token_embd.weight"], model.net.embed.weight.detach())
    assert sum(t.numel() for t in held.values()) == sum(p.numel() for p in model.net.parameters()) + 64  # head's begin
    pieces = [bytes(reader.fields["tokenizer.ggml.tokens"].parts[i]).decode() for i in
              reader.fields["tokenizer.ggml.tokens"].data]  # fmt: skip
    assert pieces[ord("A")] == "A" and pieces[ord(" ")] == "Ġ" and pieces[256] == "<|begin|>" and len(pieces) == 257


def test_merges_and_specials_are_carried():
    tokenizer = make_tokenizer("bpe:300", ["the cat sat on the mat. the dog ran."] * 20)
    definition = tokenizer.definition()
    found = vocabulary_of(definition, tokenizer.vocabulary + 1, bos=tokenizer.vocabulary)
    assert found.merges == [" ".join(m) for m in definition["model"]["merges"]] and len(found.merges) > 10
    assert found.kinds[-1] == "CONTROL" and found.add_bos and found.eos == found.bos


def test_rows_of_each_head_are_interleaved():
    x = torch.randn(8, 3)
    assert torch.equal(interleave_rows(x, 2)[:4], x[[0, 2, 1, 3]])


@pytest.mark.parametrize(
    ("name", "over", "match"),
    [
        ("gpt1", {}, "no 'openai-gpt' models.*llama, mistral.*mpt"),
        ("cohere2", {}, "every fourth layer"),
        ("qwen2-moe", {}, "never normalises"),
        ("qwen3-moe", {"normalise": False}, "always normalises"),
        ("qwen3-moe", {"dense": (0,)}, "dense layers"),
        ("mamba", {"bias": True}, "no biases"),
        ("mamba2", {"n_groups": 2}, "each group"),
        ("deepseek-v2", {"n_groups": 4, "top_groups": 2}, "best two"),
        ("deepseek-v3", {"n_shared": 0}, "shared expert"),
        ("deepseek-v3", {"layers": 26, "q_rank": 8}, "plain queries"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(name, over, match, tmp_path):
    with pytest.raises(NotSupported, match=match):
        export(made(name, **over), "gguf", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_open_is_told(tmp_path):
    pytest.importorskip("llama_cpp")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ParityError, match="cannot open the export"):
        open_with_llama_cpp(tmp_path / "m.gguf")


def test_a_tokenizer_that_gguf_does_not_have_is_told(tmp_path):
    words = Tokens(16, tokenizer=make_tokenizer("wordpiece:300", ["to be or not to be that is the question"] * 9))
    with pytest.raises(NotSupported, match="tokenizer cannot be written"):
        export(made("llama", words), "gguf", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
