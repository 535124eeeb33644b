"""Hugging Face folders: what we write is what we read, and bad ones are refused with the cause."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import protea
from protea.errors import ConfigError, DataError, NotSupported
from protea.interop.huggingface import from_pretrained, save_pretrained
from protea.interop.tensors import INDEX, WHOLE
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.nn.context import plain_context
from protea.nn.patching import entropy
from protea.spaces import Tokens
from protea.spaces.tokenizers import make_tokenizer

# BLT's folder says a threshold that is found in data: below, and tests/parity/test_blt.py.
WITH_HF = [name for name, a in ARCHITECTURES.items() if a.hf is not None and name != "blt"]
TEXT = "to be or not to be that is the question " * 20


def small(name="llama", space=None):
    space = space or Tokens(12, vocabulary=17, tokenizer="ids")
    torch.manual_seed(1)
    config = ARCHITECTURES[name].scaled(2, 16, 12)
    if name == "xlstm":  # there without scalar memories
        config = replace(config, slstm=())
    return language_model(name, space, config).eval()


def equal(a, b):
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


@pytest.mark.parametrize("name", WITH_HF)
@torch.no_grad()
def test_ours_comes_back(name, tmp_path):
    """Tensors, config, space and begin-of-text, which cannot follow and so has no logit."""
    model = small(name)
    back = from_pretrained(save_pretrained(model, tmp_path))
    assert equal(model, back) and back.space == model.space and back.begin == model.begin == 17
    assert back.architecture == name and back.context == model.context
    x = torch.randint(0, 18, (2, 12))
    assert torch.equal(back.logits(x), model.logits(x)) and back.logits(x).shape[-1] == 17


@torch.no_grad()
def test_byte_patches_are_written_with_the_threshold_they_learnt(tmp_path):
    """The folder says it, the model keeps learning it."""
    torch.manual_seed(0)
    model = language_model("blt", Tokens(12), ARCHITECTURES["blt"].scaled(1, 32, 40)).eval()
    x = torch.randint(0, 256, (2, 30))
    patcher = model.net.patcher
    patcher.theta.copy_(entropy(patcher.logits(x, plain_context(30))).median())
    assert 5 < model.net.starts(x).sum() < 55
    back = from_pretrained(save_pretrained(model, tmp_path))
    assert torch.equal(back.net.starts(x), model.net.starts(x)) and torch.equal(back.logits(x), model.logits(x))
    assert back.config.threshold == patcher.theta.item() and model.config.threshold is None and not patcher.fixed
    relative = language_model("blt", Tokens(12), replace(model.config, rule="relative"))
    with pytest.raises(NotSupported, match="rule 'relative'"):
        save_pretrained(relative, tmp_path / "no")


@pytest.mark.parametrize("tie", [False, True])
@torch.no_grad()
def test_begin_of_text_is_suppressed_elsewhere(tie, tmp_path):
    """In a folder the vocabulary holds begin-of-text; `generate` of transformers never writes it, and agrees."""
    transformers = pytest.importorskip("transformers")
    config = ARCHITECTURES["llama"].config(2, 16, 2, 1, 24, 12, tie=tie)
    model = language_model("llama", Tokens(12, vocabulary=17, tokenizer="ids"), config).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(save_pretrained(model, tmp_path)).eval()
    x = torch.tensor([[17, 3, 5]])
    assert torch.allclose(theirs(x).logits[..., :17], model.logits(x), atol=1e-5)
    from protea.samplers.tokens import generate

    want = theirs.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(model, x, 8, temperature=0), want[:, 3:])


@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe:280"])
def test_the_tokenizer_comes_back(kind, tmp_path):
    tokenizer = make_tokenizer(kind, [TEXT])
    space = Tokens(12, tokenizer=tokenizer, classes=("prose", "verse"))
    model = small(space=space)
    model.class_prior = torch.tensor([0.25, 0.75], dtype=torch.float64)
    back = from_pretrained(save_pretrained(model, tmp_path))
    assert back.space == space and torch.equal(back.class_prior, model.class_prior)
    assert torch.equal(back.space.encode(TEXT), space.encode(TEXT))
    size = (tmp_path / "config.json").stat().st_size
    assert size < 5000, "the vocabulary belongs into tokenizer.json"


@torch.no_grad()
def test_parts_hold_what_one_file_holds(tmp_path):
    model = small()
    save_pretrained(model, tmp_path / "one")
    save_pretrained(model, tmp_path / "many", part_size=3000)
    parts = sorted(p.name for p in (tmp_path / "many").glob("*.safetensors"))
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    assert len(parts) > 3 and parts[0] == f"model-00001-of-{len(parts):05d}.safetensors"
    assert all((tmp_path / "many" / p).stat().st_size < 3000 + 1500 for p in parts)
    assert set(index["weight_map"].values()) == set(parts)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in load_file(tmp_path / "one" / WHOLE).values())
    assert equal(from_pretrained(tmp_path / "many"), model)
    save_pretrained(model, tmp_path / "many")  # an old index and old parts would hide the new weights
    assert sorted(p.name for p in (tmp_path / "many").glob("model*")) == [WHOLE]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_precision_is_kept_or_converted(dtype, tmp_path):
    model = small()
    save_pretrained(model, tmp_path, dtype=dtype)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    half, full = from_pretrained(tmp_path), from_pretrained(tmp_path, dtype="float32")
    assert {p.dtype for p in half.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    for a, b in zip(model.parameters(), full.parameters()):
        assert torch.equal(a.to(getattr(torch, dtype)).float(), b)
    x = torch.randint(0, 17, (2, 12))
    assert half.logits(x).dtype == getattr(torch, dtype)
    assert torch.allclose(half.logits(x).float(), model.logits(x), atol=0.1)


def test_tied_weights_are_written_once(tmp_path):
    model = small("gpt2")
    save_pretrained(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WHOLE)
    tensors = load_file(tmp_path / WHOLE)
    save_file({**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()}, tmp_path / WHOLE)
    assert equal(from_pretrained(tmp_path), model)  # others write them twice
    bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    save_file({**bare, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, tmp_path / WHOLE)  # as OpenAI's own upload has them
    assert equal(from_pretrained(tmp_path), model)


def test_a_loaded_model_learns(tmp_path):
    """Weights mapped from a file can be changed, and the file stays as it is."""
    save_pretrained(small(), tmp_path)
    before = (tmp_path / WHOLE).read_bytes()
    model = from_pretrained(tmp_path).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randint(0, 17, (4, 12))
    first = -model.log_prob(x).sum()
    first.backward()
    optimizer.step()
    assert -model.log_prob(x).sum() < first and (tmp_path / WHOLE).read_bytes() == before


def test_the_public_names():
    assert protea.from_pretrained is from_pretrained and protea.save_pretrained is save_pretrained


# ---- bad folders ----


@pytest.fixture
def folder(tmp_path):
    return save_pretrained(small(), tmp_path, part_size=3000)


def edit(folder, **values):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def test_missing_part(folder):
    part = sorted(folder.glob("model-*"))[1]
    part.unlink()
    with pytest.raises(DataError, match=rf"lacks 1 of the \d+ parts.*{part.name}"):
        from_pretrained(folder)


def test_truncated_part(folder):
    part = sorted(folder.glob("model-*"))[1]
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(DataError, match=rf"{part.name} is truncated"):
        from_pretrained(folder)


def test_index_that_points_elsewhere(folder):
    path = folder / INDEX
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], name: "../secret.safetensors"}}))
    with pytest.raises(DataError, match=r"points to '../secret"):
        from_pretrained(folder)
    path.write_text("[")
    with pytest.raises(DataError, match="no index of weights"):
        from_pretrained(folder)


def test_unknown_architecture(folder):
    edit(folder, model_type="lama")
    with pytest.raises(DataError, match=r"'lama'.*Did you mean llama"):
        from_pretrained(folder)


def test_missing_and_unexpected_tensors(tmp_path):
    save_pretrained(small(), tmp_path)
    tensors = load_file(tmp_path / WHOLE)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / WHOLE)
    with pytest.raises(DataError, match=f"lacks 1 of .* {name}"):
        from_pretrained(tmp_path)
    save_file({**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(16)}, tmp_path / WHOLE)
    with pytest.raises(DataError, match=r"holds 1 tensors .*q_proj.bias"):
        from_pretrained(tmp_path)
    save_file(tensors, tmp_path / WHOLE)
    edit(tmp_path, num_hidden_layers=3)
    with pytest.raises(DataError, match="lacks 9 of"):
        from_pretrained(tmp_path)


def test_shapes_that_do_not_fit(folder):
    edit(folder, intermediate_size=64)
    with pytest.raises(DataError, match=r"gate_proj.weight is \(48, 16\) where config.json says \(64, 16\)"):
        from_pretrained(folder)


def test_options_we_do_not_have(folder):
    edit(folder, hidden_act="relu")
    with pytest.raises(DataError, match="hidden_act = 'relu'"):
        from_pretrained(folder)
    edit(folder, hidden_act="silu", rope_scaling={"rope_type": "spiral"})
    with pytest.raises(DataError, match="'spiral'"):
        from_pretrained(folder)
    edit(folder, rope_scaling="absent", hidden_size="absent")
    with pytest.raises(DataError, match="does not say hidden_size"):
        from_pretrained(folder)
    edit(folder, hidden_size=16, vocab_size=-3)
    with pytest.raises(DataError, match="vocab_size = -3"):
        from_pretrained(folder)


def test_pickles_are_refused(tmp_path):
    save_pretrained(small(), tmp_path)
    (tmp_path / WHOLE).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"as a pickle \(pytorch_model.bin\)"):
        from_pretrained(tmp_path)


def test_no_model_at_all(tmp_path):
    with pytest.raises(DataError, match=r"config.json does not exist"):
        from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="no JSON object"):
        from_pretrained(tmp_path)


def test_bad_requests(tmp_path):
    with pytest.raises(ConfigError, match=r"no dtype 'float33'.*Did you mean float32"):
        save_pretrained(small(), tmp_path, dtype="float33")
    for size in ("5XB", "many", 0):
        with pytest.raises(ConfigError):
            save_pretrained(small(), tmp_path, part_size=size)
    with pytest.raises(NotSupported, match="'gpt3' has no counterpart"):
        save_pretrained(small("gpt3"), tmp_path)
