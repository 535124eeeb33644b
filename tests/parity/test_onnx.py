"""ONNX graphs, opened by onnxruntime: any length, any batch, whole texts and token by token with a memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from protea.errors import NotSupported
from protea.interop.export import export
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.spaces import Tokens

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
RECURRENT = ["mamba", "mamba2", "jamba", "xlstm", "rnn"]


def made(name: str, **over):
    torch.manual_seed(0)
    config = replace(ARCHITECTURES[name].scaled(2, 32, 40), **over)
    model = language_model(name, Tokens(24, vocabulary=50, tokenizer="ids"), config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("name", ["llama", "deepseek-v3", *RECURRENT])
@torch.no_grad()
def test_whole_texts(name, tmp_path, evidence):
    """Recurrent layers are loops in the graph, experts answer for every token: all lengths, from one on."""
    model = made(name, **({"n_experts": 4} if name == "jamba" else {}))
    export(model, "onnx", tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, time in ((1, 1), (3, 2), (2, 17), (1, 40)):
        x = torch.randint(0, 50, (batch, time))
        want = model.logits(x)
        got = torch.from_numpy(session.run(None, {"tokens": x.numpy()})[0])
        worst = max(worst, ((got - want).abs().max() / want.abs().max()).item())
    evidence(id="AR-20", system=f"ONNX export, {name}", claim="logits of 1 to 40 tokens, 1 to 3 texts",
             reference="onnxruntime", reached=worst, tolerance=1e-5, unit="relative")  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gemma3", "mpt", "deepseek-v3", "mamba", "jamba"])
def test_with_a_memory(name, tmp_path, evidence):
    """The prompt at once, then token by token: the greedy text is ours, step by step (in `export`)."""
    model = made(name)
    done = export(model, "onnx-past", tmp_path / "m.onnx")
    assert done.agreement is not None and done.agreement.tokens == 36
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    inputs, outputs = ([node.name for node in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
    assert inputs[0] == "input_ids" and outputs[0] == "logits"
    assert [n.replace("past_key_values", "present") for n in inputs[1:]] == outputs[1:]
    if name == "llama":
        assert inputs[1:] == [f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")]
    evidence(id="AR-20", system=f"ONNX export with a memory, {name}", claim="logits and greedy text, token by token",
             reference="onnxruntime", reached=done.agreement.gap, tolerance=1e-5, unit="relative")  # fmt: skip


def test_byte_patches_are_refused_with_the_cause(tmp_path):
    model = language_model("blt", Tokens(24), ARCHITECTURES["blt"].scaled(1, 32, 40)).eval()
    with pytest.raises(NotSupported, match="patches of a byte latent transformer"):
        export(model, "onnx", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_the_weights_are_left_alone(tmp_path):
    """The graph is of a copy; the model keeps its layers and its parameters."""
    model = made("jamba")
    before = {name: (type(m), id(p)) for name, m in model.named_modules() for p in m.parameters(recurse=False)}
    export(model, "onnx", tmp_path / "m.onnx")
    after = {name: (type(m), id(p)) for name, m in model.named_modules() for p in m.parameters(recurse=False)}
    assert before == after
