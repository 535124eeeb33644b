"""GGUF files: what llama.cpp makes of them where it is installed, and what is in them everywhere."""

from __future__ import annotations

import pytest
import torch

from protea.errors import NotSupported
from protea.interop.export import _gguf, export
from protea.interop.gguf import KINDS, interleave_rows
from protea.interop.gguf_tokens import vocabulary_of
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.nn.position import interleaved
from protea.spaces import Tokens
from protea.spaces.tokenizers import make_tokenizer

NAMES = [a.name for a in ARCHITECTURES.values() if a.hf is not None and a.hf.model_type in KINDS]


def made(name: str, space: Tokens | None = None):
    torch.manual_seed(0)
    model = language_model(name, space or Tokens(64), ARCHITECTURES[name].scaled(2, 64, 64)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:  # gains and biases must matter
                p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_says_the_same(name, tmp_path, evidence):
    """Its GELU is a table in half precision, so that GPT-2 and Gemma agree to a few 1e-4 only."""
    pytest.importorskip("llama_cpp")
    done = export(made(name), "gguf", tmp_path / "m.gguf")
    assert done.agreement is not None
    evidence(id="AR-12", system=f"GGUF export, {name}", claim="logits and greedy text", reference="llama.cpp",
             reached=done.agreement.gap, tolerance=1e-3, unit="relative")  # fmt: skip


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


def test_what_gguf_does_not_have_is_told(tmp_path):
    with pytest.raises(NotSupported, match="not written"):
        export(made("mamba"), "gguf", tmp_path / "m.gguf")
    words = Tokens(16, tokenizer=make_tokenizer("wordpiece:300", ["to be or not to be that is the question"] * 9))
    with pytest.raises(NotSupported, match="tokenizer cannot be written"):
        export(made("llama", words), "gguf", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
